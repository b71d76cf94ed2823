"""What a kind of model stands: recipes for fewer bits, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Recipe:
    """How a family is quantized to 8 bits.

    Attributes:
        floats: Shell patterns of nn.Module paths whose layers stay in the higher precision.
        depthwise: Convolutions of one channel per group run in 8 bits too.
        attention: Products of two activations, such as QK^T, run in 8 bits too.
        least_channels: Layers with fewer channels going in or out stay in the higher precision.
        method: How a range becomes a grid: one of `deploykit.export.quantize.grid.METHODS`.
    """

    floats: tuple[str, ...] = ()
    depthwise: bool = True
    attention: bool = False
    least_channels: int = 1
    method: str = "mse"
