"""Weights whose products can be added in pairs of 16 bits, as x86 does without VNNI: every processor computes them alike.

Neighbours are two channels of the input at one place of the kernel; where a runtime lays out the kernel as one row, also the
last channel of a place and the first of the next. With data of 0 to 255, two weights of one sign may sum to 128 in magnitude.
A channel going out in which some don't gets coarser steps, by as much as it takes: twice as coarse at most.
"""

from __future__ import annotations

import numpy as np

from deploykit.export.quantize.emit import Weights, round_weights
from deploykit.export.rewrites.editing import integer
from deploykit.export.rewrites.linears import Linear
from deploykit.runtime.pairs import MOST_PAIR, is_by_itself, largest_pairs


def fitted(linear: Linear, weights: Weights) -> Weights:
    """Return a layer's int8 weights with scales so coarse that no pair of neighbours sums to more than `MOST_PAIR`.

    Args:
        linear: The layer.
        weights: It, rounded as finely as it can be.
    """
    group = integer(linear.node, "group", 1)
    if is_by_itself(group, linear.channels, linear.weight_shape[linear.in_axis]):
        return weights
    while True:
        excess = largest_pairs(weights.rounded, linear.out_axis, linear.in_axis) / MOST_PAIR
        if not (excess > 1.0).any():
            return weights
        weights = round_weights(linear, weights.scales * np.maximum(excess, 1.0))
