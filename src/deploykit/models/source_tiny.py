"""Small trained models that ship with the package. Resolving one reads a JSON card and no heavy library, features apart."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import serde
from deploykit.artifact import Preprocess, sha256_of
from deploykit.errors import BadInputError, UsageError
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme
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


@cache
def tiny_card(name: str) -> TinyCard:
    """Read the card of a model that ships with the package.

    Raises:
        UsageError: No such model.
        BadInputError: The card is damaged.
    """
    if name not in tiny_names():
        raise UsageError(f"{name!r} does not ship with the package; {', '.join(tiny_names())} does")
    path = TINY / f"{name}.json"
    try:
        data = serde.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    return serde.from_json(TinyCard, data, name)


def tiny_names() -> tuple[str, ...]:
    """Return the names of the models that ship with the package."""
    return tuple(sorted(path.stem for path in TINY.glob("*.json")))


class TinyScheme(Scheme):
    """The models under `models/tiny/`."""

    name = "tiny"

    def names(self, pattern: str) -> tuple[str, ...]:
        """Return the names that match a shell pattern."""
        return tuple(name for name in tiny_names() if fnmatch(name, pattern))

    def claims(self, text: str) -> bool:
        """Tell whether it is the name of a model that ships."""
        return text in tiny_names()

    def ships(self, name: str) -> bool:
        """Tell whether it is one of them."""
        return name in tiny_names()

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Read a card. These models take one option, `embedding`: beyond that they are what they are."""
        refused = sorted(options.given.keys() - {"embedding"})
        if refused:
            raise UsageError(f"{name} ships trained: it takes no {', '.join(refused)}")
        card = tiny_card(name)
        task = "embedding" if options.embedding else card.task
        parameters = _features(card) if task == "embedding" else card.parameters
        return Original(
            id=card.id,
            scheme=self.name,
            name=name,
            options=options,
            weights_file="",
            family=card.family,
            task=task,
            parameters=parameters,
            weights_sha256=card.weights_sha256,
            spec_sha256=serde.digest([card.module, card.kwargs]),
            preprocess=card.preprocess,
            labels=card.labels if task == "logits" else (),
            images=card.top1.set if task == "logits" else None,
        )

    def open(self, original: Original) -> nn.Module:
        """Build the network and load its weights, after comparing their hash."""
        require("torch", "timm", "safetensors")
        import safetensors
        from safetensors.torch import load_file

        card = tiny_card(original.name)
        path = TINY / card.weights
        if not path.is_file():
            raise BadInputError(f"{path} is missing: reinstall deploykit")
        found = sha256_of(path)
        if found != original.weights_sha256:
            raise BadInputError(f"{path} has SHA-256 {found[:12]}…; its card says {original.weights_sha256[:12]}…")
        module = _build(card)
        try:
            module.load_state_dict(load_file(path), strict=True)
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise BadInputError(f"{path} doesn't fit {card.module}: {str(error).splitlines()[0]}") from error
        return (_headless(module, card) if original.task == "embedding" else module).eval()


def _build(card: TinyCard) -> nn.Module:
    module_name, _, attribute = card.module.partition(":")
    module: nn.Module = getattr(importlib.import_module(module_name), attribute)(**card.kwargs)
    return module


def _headless(module: nn.Module, card: TinyCard) -> nn.Module:
    """Take the classifier off, as timm's networks do it themselves.

    Raises:
        UsageError: The network can't.
    """
    reset = getattr(module, "reset_classifier", None)
    if reset is None:
        raise UsageError(f"--embedding: {card.id} answers with logits only, {card.module} can't leave its head off")
    reset(0)
    return module


def _features(card: TinyCard) -> int:
    """Return how many trained values are left without the head; the network is built without memory to count them."""
    require("torch", "timm")
    import torch

    with torch.device("meta"):
        module = _headless(_build(card), card)
    return sum(parameter.numel() for parameter in module.parameters())


SCHEME = TinyScheme()
