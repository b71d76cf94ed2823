"""A mean over height and width as GlobalAveragePool.

The same sums under the name that runtimes know: ONNX Runtime computes it in the blocked layout of the convolutions around it,
where a ReduceMean has the map brought back first, and it quantizes the one and not the other.
"""

from __future__ import annotations

from deploykit.export.rewrites.editing import Editor, Rewrite, integer, integers, sizes


def _run(editor: Editor) -> None:
    for node in editor.nodes("ReduceMean"):
        data, output = node.inputs[0], node.outputs[0]
        axes = integers(node.inputs[1]) if len(node.inputs) == 2 else None
        shape = None if data is None else sizes(data)
        if data is None or axes is None or shape is None or len(shape) != 4 or not integer(node, "keepdims", 1):
            continue
        if sorted(axis % 4 for axis in axes) == [2, 3]:
            pooled = (*shape[:2], 1, 1)
            editor.take_over(output, editor.node(node, "GlobalAveragePool", [data], output, pooled))
            editor.places += 1


REWRITE = Rewrite("global-pools", "means over a map as GlobalAveragePool", _run)
