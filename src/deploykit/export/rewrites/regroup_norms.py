"""x + (beta + gamma * (x * n)) as x * (1 + gamma * n) + beta.

ConvNeXt v2's global response normalisation (Woo et al. 2023, arXiv:2301.00808): n is one number per image and channel, so that
two of four passes over the whole map become work on a vector. What is left of beta, a later rewrite can fold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.export.rewrites.editing import (
    Editor,
    Rewrite,
    constant_sizes,
    covers,
    data_and_constant,
    made_by,
    only_user,
    sizes,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def _run(editor: Editor) -> None:
    for node in editor.nodes("Add"):
        for x, branch in (node.inputs, node.inputs[::-1]):
            found = None if x is None or branch is None else _constants(x, branch)
            if x is not None and found is not None:
                _regroup(editor, node, x, *found)
                break


def _constants(x: ir.Value, branch: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return n, gamma and beta where `branch` is beta + gamma * (x * n) and all of it is there for one sum."""
    constants = []
    for operator in ("Add", "Mul"):
        node = made_by(branch, operator)
        pair = None if node is None or only_user(branch) is None else data_and_constant(node)
        if pair is None:
            return None
        branch, other = pair
        constants.append(other)
    product = made_by(branch, "Mul")
    if product is None or only_user(branch) is None or x not in product.inputs:
        return None
    norm = product.inputs[1 - product.inputs.index(x)]
    return None if norm is None else (norm, constants[1], constants[0])


def _regroup(editor: Editor, node: ir.Node, x: ir.Value, norm: ir.Value, gamma: ir.Value, beta: ir.Value) -> None:
    """Rewrite the sum that `node` makes, where that is less work."""
    full, vector = sizes(x), sizes(norm)
    if full is None or vector is None or sizes(node.outputs[0]) != full:
        return
    less = len(vector) == len(full) and vector != full and covers(full, vector)
    if not (less and covers(vector, constant_sizes(gamma)) and covers(full, constant_sizes(beta))):
        return
    one = editor.weight(np.ones((), np.float32), gamma)
    scaled = editor.node(node, "Mul", [norm, gamma], norm, vector)
    factor = editor.node(node, "Add", [scaled, one], norm, vector)
    product = editor.node(node, "Mul", [x, factor], node.outputs[0], full)
    editor.take_over(node.outputs[0], editor.node(node, "Add", [product, beta], node.outputs[0], full))
    editor.places += 1


REWRITE = Rewrite("regroup-norms", "global response normalisation in one pass over the map", _run)
