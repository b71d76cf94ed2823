"""LoRA: low-rank changes of a UNet's layers, fused into its weights before anything else is done with them.

Hu et al. 2021, arXiv:2106.09685: W + (alpha / r) B A. An LCM-LoRA (Luo et al. 2023, arXiv:2311.05556) turns an ordinary
diffusion UNet into one that needs four steps. Files name layers in three ways: as kohya's trainers do (`lora_unet_`, every dot
an underscore), as PEFT does (`lora_A`, `lora_B`), or as diffusers once did (`processor.to_q_lora`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit import serde
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models.checkpoint import read_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

SUFFIX: Final = ".safetensors"
#: What comes before a layer's name, and what says that it is a layer of something else.
PREFIX: Final = re.compile(r"^(?:base_model\.model\.)?(?:unet\.|lora_unet_)?")
ELSEWHERE: Final = re.compile(r"^(?:text_encoder|text_model|te\d?\.|lora_te|lora_prior|transformer)")
#: What comes after it, by what it is.
PARTS: Final = (
    ("down", re.compile(r"\.(?:lora_down|lora\.down|lora_A(?:\.\w+)?|lora_linear_layer\.down)\.weight$")),
    ("up", re.compile(r"\.(?:lora_up|lora\.up|lora_B(?:\.\w+)?|lora_linear_layer\.up)\.weight$")),
    ("alpha", re.compile(r"\.alpha$")),
)
#: As diffusers named attention's layers once: `attn1.processor.to_out_lora.down.weight`.
PROCESSOR: Final = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$")
#: Where PEFT keeps alpha, as text in the file's header, and what of it makes a change something else.
METADATA: Final = "lora_adapter_metadata"
UNUSUAL: Final = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern")
#: Adapters of other kinds, by what ends a tensor's name.
KINDS: Final = (
    ("DoRA", re.compile(r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)$")),
    ("LoHa", re.compile(r"\.hada_(?:w[12]_[ab]|t[12])$")),
    ("LoKr", re.compile(r"\.lokr_(?:w[12](?:_[ab])?|t2)$")),
    ("LoCon with a third matrix (Tucker)", re.compile(r"\.lora_mid(?:\.weight)?$")),
    ("OFT", re.compile(r"\.(?:oft_(?:blocks|diag|r(?:\.\w+)*)|boft_\w+(?:\.\w+)*)$")),
    ("IA3", re.compile(r"\.(?:ia3_l(?:\.\w+)*|on_input)$")),
    ("GLoRA", re.compile(r"\.[ab][12]\.weight$")),
    ("full difference", re.compile(r"\.(?:diff|diff_b|w_norm|b_norm)$")),
)
HINT: Final = Hint("--lora FILE", "takes a LoRA that was trained on this very kind of UNet")


@dataclass
class Change:
    """A layer's change: up [out, r, ...] times down [r, in, ...], times alpha / r; alpha None stands for r."""

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    alpha: torch.Tensor | float | None = None


def check(unet: nn.Module, path: Path) -> None:
    """Refuse a file that is no LoRA for a network, whose weights need no memory.

    Raises:
        UsageError: No such file, or no LoRA of a UNet.
        BadInputError: It is damaged, or made for another network.
    """
    _planned(unet, path)


def fuse(unet: nn.Module, path: Path) -> None:
    """Add a LoRA to a network's weights, layer by layer, in float32.

    Args:
        unet: Changed in place.
        path: The LoRA, .safetensors.

    Raises:
        UsageError: No such file, or no LoRA of a UNet.
        BadInputError: It is damaged, or made for another network.
    """
    import torch

    with torch.no_grad():
        for weight, change in _planned(unet, path):
            weight.add_(_product(change).view_as(weight))


def _planned(unet: nn.Module, path: Path) -> list[tuple[torch.Tensor, Change]]:
    """Return the weights that are changed, each with its change. Raises what `fuse` does."""
    layers = {name.replace(".", "_"): layer for name, layer in unet.named_modules()}
    return [(_checked(name, change, layers.get(name), path), change) for name, change in _read(path).items()]


def _read(path: Path) -> Mapping[str, Change]:
    """Return the changes by the layer's name, its dots underscores. Raises what `fuse` does."""
    if path.suffix != SUFFIX:
        raise UsageError(f"--lora {path}: a LoRA is read from {SUFFIX}")
    state, usual = read_checkpoint(path), _usual_alpha(path)
    found: dict[str, Change] = {}
    strange, elsewhere = [], []
    for key in sorted(state):
        if ELSEWHERE.match(key):
            elsewhere.append(key)
        elif (place := _place(key)) is None:
            strange.append(key)
        else:
            setattr(found.setdefault(place[0], Change(alpha=usual)), place[1], state[key])
    if elsewhere:
        raise UsageError(
            f"{path} changes {_several(elsewhere)} outside the UNet, such as {elsewhere[0]!r}: the UNet alone would be half "
            "of it"
        )
    kinds = [kind for kind, ending in KINDS if any(map(ending.search, strange))]
    if kinds:
        raise UsageError(
            f"{path} is of another kind, {' and '.join(kinds)}, which isn't supported, plain LoRA is: it holds "
            f"{_several(strange)} such as {strange[0]!r}",
            Hint("lcm:FOLDER", "takes a UNet that it was merged into, with PEFT or LyCORIS"),
        )
    if strange or not found:
        told = f"{_several(strange)} that no LoRA has, such as {strange[0]!r}" if strange else "nothing"
        raise UsageError(f"{path} is no LoRA of a UNet: it holds {told}", HINT)
    return found


def _several(keys: list[str]) -> str:
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}"


def _place(key: str) -> tuple[str, str] | None:
    """Return the layer's name and the part of its change that a tensor is; None for anything else."""
    stem = PREFIX.sub("", key)
    old = PROCESSOR.search(stem)
    if old is not None:
        layer = "to_out_0" if old[1] == "to_out" else old[1]
        return f"{stem[: old.start()]}.{layer}".replace(".", "_"), old[2]
    for part, ending in PARTS:
        match = ending.search(stem)
        if match is not None:
            return stem[: match.start()].replace(".", "_"), part
    return None


def _usual_alpha(path: Path) -> float | None:
    """Return the alpha that the header names for all layers.

    Raises:
        UsageError: It names a change that is more than two matrices.
    """
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    try:
        settings: Any = serde.parse(text) if text else {}
    except ValueError as error:
        raise BadInputError(f"{path}: {METADATA} of its header is no JSON: {error}") from error
    known = {key.removeprefix("unet."): value for key, value in settings.items()} if isinstance(settings, dict) else {}
    unusual = [key for key in UNUSUAL if known.get(key)]
    if unusual:
        raise UsageError(f"{path} is a LoRA with {', '.join(unusual)}, which isn't supported")
    alpha = known.get("lora_alpha")
    return float(alpha) if isinstance(alpha, int | float) else None


def _checked(name: str, change: Change, layer: nn.Module | None, path: Path) -> torch.Tensor:
    """Return the weights that a change is for.

    Raises:
        BadInputError: Half of it is missing, there is no such layer, or it has another shape.
    """
    weight: torch.Tensor | None = getattr(layer, "weight", None)
    if weight is None:
        raise BadInputError(f"{path} is for another base: it changes {name}, and this UNet has no such layer", HINT)
    if change.down is None or change.up is None:
        missing = "down" if change.down is None else "up"
        raise BadInputError(f"{path}: the {missing} half of {name} is missing: is its download complete?")
    made = (change.up.shape[0], *change.down.shape[1:])
    fits = math.prod(made) == weight.numel() and made[:2] == tuple(weight.shape[:2])
    if not fits or change.up.shape[1] != change.down.shape[0]:
        raise BadInputError(
            f"{path} is for another base: {name} has weights {list(weight.shape)} here, and it changes {list(made)}",
            HINT,
        )
    return weight


def _product(change: Change) -> torch.Tensor:
    """Return what is added to the weights: [out, in, ...], flattened to [out, -1]."""
    assert change.down is not None and change.up is not None, "checked before anything was changed"  # noqa: PT018, S101
    rank = change.down.shape[0]
    scale = 1.0 if change.alpha is None else float(change.alpha) / rank
    return scale * (change.up.float().flatten(1) @ change.down.float().flatten(1))
