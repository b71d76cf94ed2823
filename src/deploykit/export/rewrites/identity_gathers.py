"""Values that are gathered one by one in the order that they have already.

PyTorch decomposes an average over a channels-last map into a mean and `as_strided`, which the exporter writes as

    [N, C, 1, 1] ─ Reshape [-1] ─ Gather(n * C + c for n in range(N) for c in range(C)) ─ [N, C, 1, 1]

The indices are a constant where the batch is static. Else they are computed:

    Range(0, N, 1) ─ Mul(C) ─ Unsqueeze ─ Add(0 ... C - 1)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.export.rewrites.editing import Editor, Rewrite, Sizes, constant, integer, integers, made_by, sizes

if TYPE_CHECKING:
    import onnx_ir as ir


def _run(editor: Editor) -> None:
    for node in editor.nodes("Gather"):
        flatten = made_by(node.inputs[0], "Reshape")
        source = None if flatten is None else flatten.inputs[0]
        if flatten is None or source is None or integer(node, "axis", 0) != 0 or integers(flatten.inputs[1]) != (-1,):
            continue
        shape = sizes(source)
        if shape is None or None in shape or shape != sizes(node.outputs[0]) or node.outputs[0].is_graph_output():
            continue
        if _counts(node.inputs[1], shape):
            editor.bypass(node.outputs[0], source)
            editor.places += 1


def _counts(indices: ir.Value | None, shape: Sizes) -> bool:
    """Tell whether indices of `shape` count all its places, one after the other."""
    array = constant(indices)
    if array is not None:
        return array.shape == shape and np.array_equal(array.reshape(-1), np.arange(array.size))
    rest = [dim for dim in shape[1:] if isinstance(dim, int)]
    if len(rest) != len(shape) - 1:
        return False
    width = math.prod(rest)
    total = made_by(indices, "Add")
    if total is None:
        return False
    for rows, places in (total.inputs, total.inputs[::-1]):
        array = constant(places)
        if array is not None and array.shape == (1, *rest) and np.array_equal(array.reshape(-1), np.arange(width)):
            return _starts(rows, width, shape)
    return False


def _starts(rows: ir.Value | None, width: int, shape: Sizes) -> bool:
    """Tell whether `rows` is [N, 1, ...] and holds 0, width, 2 * width, ... for the N of `shape`."""
    unsqueeze = made_by(rows, "Unsqueeze")
    if unsqueeze is None or integers(unsqueeze.inputs[1]) != tuple(range(1, len(shape))):
        return False
    product = made_by(unsqueeze.inputs[0], "Mul")
    if product is None:
        return False
    for count, step in (product.inputs, product.inputs[::-1]):
        counter = made_by(count, "Range")
        if counter is not None and integers(step) == (width,):
            return (integers(counter.inputs[0]), integers(counter.inputs[2])) == ((0,), (1,)) and _is_size(
                counter.inputs[1], shape[0]
            )
    return False


def _is_size(value: ir.Value | None, dim: int | str | None) -> bool:
    """Tell whether a scalar is the size of the open dimension `dim`: Squeeze(Shape(x)[i:i+1])."""
    squeeze = made_by(value, "Squeeze")
    shape = None if squeeze is None else made_by(squeeze.inputs[0], "Shape")
    known = None if shape is None or shape.inputs[0] is None else sizes(shape.inputs[0])
    if shape is None or known is None or "end" not in shape.attributes:
        return False
    start, end = integer(shape, "start", 0), integer(shape, "end", 0)
    return end == start + 1 and 0 <= start < len(known) and known[start] == dim and isinstance(dim, str)


REWRITE = Rewrite("identity-gathers", "values gathered in the order that they have already left alone", _run)
