"""What precision a model's file holds, by its graph: not by what its name, its metadata or its manifest says.

Every product with weights counts with as many values as its weights have, under the coarsest type on their way from the file
into the product. Activations that are rounded to 8 bits on their way into it make it a product of 8 bits. A file is as coarse
as a share of its weights that can't be an oversight; what this reading can't follow counts as float32, which is held to most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit.verdict import GRADES

FULL: Final = "f32"
WEIGHTS, EIGHT, EIGHT_FLOAT = "int8-weights", "int8", "fp8"
#: Share of the weights' values that makes a file as coarse as they are: less is a few layers, for the sake of which nobody
#: calls a file int8. What deploykit makes has nearly all of its weights in what it is called after, unless a repair returned
#: them.
LEAST_SHARE: Final = 0.1


@dataclass(frozen=True)
class Operation:
    """One step of a graph.

    Attributes:
        inputs: Names of what it takes; what is left out is "".
        outputs: Names of what it makes.
        values: Of a constant, how many it has; 0 of everything else.
        grade: What a constant is stored in, or what an operation rounds to.
        multiplies: It multiplies by weights, where one of its inputs is constant.
        integer: It takes its activations in 8 bits.
        moves: It leaves the values of its first input as they are, or nearly: what was rounded before stays rounded.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: int = 0
    grade: str = FULL
    multiplies: bool = False
    integer: bool = False
    moves: bool = False


@dataclass(frozen=True)
class Product:
    """A layer that multiplies data in 8 bits by constant weights of int8.

    Attributes:
        name: Of the layer, or of its output.
        codes: int8 weights.
        out_axis: Of channels going out.
        in_axis: Of channels coming in; of one group where there are several.
        group: How many groups of channels are multiplied by themselves.
    """

    name: str
    codes: NDArray[np.int8]
    out_axis: int
    in_axis: int
    group: int = 1


@dataclass(frozen=True)
class _Value:
    """A tensor: how many values it has where it is constant, and the coarsest type that it came through."""

    values: int
    grade: str


def held(operations: Sequence[Operation], outputs: Iterable[str]) -> str:
    """Return the grade that a graph's weights are held in (see `deploykit.verdict.GRADES`); float32 where it has none.

    Args:
        operations: In an order in which they can be run.
        outputs: Names of what the graph gives; what doesn't lead to them doesn't count.
    """
    known: dict[str, _Value] = {}
    counted: Counter[str] = Counter()
    for operation in _needed(operations, outputs):
        inputs = [known.get(name, _Value(0, FULL)) for name in operation.inputs if name]
        made = _made(operation, inputs)
        if made.values == 0 and operation.multiplies and any(value.values for value in inputs):
            weights = max(inputs, key=lambda value: value.values)
            counted[_multiplied(operation, weights, inputs)] += weights.values
            made = _Value(0, operation.grade)
        known.update(dict.fromkeys(operation.outputs, made))
    share, total = 0, counted.total()
    for grade in reversed(GRADES):
        share += counted[grade]
        if total and share >= LEAST_SHARE * total:
            return grade
    return FULL


def _needed(operations: Sequence[Operation], outputs: Iterable[str]) -> list[Operation]:
    """Return the operations that lead to the outputs, in their order."""
    wanted = set(outputs)
    found = []
    for operation in reversed(operations):
        if wanted.intersection(operation.outputs):
            wanted.update(operation.inputs)
            found.append(operation)
    return found[::-1]


def _made(operation: Operation, inputs: Sequence[_Value]) -> _Value:
    if operation.values:
        return _Value(operation.values, operation.grade)
    if inputs and all(value.values for value in inputs):
        # Of several constants the largest is the weight, the others are its scales; of equals the finest counts.
        most = max(value.values for value in inputs)
        finest = min((value.grade for value in inputs if value.values == most), key=GRADES.index)
        return _Value(most, coarser(finest, operation.grade))
    if operation.grade != FULL:
        return _Value(0, EIGHT if operation.grade == WEIGHTS else operation.grade)
    return _Value(0, inputs[0].grade if operation.moves and inputs else FULL)


def _multiplied(operation: Operation, weights: _Value, inputs: Sequence[_Value]) -> str:
    """Return the grade of a product: of weights in 8 bits and activations in 8 bits, "int8"."""
    rounded = operation.integer or any(value.grade == EIGHT for value in inputs if not value.values)
    return EIGHT if weights.grade == WEIGHTS and rounded else weights.grade


def coarser(one: str, other: str) -> str:
    """Return the coarser of two grades."""
    return max(one, other, key=GRADES.index)
