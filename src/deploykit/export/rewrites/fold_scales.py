"""y = gamma * (x W + b) as x (gamma W) + gamma b.

LayerScale multiplies the end of every residual branch by a vector; attention multiplies queries and keys by one number, after
they were cut out of one layer's output. Either way each channel of a layer meets one factor, on whatever way through reshapes,
transposes and slices:

    MatMul ─ Add ─────────────── Mul(gamma [C])
    Gemm ─ Reshape ─ Transpose ─ Mul(gamma [1, C, 1, 1])
    Gemm ─ Reshape ─ Transpose ─┬─ Slice ─ Mul(scale []) ─┬─ MatMul
                                ├─ Slice ─ Mul(scale []) ─┘
                                └─ Slice ─ ...
    Conv ─────────────────────── Mul(gamma [C, 1, 1])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.export.rewrites import layout
from deploykit.export.rewrites.editing import Editor, Rewrite, covers, data_and_constant, floats, sizes
from deploykit.export.rewrites.linears import Linear, fold, linear_at

if TYPE_CHECKING:
    import onnx_ir as ir


def _run(editor: Editor) -> None:
    for node in editor.nodes("Mul"):
        pair = data_and_constant(node)
        linear = None if pair is None else linear_at(layout.origin(pair[0]))
        if pair is not None and linear is not None and sizes(pair[0]) == sizes(node.outputs[0]):
            _fold(editor, linear, node, *pair)


def _fold(editor: Editor, linear: Linear, node: ir.Node, data: ir.Value, scale: ir.Value) -> None:
    """Fold `node`, which multiplies `data`, moved from the layer's output, by the constant `scale`."""
    spread, values = layout.follow_channels(linear), floats(scale)
    if spread is None or values is None or data not in spread.arrays or not covers(sizes(data) or (), values.shape):
        return
    met = spread.arrays[data]
    factor, touched = np.ones(linear.channels), np.zeros(linear.channels, np.bool_)
    factor[met], touched[met] = values, True
    one_each = np.array_equal(factor[met], np.broadcast_to(values, met.shape))
    alone = not any(touched[spread.arrays[leaf.value]].any() for leaf in spread.leaves if leaf.node is not node)
    if not (one_each and alone and fold(editor, linear, factor)):
        return
    for value in (linear.node.outputs[0], *(value for value, array in spread.arrays.items() if touched[array].any())):
        editor.changed(value)
    editor.take_over(node.outputs[0], data)
    editor.places += 1


REWRITE = Rewrite("fold-scales", "constant factors after a layer moved into its weights", _run)
