"""(x + beta) W + b as x W + (beta W + b): a constant before a layer moved into its bias.

The constant may go through reshapes, transposes and slices on its way. A Conv takes part where it pads nothing: padding
comes after the sum and knows no beta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.export.rewrites import layout
from deploykit.export.rewrites.editing import Array, Editor, Rewrite, data_and_constant, floats, integer, sizes
from deploykit.export.rewrites.linears import Linear, fold, linear_of

if TYPE_CHECKING:
    import onnx_ir as ir


def _run(editor: Editor) -> None:
    for node in editor.nodes("Add", last_first=True):
        pair = data_and_constant(node)
        if pair is not None and sizes(pair[0]) == sizes(node.outputs[0]):
            _fold(editor, node, *pair)


def _fold(editor: Editor, node: ir.Node, data: ir.Value, beta: ir.Value) -> None:
    """Fold what `node` adds, where all that becomes of its sum goes into one layer."""
    total, values = node.outputs[0], floats(beta)
    array = None if values is None else layout.lay(total, values)
    spread = None if array is None else layout.follow(total, array)
    if spread is None or len(spread.leaves) != 1:
        return
    leaf = spread.leaves[0]
    linear = linear_of(leaf.node)
    added = (
        None if linear is None or linear.node.inputs[0] is not leaf.value else _added(linear, spread.arrays[leaf.value])
    )
    if linear is None or added is None or not fold(editor, linear, shift=added):
        return
    editor.bypass(total, data)
    for value in spread.arrays:
        if value is not total:
            editor.changed(value)
    if linear.output is not linear.node.outputs[0]:
        editor.changed(linear.node.outputs[0])
    editor.places += 1


def _added(linear: Linear, array: Array) -> NDArray[np.float64] | None:
    """Return beta W where beta lies on the layer's input: one number per channel, the same in every place."""
    node, weight = linear.node, linear.weight
    axis = 1 if node.op_type == "Conv" else array.ndim - 1
    rows = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])
    if not (rows == rows[0]).all() or weight.shape[linear.in_axis] != rows.shape[1] or _pads(node):
        return None
    everywhere = np.moveaxis(weight.sum(axis=tuple(range(2, weight.ndim))), linear.in_axis, 0)
    return np.asarray(rows[0] @ everywhere, np.float64)


def _pads(node: ir.Node) -> bool:
    """Tell whether a Conv might look beyond the edges; one that names no padding doesn't."""
    if node.op_type != "Conv":
        return False
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    return auto not in {"NOTSET", "VALID"} or any(pads) or integer(node, "group", 1) != 1


REWRITE = Rewrite("fold-shifts", "constants added before a layer moved into its bias", _run)
