"""Only what is asked for: where a network gives out one token of the last block, that block computes one.

    ... Add ─ LayerNorm ─ Gemm ─ Gelu ─ Gemm ─ Add ─ LayerNorm ─ Gather(axis 1, index 0)
    ... Gather([0]) ─ Add ─ LayerNorm ─ Gemm ─ Gelu ─ Gemm ─ Add ─ LayerNorm ─ Gather(axis 1, index 0)

Layers, norms and activations treat each token by itself, and attention each query. Keys and values need all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from deploykit.export.rewrites.editing import Editor, Rewrite, Sizes, constant, integer, integers, permutation, sizes
from deploykit.export.rewrites.linears import linear_of

if TYPE_CHECKING:
    import onnx_ir as ir

#: Where the tokens are in a matrix of all rows, [N * tokens, C]: in the first axis, together with the batch.
MERGED: Final = -1
UNARY = ("Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Erf", "Identity")
BINARY = ("Add", "Sub", "Mul", "Div")

#: Tensors to the axis of their tokens.
Axes = dict["ir.Value", int]
T = TypeVar("T")


@dataclass(frozen=True)
class _Region:
    """What is computed token by token and used for the selection alone.

    Attributes:
        nodes: Each with its inputs of which only the selected token is needed.
        axes: Of these inputs and of the nodes' outputs.
    """

    nodes: dict[ir.Node, Axes]
    axes: Axes

    @property
    def sources(self) -> list[ir.Value]:
        """The tensors that come from outside."""
        needed = (value for inputs in self.nodes.values() for value in inputs)
        return [value for value in dict.fromkeys(needed) if value.producer() not in self.nodes]


def _run(editor: Editor) -> None:
    for node in editor.nodes("Gather"):
        data, index = node.inputs[0], integers(node.inputs[1])
        shape = None if data is None else sizes(data)
        if data is None or shape is None or index is None or sizes(node.inputs[1]) != ():
            continue
        axis = integer(node, "axis", 0) % len(shape)
        tokens = shape[axis]
        if isinstance(tokens, int) and tokens > 1 and 0 < axis < len(shape) - 1:
            region = _region(editor, node, data, axis)
            if any(linear_of(inside) is not None for inside in region.nodes):
                _select(editor, node, region, index[0])


def _region(editor: Editor, gather: ir.Node, data: ir.Value, axis: int) -> _Region:
    """Walk up from the selection as far as each tensor is used for nothing else."""
    region = _Region({}, {data: axis})
    for node in reversed(list(editor.graph)):
        output = node.outputs[0]
        if output in region.axes and len(node.outputs) == 1 and _is_used_inside(output, gather, region):
            needed = _needed(node, region.axes[output])
            if needed is not None and all(region.axes.get(value, place) == place for value, place in needed.items()):
                region.nodes[node] = needed
                region.axes.update(needed)
    while outside := [node for node in region.nodes if not _is_closed(node, gather, region)]:
        for node in outside:
            del region.nodes[node]
    return region


def _is_used_inside(output: ir.Value, gather: ir.Node, region: _Region) -> bool:
    """Tell whether a tensor is used for its selected token only: the keys of attention are in the region's hands too."""
    users = output.consumers()
    return not output.is_graph_output() and all(
        user is gather or output in region.nodes.get(user, ()) for user in users
    )


def _is_closed(node: ir.Node, gather: ir.Node, region: _Region) -> bool:
    """Tell whether a node serves the region alone, and can be given one token: not out of a matrix of all rows."""
    merged = [value for value, place in region.nodes[node].items() if place == MERGED]
    fed = all(value.producer() in region.nodes for value in merged)
    return fed and _is_used_inside(node.outputs[0], gather, region)


def _select(editor: Editor, gather: ir.Node, region: _Region, index: int) -> None:
    """Select at the region's sources, and let it compute one token."""
    order = [node for node in editor.graph if node in region.nodes]
    for source in region.sources:
        axis, shape = region.axes[source], sizes(source) or ()
        users = [node for node in order if source in region.nodes[node]]
        one = editor.weight(np.array([index], np.int64), gather.inputs[1])
        selected = editor.node(users[0], "Gather", [source, one], source, _with_one(shape, axis), {"axis": axis})
        for user in users:
            for position, given in enumerate(user.inputs):
                if given is source:
                    user.replace_input_with(position, selected)
    for node in order:
        _shrink(editor, node, region)
    gather.replace_input_with(1, editor.weight(np.array(0, np.int64), gather.inputs[1]))
    editor.places += 1


def _shrink(editor: Editor, node: ir.Node, region: _Region) -> None:
    """Tell a node, whose inputs hold one token now, and its output's shape so."""
    import onnx_ir as ir

    output, place = node.outputs[0], region.axes[node.outputs[0]]
    shape = sizes(output) or ()
    if place == MERGED:
        given = next(value for value in node.inputs if value in region.nodes[node])
        smaller: Sizes = ((sizes(given) or ())[0], *shape[1:])
    else:
        smaller = _with_one(shape, place)
    if node.op_type == "Reshape":
        target = integers(node.inputs[1]) or ()
        target = (-1, *target[1:]) if place == MERGED else _with_one(target, place)
        node.replace_input_with(1, editor.weight(np.array(target, np.int64), node.inputs[1]))
    editor.changed(output)
    output.shape = ir.Shape(smaller)


def _with_one(shape: tuple[T, ...], axis: int) -> tuple[T | int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _needed(node: ir.Node, place: int) -> Axes | None:
    """Return the inputs that the selected token of a node's output depends on by their own selected token.

    Args:
        node: Any.
        place: The axis of the tokens in its output, or MERGED.

    Returns:
        These inputs and the axis of the tokens in them; None where the token depends on others, or that can't be told.
    """
    shape = sizes(node.outputs[0])
    data = node.inputs[0] if node.inputs else None
    rule = _RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
    if shape is None or data is None or rule is None or sizes(data) is None:
        return None
    return rule(node, data, shape, place)


def _of_unary(_node: ir.Node, data: ir.Value, _shape: Sizes, place: int) -> Axes | None:
    return {data: place}


def _of_binary(node: ir.Node, _data: ir.Value, shape: Sizes, place: int) -> Axes | None:
    axis = max(place, 0)
    needed: Axes = {}
    for given in node.inputs:
        known = sizes(given)
        if given is None or known is None or shape[axis] is None:
            return None
        extent = known[axis - len(shape)] if len(known) >= len(shape) - axis else 1
        if extent == shape[axis] and constant(given) is None:
            needed[given] = place
        elif extent != 1:
            return None
    return needed


def _of_softmax(node: ir.Node, data: ir.Value, shape: Sizes, place: int) -> Axes | None:
    return {data: place} if place != MERGED and integer(node, "axis", -1) % len(shape) != place else None


def _of_norm(node: ir.Node, data: ir.Value, shape: Sizes, place: int) -> Axes | None:
    return {data: place} if max(place, 0) < integer(node, "axis", -1) % len(shape) else None


def _of_gemm(node: ir.Node, data: ir.Value, _shape: Sizes, place: int) -> Axes | None:
    return {data: MERGED} if place == MERGED and linear_of(node) is not None else None


def _of_matmul(node: ir.Node, data: ir.Value, shape: Sizes, place: int) -> Axes | None:
    is_row = place == len(shape) - 2 and len(sizes(data) or ()) == len(shape)
    return {data: place} if is_row and node.inputs[1] is not data else None


def _of_transpose(node: ir.Node, data: ir.Value, _shape: Sizes, place: int) -> Axes | None:
    order = permutation(node)
    return {data: order[place]} if place != MERGED and order else None


def _of_reshape(node: ir.Node, data: ir.Value, shape: Sizes, place: int) -> Axes | None:
    given, target = sizes(data) or (), integers(node.inputs[1])
    if target is None or 0 in target:
        return None
    if place == MERGED:
        return {data: 1} if len(given) > 2 and len(shape) == 2 and _is_merged(given, shape) else None
    if place == 1 and len(given) == 2 and len(shape) > 2:
        return {data: MERGED} if _is_merged(shape, given) else None
    after = _count(shape[place + 1 :])
    axes = [axis for axis, size in enumerate(given) if size == shape[place] and _count(given[axis + 1 :]) == after]
    return {data: axes[0]} if axes and after is not None and isinstance(shape[place], int) else None


def _is_merged(apart: Sizes, rows: Sizes) -> bool:
    """Tell whether [N, tokens, ...] and [N * tokens, C] are the same values: both have C per token."""
    return rows[1] is not None and _count(apart[2:]) == rows[1]


def _count(shape: Sizes) -> int | None:
    """Return how many values there are; None where a dimension is open."""
    known = [dim for dim in shape if isinstance(dim, int)]
    return math.prod(known) if len(known) == len(shape) else None


_RULES: Mapping[str, Callable[[ir.Node, ir.Value, Sizes, int], Axes | None]] = {
    **dict.fromkeys(UNARY, _of_unary),
    **dict.fromkeys(BINARY, _of_binary),
    "Softmax": _of_softmax,
    "LayerNormalization": _of_norm,
    "Gemm": _of_gemm,
    "MatMul": _of_matmul,
    "Transpose": _of_transpose,
    "Reshape": _of_reshape,
}

REWRITE = Rewrite("early-selections", "one token computed where one is given out", _run)
