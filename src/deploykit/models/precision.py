"""What a kind of model stands: recipes for fewer bits, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Int8Recipe:
    """How a family is quantized to 8 bits.

    Attributes:
        floats: Shell patterns of nn.Module paths whose layers stay in the higher precision.
        depthwise: Convolutions of one channel per group run in 8 bits too.
        method: How a range becomes a grid: one of `deploykit.export.quantize.grid.METHODS`.
        strengths: Of SmoothQuant, to be tried beside none; see `deploykit.export.quantize.smooth`.
    """

    floats: tuple[str, ...] = ()
    depthwise: bool = True
    method: str = "mse"
    strengths: tuple[float, ...] = ()
