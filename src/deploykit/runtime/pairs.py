"""Pairs of weights whose products don't fit 16 bits: a file that holds some answers otherwise where kernels add pairs there.

Neighbours are two channels of the input at one place of the kernel; where a runtime lays out the kernel as one row, also the
last channel of a place and the first of the next. With data of 0 to 255, two weights of one sign may sum to 128 in magnitude.
How much is lost depends on the data and is not known from the file: that takes a verdict on such a processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.processors import unsafe
from deploykit.texts import one_line

#: 128 * 255 = 32,640 is the largest multiple of 255 that 16 bits hold.
MOST_PAIR: Final = 128
#: What an application sets, so that a runtime doesn't add in 16 bits, by backend.
REMEDIES: Final = {"onnxruntime": "session.x64quantprecision=1 computes it as it stands"}


@dataclass(frozen=True)
class Excess:
    """What a file holds that may saturate.

    Attributes:
        layers: Layers that kernels in 8 bits may compute with pairs of neighbours.
        over: Those of them with pairs that don't fit 16 bits.
        most: The largest magnitude of the sum of two neighbours.
        worst: Name of the layer that has it.
    """

    layers: int
    over: int
    most: int
    worst: str


def excess_of(backend: str, model: str) -> Excess:
    """Return which layers of a file may saturate where its runtime adds pairs in 16 bits.

    Args:
        backend: Name of the runtime's backend.
        model: Path of the main file.

    Raises:
        BadInputError: The file is damaged.
    """
    layers, over, most, worst = 0, 0, 0, ""
    for product in get_backend(backend).products(model):
        codes = product.codes
        if is_by_itself(product.group, codes.shape[product.out_axis], codes.shape[product.in_axis]) or codes.size == 0:
            continue
        pair = int(largest_pairs(codes, product.out_axis, product.in_axis).max())
        layers, over = layers + 1, over + (pair > MOST_PAIR)
        if pair > most:
            most, worst = pair, product.name
    return Excess(layers, over, most, worst)


def note(name: str, backends: Sequence[str], model: str) -> str:
    """Return what has to be told of a file on any machine: on which classes it may saturate, and what to do; "" of others.

    Args:
        name: Of the artifact.
        backends: Names of the backends that it is run by, the recommended one first.
        model: Path of the main file.

    Raises:
        BadInputError: The file is damaged.
    """
    classes = ", ".join(one.name for one in unsafe(backends))
    found = excess_of(backends[0], model) if classes else Excess(0, 0, 0, "")
    if not found.over:
        return ""
    remedies = dict.fromkeys(REMEDIES[backend] for backend in backends if backend in REMEDIES)
    return (
        f"{name} may saturate on {classes}: {found.over} of its {found.layers} int8 layers hold neighbouring weights whose "
        f"products don't fit 16 bits (sums to {found.most}, {MOST_PAIR} fit, in {one_line(found.worst)}): "
        + "; ".join(
            ["verify it there", *remedies, "deploykit export --int8 of the float model writes weights that fit"]
        )
    )


def is_by_itself(group: int, channels: int, inner: int) -> bool:
    """Tell whether every channel is convolved by itself: kernels for that add in 32 bits.

    Args:
        group: Groups of channels.
        channels: Going out.
        inner: Channels coming in, of one group.
    """
    return group == channels > 1 == inner


def largest_pairs(codes: NDArray[Any], out_axis: int, in_axis: int) -> NDArray[np.float64]:
    """Return the largest magnitude of the sum of two neighbours of one sign, of every channel going out: float64 [C].

    Args:
        codes: int8 weights.
        out_axis: Of channels going out.
        in_axis: Of channels coming in.
    """
    laid = np.moveaxis(codes.astype(np.int16), (out_axis, in_axis), (0, -1))
    places = laid.reshape(len(laid), -1, laid.shape[-1])
    row = laid.reshape(len(laid), 1, -1)
    found: NDArray[np.float64] = np.maximum(_largest(places), _largest(row)).astype(np.float64)
    return found


def _largest(rows: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the largest magnitude of a sum of neighbours of one sign along the last axis of [C, rows, K]: [C]."""
    even = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[-1] % 2)))
    pairs = even.reshape(*even.shape[:2], -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=-1), -np.minimum(pairs, 0).sum(axis=-1))
    return np.asarray(sums.max(axis=(1, 2)))
