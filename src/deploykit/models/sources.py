"""Where originals come from: a source text such as "tiny-convnext" to an Original, and an Original to a torch module.

Resolving reads only small files, so that planning, a warm cache and `deploykit models` need neither torch nor timm.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import serde
from deploykit.artifact import Preprocess, sha256_of
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.optional import require

if TYPE_CHECKING:
    from torch import nn

TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Top1:
    """Accuracy measured when the weights were made: share of `n` images of `set`."""

    value: float
    n: int
    set: str


@dataclass(frozen=True)
class TinyCard:
    """What lies beside the weights of a model that ships with the package.

    Attributes:
        id: The model's name.
        module: Import path of its class, "package.module:Class".
        kwargs: What the class is called with.
        family: Name of a registered family.
        task: "logits".
        preprocess: From image to input.
        labels: Class names by index.
        weights: File name of the safetensors beside the card.
        weights_sha256: Its hash.
        parameters: Number of trained values.
        top1: Accuracy on the package's own held-out images.
    """

    id: str
    module: str
    kwargs: Mapping[str, Any]
    family: str
    task: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    weights: str
    weights_sha256: str
    parameters: int
    top1: Top1


@dataclass(frozen=True)
class Original:
    """A PyTorch original: what it is, where its weights are, how its images are prepared.

    Attributes:
        id: Short name, used for file names.
        source: The text that resolves to this original again.
        family: Name of a registered family.
        task: "logits".
        parameters: Number of trained values.
        weights_sha256: Hash of the weights file.
        spec_sha256: Hash of the architecture's import path and arguments.
        preprocess: From image to input.
        labels: Class names by index.
        images: Name of the labelled image set that the model was trained for, or None.
    """

    id: str
    source: str
    family: str
    task: str
    parameters: int
    weights_sha256: str
    spec_sha256: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    images: str | None

    @property
    def digest(self) -> str:
        """Content hash: the same weights in the same architecture with the same preprocessing and labels."""
        return serde.digest([self.weights_sha256, self.spec_sha256, self.preprocess, self.labels, self.family])


def list_models() -> tuple[str, ...]:
    """Return the names of the models that ship with the package."""
    return tuple(sorted(path.stem for path in TINY.glob("*.json")))


def resolve(source: str) -> Original:
    """Find out what `source` names, without opening it.

    Args:
        source: The name of a model that ships with the package.

    Raises:
        UsageError: No such model; the message names near ones.
        BadInputError: The model's card is damaged.
    """
    card = tiny_card(source)
    return Original(
        id=card.id,
        source=source,
        family=card.family,
        task=card.task,
        parameters=card.parameters,
        weights_sha256=card.weights_sha256,
        spec_sha256=serde.digest([card.module, card.kwargs]),
        preprocess=card.preprocess,
        labels=card.labels,
        images=card.top1.set,
    )


@cache
def tiny_card(name: str) -> TinyCard:
    """Read the card of a model that ships with the package.

    Raises:
        UsageError: No such model.
        BadInputError: The card is damaged.
    """
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise UsageError(
            f"{name!r} is no model that I know" + (f". Near: {', '.join(near)}" if near else ""),
            Hint("deploykit models", "lists those there are"),
        )
    path = TINY / f"{name}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    return serde.from_json(TinyCard, data, name)


def open_module(original: Original) -> nn.Module:
    """Build the original and load its weights.

    Returns:
        The module in evaluation mode, float32, on the CPU; it maps float32 [N, C, H, W] to the family's output.

    Raises:
        MissingComponentError: torch, timm or safetensors is not installed.
        BadInputError: The weights are missing, changed, or of another shape than the architecture.
    """
    require("torch", "timm", "safetensors")
    import safetensors
    from safetensors.torch import load_file

    card = tiny_card(original.source)
    path = TINY / card.weights
    if not path.is_file():
        raise BadInputError(f"{path} is missing: reinstall deploykit")
    found = sha256_of(path)
    if found != original.weights_sha256:
        raise BadInputError(f"{path} has SHA-256 {found[:12]}…; its card says {original.weights_sha256[:12]}…")
    module_name, _, attribute = card.module.partition(":")
    module: nn.Module = getattr(importlib.import_module(module_name), attribute)(**card.kwargs)
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BadInputError(f"{path} doesn't fit {card.module}: {str(error).splitlines()[0]}") from error
    return module.eval()
