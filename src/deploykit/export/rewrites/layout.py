"""Where the values of a tensor go when nodes only move them: reshape, transpose, slice, split.

An array that stands for the tensor is moved in the same way, in numpy. Of what the array says about channels the nodes can
then be asked, however the network cuts and turns its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploykit.export.rewrites.editing import Array, integer, integers, made_by, sizes
from deploykit.export.rewrites.linears import Linear

if TYPE_CHECKING:
    import onnx_ir as ir

#: Size that stands for an open dimension: at 1, a reshape that mixes rows would go unnoticed.
OPEN = 2
MOVES = ("Reshape", "Transpose", "Squeeze", "Slice", "Split")


@dataclass(frozen=True)
class Leaf:
    """Where moving ends: a node that does something else with `value`, or None where the graph gives it out."""

    node: ir.Node | None
    value: ir.Value


@dataclass(frozen=True)
class Spread:
    """A tensor and all that is only moved from it.

    Attributes:
        arrays: Each of these tensors with what the array that was laid on the first one has become.
        leaves: The uses that are no moves.
    """

    arrays: Mapping[ir.Value, Array]
    leaves: tuple[Leaf, ...]


def origin(value: ir.Value) -> ir.Value:
    """Return the tensor that `value` is moved from, itself where it is computed."""
    node = made_by(value, *MOVES)
    while node is not None and node.inputs[0] is not None:
        value = node.inputs[0]
        node = made_by(value, *MOVES)
    return value


def lay(value: ir.Value, array: Array) -> Array | None:
    """Broadcast `array` over a tensor, open dimensions at a size that stands for them; None where it doesn't fit in.

    Args:
        value: Its shape is known.
        array: Of a shape that the tensor's own covers.
    """
    shape = _standing(value)
    if shape is None or array.ndim > len(shape):
        return None
    known = sizes(value) or ()
    for size, dim in zip(array.shape[::-1], known[::-1], strict=False):
        if size not in {1, dim}:
            return None
    return np.broadcast_to(array, shape)


def follow(start: ir.Value, array: Array) -> Spread:
    """Move an array along with the tensor that it was laid on."""
    arrays = {start: array}
    leaves: list[Leaf] = []
    queue = [start]
    while queue:
        value = queue.pop(0)
        if value.is_graph_output():
            leaves.append(Leaf(None, value))
        for node in value.consumers():
            moved = _move(node, value, arrays[value])
            if moved is None:
                leaves.append(Leaf(node, value))
            else:
                arrays |= moved
                queue += moved
    return Spread(arrays, tuple(leaves))


def follow_channels(linear: Linear) -> Spread | None:
    """Follow the numbers of a layer's channels, int32, to where they are used; None where its shape isn't known."""
    shape = [1] * len(sizes(linear.output) or ())
    shape[linear.axis] = -1
    array = lay(linear.output, np.arange(linear.channels, dtype=np.int32).reshape(shape))
    return None if array is None else follow(linear.output, array)


def _standing(value: ir.Value) -> tuple[int, ...] | None:
    """Return sizes to lay an array on: the tensor's own, its open dimension such that a reshape after it comes out even."""
    known = sizes(value)
    if known is None:
        return None
    standing = [dim if isinstance(dim, int) else OPEN for dim in known]
    for node in value.consumers():
        after = sizes(node.outputs[0]) if node.op_type == "Reshape" and node.inputs[0] is value else None
        if after is not None and any(not isinstance(dim, int) for dim in known):
            wanted = math.prod(dim if isinstance(dim, int) else OPEN for dim in after)
            rows = next(index for index, dim in enumerate(known) if not isinstance(dim, int))
            rest = math.prod(standing[:rows] + standing[rows + 1 :])
            if rest and wanted % rest == 0:
                standing[rows] = wanted // rest
            break
    return tuple(standing)


def _move(node: ir.Node, value: ir.Value, array: Array) -> dict[ir.Value, Array] | None:
    """Return the outputs' arrays; None where the node does more than to move `value`, or moves it we can't tell where."""
    if made_by(node.outputs[0], *MOVES) is None or node.inputs[0] is not value or value in node.inputs[1:]:
        return None
    try:
        moved = _MOVED[node.op_type](node, array)
    except (ValueError, IndexError, TypeError):  # a shape that doesn't fit, or is computed
        return None
    for output, made in zip(node.outputs, moved, strict=True):
        known = sizes(output)
        if known is None or len(known) != made.ndim:
            return None
        if any(isinstance(dim, int) and dim != size for dim, size in zip(known, made.shape, strict=True)):
            return None
    return dict(zip(node.outputs, moved, strict=True))


def _numbers(node: ir.Node, index: int) -> tuple[int, ...]:
    found = integers(node.inputs[index]) if index < len(node.inputs) else None
    if found is None:
        raise ValueError("not constant")
    return found


def _reshape(node: ir.Node, array: Array) -> list[Array]:
    target = list(_numbers(node, 1))
    if not integer(node, "allowzero", 0):
        target = [array.shape[index] if size == 0 else size for index, size in enumerate(target)]
    return [array.reshape(target)]


def _transpose(node: ir.Node, array: Array) -> list[Array]:
    return [array.transpose(node.attributes["perm"].as_ints() if "perm" in node.attributes else None)]


def _squeeze(node: ir.Node, array: Array) -> list[Array]:
    return [array.squeeze(_numbers(node, 1))]


def _slice(node: ir.Node, array: Array) -> list[Array]:
    starts, ends, axes = (_numbers(node, index) for index in (1, 2, 3))
    steps = _numbers(node, 4) if len(node.inputs) > 4 else (1,) * len(axes)
    if min(steps) < 1:
        raise ValueError("runs backwards")
    parts = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        _closed(node, axis)
        parts[axis] = slice(start, end, step)
    return [array[tuple(parts)]]


def _split(node: ir.Node, array: Array) -> list[Array]:
    axis = integer(node, "axis", 0)
    _closed(node, axis)
    widths = [output.shape[axis] for output in node.outputs if output.shape is not None]
    ends = np.cumsum([width for width in widths if isinstance(width, int)])
    return list(np.split(array, ends[:-1], axis))


def _closed(node: ir.Node, axis: int) -> None:
    """Refuse to cut an open dimension: the size that stands for it is none of its own."""
    known = sizes(node.inputs[0]) if node.inputs[0] is not None else None
    if known is None or not isinstance(known[axis], int):
        raise ValueError("open dimension")


_MOVED = {"Reshape": _reshape, "Transpose": _transpose, "Squeeze": _squeeze, "Slice": _slice, "Split": _split}
