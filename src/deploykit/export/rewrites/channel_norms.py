"""LayerNorms of channels-first maps over axis 1, where they are, instead of between two transposes.

    Transpose(0, 2, 3, 1) ─ LayerNorm ─ Transpose(0, 3, 1, 2)
    x ─ mean, deviation over axis 1 ─ (x - mean) / deviation * gamma + beta

A runtime that keeps maps of convolutions channels last in memory moves nothing for the second form, and everything for the
first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.export.rewrites.editing import (
    Editor,
    Rewrite,
    constant_sizes,
    floats,
    integer,
    made_by,
    only_user,
    permutation,
    sizes,
)
from deploykit.export.rewrites.pointwise_convs import MOVED_TO, TO_FIRST

if TYPE_CHECKING:
    import onnx_ir as ir

#: What ONNX's schema says where the attribute is left out.
EPSILON: Final = 1e-5
#: ReduceMean takes its axes as an input since this opset.
AXES_AS_INPUT: Final = 18


def _run(editor: Editor) -> None:
    if editor.graph.opset_imports.get("", 0) < AXES_AS_INPUT:
        return
    for node in editor.nodes("LayerNormalization"):
        before, after = made_by(node.inputs[0], "Transpose"), only_user(node.outputs[0])
        if before is None or after is None or after.op_type != "Transpose" or before.inputs[0] is None:
            continue
        if permutation(before) == MOVED_TO and permutation(after) == TO_FIRST and _is_over_channels(node):
            editor.take_over(after.outputs[0], _norm(editor, node, after, before.inputs[0]))
            editor.places += 1


def _is_over_channels(node: ir.Node) -> bool:
    """Tell whether a norm of a map runs over its last axis alone, with constant weights, and gives out no more."""
    shape = sizes(node.inputs[0]) or ()
    weights = [value for value in node.inputs[1:] if value is not None]
    plain = all(floats(value) is not None and constant_sizes(value) == shape[-1:] for value in weights)
    further = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return len(shape) == 4 and integer(node, "axis", -1) in {-1, 3} and plain and not further


def _norm(editor: Editor, node: ir.Node, after: ir.Node, x: ir.Value) -> ir.Value:
    """Insert the norm over axis 1 of `x`, and return its output."""
    like = node.outputs[0]
    full = sizes(x) or ()
    one = (full[0], 1, *full[2:])
    gamma, axes = node.inputs[1], editor.weight(np.array([1], np.int64), node.inputs[1])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else EPSILON

    def mean(of: ir.Value) -> ir.Value:
        return editor.node(after, "ReduceMean", [of, axes], like, one)

    centred = editor.node(after, "Sub", [x, mean(x)], like, full)
    variance = mean(editor.node(after, "Mul", [centred, centred], like, full))
    safe = editor.node(after, "Add", [variance, editor.weight(np.array(epsilon, np.float32), gamma)], like, one)
    inverse = editor.node(after, "Reciprocal", [editor.node(after, "Sqrt", [safe], like, one)], like, one)
    found = editor.node(after, "Mul", [centred, inverse], like, full)
    for operator, weight in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        array = floats(weight)
        if array is not None:
            aligned = editor.weight(array.astype(np.float32)[:, None, None], weight)
            found = editor.node(after, operator, [found, aligned], like, full)
    return found


REWRITE = Rewrite("channel-norms", "norms of channels-first maps without transposes", _run)
