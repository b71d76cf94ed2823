"""Grids of 8 bits: scale and zero point from ranges, and what rounding to them costs.

The arithmetic is that of ONNX's QuantizeLinear: q = saturate(round_half_even(x / scale) + zero_point). The 8 bits are an
integer, or a float of four bits of exponent and three of mantissa, E4M3 (Micikevicius et al. 2022, arXiv:2209.05433).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.calibration.ranges import TensorRange
from deploykit.errors import UsageError

Floats = NDArray[np.float32]

#: Smallest scale: below it float32 can't divide by the scale without overflow.
LEAST_SCALE: Final = 2.0**-100
#: That of floats: a normal number in float16, in which scales may be stored. Small values lose nothing by it.
LEAST_FLOAT_SCALE: Final = 2.0**-14
#: Shares of the range that a search for the least squared error tries.
SHRINKS: Final = tuple(np.linspace(1.0, 0.1, 46).tolist())
#: Share of the values that the percentile method leaves outside on each side.
OUTSIDE: Final = 1e-4


#: numpy's name of E4M3, as ml_dtypes registers it.
E4M3_DTYPE: Final = "float8_e4m3fn"


@dataclass(frozen=True)
class Kind:
    """A kind of grid.

    Attributes:
        dtype: "int8", "uint8" or "float8_e4m3fn".
        symmetric: Zero is in the middle (int8, floats) or at the end (uint8) of the grid.
        positive: Kind for tensors without negative values; None for this one.
    """

    dtype: str
    symmetric: bool
    positive: Kind | None = None

    @property
    def low(self) -> int:
        """Least value: a symmetric int8 grid leaves -128 out, so that it is as wide on both sides."""
        return {"uint8": 0, "int8": -127 if self.symmetric else -128, E4M3_DTYPE: -448}[self.dtype]

    @property
    def high(self) -> int:
        """Largest value."""
        return {"uint8": 255, "int8": 127, E4M3_DTYPE: 448}[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether values are floats: as exact, for their size, anywhere in the range."""
        return self.dtype == E4M3_DTYPE

    @property
    def title(self) -> str:
        """As people write it."""
        return "fp8" if self.floating else self.dtype

    @property
    def numpy(self) -> np.dtype[Any]:
        """Type of the codes."""
        import ml_dtypes  # noqa: F401 - makes numpy know the floats' name

        return np.dtype(self.dtype)

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the nearest codes of values that were divided by the scale, in `numpy`; beyond the range the outermost."""
        kept: NDArray[Any] = np.clip(values if self.floating else np.rint(values), self.low, self.high)
        return kept.astype(self.numpy)


INT8: Final = Kind("int8", symmetric=True)
E4M3: Final = Kind(E4M3_DTYPE, symmetric=True)
UINT8_FROM_ZERO: Final = Kind("uint8", symmetric=True)
UINT8: Final = Kind("uint8", symmetric=False, positive=UINT8_FROM_ZERO)
#: Without a zero point, whatever the sign.
SYMMETRIC: Final = Kind("int8", symmetric=True, positive=UINT8_FROM_ZERO)


@dataclass(frozen=True)
class Grid:
    """One scale and zero point.

    Attributes:
        kind: Its codes.
        scale: Distance of two neighbours, positive.
        zero_point: Code that stands for 0.
    """

    kind: Kind
    scale: float
    zero_point: int

    def rounded(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the nearest values of the grid, as float64."""
        steps = np.asarray(values, np.float64) / self.scale
        if self.kind.floating:
            return self.kind.codes(steps).astype(np.float64) * self.scale
        kept: NDArray[np.float64] = np.clip(np.rint(steps) + self.zero_point, self.kind.low, self.kind.high)
        return (kept - self.zero_point) * self.scale


def grid_over(kind: Kind, low: float, high: float) -> Grid:
    """Return the grid of a kind that covers [low, high] and 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    if kind.symmetric:
        reach = max(-low, high) if kind.low < 0 else high
        return Grid(kind, _scale(reach / kind.high, kind), 0)
    scale = _scale((high - low) / (kind.high - kind.low), kind)
    return Grid(kind, scale, int(np.clip(np.rint(kind.low - low / scale), kind.low, kind.high)))


def _scale(value: float, kind: Kind) -> float:
    """Return a scale as float32 holds it; 1 for a tensor that is zero throughout."""
    least = LEAST_FLOAT_SCALE if kind.floating else LEAST_SCALE
    return float(np.float32(max(value, least))) if value > 0.0 else 1.0


def _whole(kind: Kind, seen: TensorRange) -> Grid:
    return grid_over(kind, seen.min, seen.max)


def _mean(kind: Kind, seen: TensorRange) -> Grid:
    return grid_over(kind, seen.image_min, seen.image_max)


def _percentile(kind: Kind, seen: TensorRange) -> Grid:
    return grid_over(kind, *seen.quantiles(OUTSIDE))


def _least_error(kind: Kind, seen: TensorRange) -> Grid:
    """Return the grid of least squared error among shrunk ranges; a flat histogram keeps the whole range."""
    used = np.flatnonzero(seen.histogram)
    if len(used) == 0:
        return _whole(kind, seen)
    values, counts = seen.centers[used], seen.histogram[used]
    candidates = [grid_over(kind, seen.min * share, seen.max * share) for share in SHRINKS]
    return min(candidates, key=lambda grid: float((counts * (grid.rounded(values) - values) ** 2).sum()))


METHODS: Final[Mapping[str, Callable[[Kind, TensorRange], Grid]]] = {
    "minmax": _whole,
    "mean-minmax": _mean,
    "percentile": _percentile,
    "mse": _least_error,
}


def activation_grid(seen: TensorRange, kind: Kind, method: str) -> Grid:
    """Return the grid of an activation; floats cover the whole range, since nothing within is won by leaving out what is far.

    Args:
        seen: Its range.
        kind: Wanted.
        method: One of `METHODS`.

    Raises:
        UsageError: No such method.
    """
    if method not in METHODS:
        raise UsageError(f"unknown range method {method!r}; there are: {', '.join(METHODS)}")
    if kind.positive is not None and seen.min >= 0.0:
        kind = kind.positive
    return _whole(kind, seen) if kind.floating else METHODS[method](kind, seen)


def weight_scales(weight: NDArray[Any], axis: int, kind: Kind = INT8) -> Floats:
    """Return the symmetric scale of each channel: float32 [C]."""
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    reach = np.abs(weight).max(axis=others)
    return np.asarray([_scale(float(value) / kind.high, kind) for value in reach], np.float32)


def quantized_weight(weight: NDArray[Any], scales: Floats, axis: int, kind: Kind = INT8) -> NDArray[Any]:
    """Round a weight to codes of a kind, with one scale per channel of `axis`."""
    shape = [1] * weight.ndim
    shape[axis % weight.ndim] = len(scales)
    return kind.codes(np.asarray(weight, np.float64) / scales.reshape(shape).astype(np.float64))
