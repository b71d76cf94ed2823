"""Weights whose products can be added in pairs of 16 bits, as x86 does without VNNI: every processor computes them alike.

Neighbours are two channels of the input at one place of the kernel; where a runtime lays out the kernel as one row, also the
last channel of a place and the first of the next. With data of 0 to 255, two weights of one sign may sum to 128 in magnitude.
A channel going out in which some don't gets coarser steps, by as much as it takes: twice as coarse at most.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.export.quantize.emit import Weights, round_weights
from deploykit.export.rewrites.editing import integer
from deploykit.export.rewrites.linears import Linear

#: 128 * 255 = 32,640 is the largest multiple of 255 that 16 bits hold.
MOST_PAIR: Final = 128


def fitted(linear: Linear, weights: Weights) -> Weights:
    """Return a layer's int8 weights with scales so coarse that no pair of neighbours sums to more than `MOST_PAIR`.

    Args:
        linear: The layer.
        weights: It, rounded as finely as it can be.
    """
    if _is_depthwise(linear):
        return weights
    while True:
        excess = largest_pairs(weights.rounded, linear.out_axis, linear.in_axis) / MOST_PAIR
        if not (excess > 1.0).any():
            return weights
        weights = round_weights(linear, weights.scales * np.maximum(excess, 1.0))


def largest_pairs(codes: NDArray[Any], out_axis: int, in_axis: int) -> NDArray[np.float64]:
    """Return the largest magnitude of the sum of two neighbours of one sign, of every channel going out: float64 [C].

    Args:
        codes: int8 weights.
        out_axis: Of channels going out.
        in_axis: Of channels coming in.
    """
    laid = np.moveaxis(codes.astype(np.int64), (out_axis, in_axis), (0, -1))
    places = laid.reshape(len(laid), -1, laid.shape[-1])
    row = laid.reshape(len(laid), 1, -1)
    found: NDArray[np.float64] = np.maximum(_largest(places), _largest(row)).astype(np.float64)
    return found


def _largest(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest magnitude of a sum of neighbours of one sign along the last axis of [C, rows, K]: [C]."""
    even = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[-1] % 2)))
    pairs = even.reshape(*even.shape[:2], -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=-1), -np.minimum(pairs, 0).sum(axis=-1))
    return np.asarray(sums.max(axis=(1, 2)))


def _is_depthwise(linear: Linear) -> bool:
    """Tell whether every channel is convolved by itself: kernels for that add in 32 bits."""
    return integer(linear.node, "group", 1) == linear.channels > 1 == linear.weight_shape[linear.in_axis]
