"""Types of weights as files have them: narrow floats are widened to float32, which holds each of their values exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

#: By torch's names. Those that networks have, and narrower floats that hold values of their own.
USUAL: Final = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
NARROW: Final = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
#: Two numbers to a byte, the first in its lower half: a sign, two bits of exponent, one of mantissa (OCP MX 1.0, 5.3.3).
PAIRS: Final = "float4_e2m1fn_x2"
E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def name_of(tensor: torch.Tensor) -> str:
    """Return torch's name of a tensor's type, such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def widened(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor in a type that networks compute with; None where its values stand for something else, such as scales."""
    name = name_of(tensor)
    if name in USUAL:
        return tensor
    if name in NARROW:
        return tensor.float()
    return _unpaired(tensor) if name == PAIRS and tensor.ndim else None


def _unpaired(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    raw = tensor.contiguous().view(torch.uint8).long()
    pairs = torch.stack([values[raw & 15], values[raw >> 4]], dim=-1)
    return pairs.reshape(*tensor.shape[:-1], 2 * tensor.shape[-1])


def misfits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what would become something else in a network's own type: "mask bool for float32".

    Floats become floats of another width, as training scripts save them. Integers must keep their values.
    """
    import torch

    found = []
    for name in own.keys() & state.keys():
        given, kept = state[name], own[name].dtype
        if given.dtype == kept or name.endswith(".num_batches_tracked"):
            continue
        both_floats = kept.is_floating_point and given.dtype.is_floating_point
        is_exact = not (kept.is_floating_point or kept.is_complex or given.is_floating_point() or given.is_complex())
        if not (both_floats or (is_exact and torch.equal(given.to(kept).to(given.dtype), given))):
            found.append(f"{name} {name_of(given)} for {name_of(own[name])}")
    return sorted(found)
