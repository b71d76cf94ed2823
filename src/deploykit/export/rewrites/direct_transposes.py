"""The last two axes of a tensor swapped by one Transpose, not by way of a flat shape.

PyTorch's exporter transposes the keys of attention as

    [N, heads, tokens, width] ─ Reshape [-1, tokens, width] ─ Transpose(0, 2, 1) ─ Reshape [-1, heads, width, tokens]

A runtime can hand one Transpose(0, 1, 3, 2) to the matrix product after it, which reads its operand either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.export.rewrites.editing import Editor, Rewrite, Sizes, integers, made_by, only_user, permutation, sizes

if TYPE_CHECKING:
    import onnx_ir as ir


def _run(editor: Editor) -> None:
    for node in editor.nodes("Transpose"):
        flat, swapped = node.inputs[0], node.outputs[0]
        before = made_by(flat, "Reshape")
        after = only_user(swapped)
        if flat is None or before is None or before.inputs[0] is None or only_user(flat) is not node:
            continue
        if after is None or made_by(after.outputs[0], "Reshape") is None or after.inputs[0] is not swapped:
            continue
        if permutation(node) == (0, 2, 1):
            _shorten(editor, before.inputs[0], flat, after)


def _shorten(editor: Editor, source: ir.Value, flat: ir.Value, after: ir.Node) -> None:
    """Put a Transpose of `source` in the place of `after`, where that comes to the same."""
    given, target = sizes(source), integers(after.inputs[1])
    if given is None or target is None or None in given or (sizes(flat) or ())[1:] != given[-2:]:
        return
    rank = len(target)
    extra = len(given) - rank
    if rank < 3 or extra < 0 or given[:extra] != (1,) * extra:
        return
    shape = (*given[extra:-2], given[-1], given[-2])
    if not _comes_to(target, shape):
        return
    if extra:
        axes = editor.weight(np.arange(extra, dtype=np.int64), after.inputs[1])
        source = editor.node(after, "Squeeze", [source, axes], flat, given[extra:])
    swap = (*range(rank - 2), rank - 1, rank - 2)
    old = after.outputs[0]
    editor.take_over(old, editor.node(after, "Transpose", [source], old, shape, {"perm": swap}))
    editor.places += 1


def _comes_to(target: tuple[int, ...], shape: Sizes) -> bool:
    """Tell whether a Reshape to `target` gives `shape`, of as many values: at most one size is open, the rest are the same."""
    return target.count(-1) <= 1 and all(size in {-1, dim} for size, dim in zip(target, shape, strict=True))


REWRITE = Rewrite("direct-transposes", "keys of attention transposed in one step", _run)
