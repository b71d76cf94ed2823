"""Layers that multiply by constant weights: MatMul with or without an Add, Gemm, Conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.export.rewrites.editing import (
    Editor,
    constant_sizes,
    data_and_constant,
    floats,
    integer,
    only_user,
    sizes,
)

if TYPE_CHECKING:
    import onnx_ir as ir

#: float32 rounds a value by at most this share of it.
ROUNDING = 2.0**-23


@dataclass(frozen=True)
class Linear:
    """One layer.

    Attributes:
        node: Multiplies; its input 0 is the data, its input 1 the weights.
        in_axis: Of the weights; Conv's is 1 and counts the channels of one group.
        out_axis: Of the weights.
        output: With the bias added.
        axis: Of the channels in the output.
        bias: The node that adds the bias and the index of its input, or None.
    """

    node: ir.Node
    in_axis: int
    out_axis: int
    output: ir.Value
    axis: int
    bias: tuple[ir.Node, int] | None

    @property
    def channels(self) -> int:
        """Of the output."""
        return self.weight_shape[self.out_axis]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the weights."""
        return constant_sizes(self.node.inputs[1])

    @property
    def weight(self) -> NDArray[np.float64]:
        """The weights, exact."""
        return _known(self.node, 1)

    @property
    def bias_values(self) -> NDArray[np.float64]:
        """The bias, exact, flat: [channels]."""
        assert self.bias is not None, "asked for only where there is one"  # noqa: S101
        return _known(*self.bias).reshape(-1)


def linear_of(node: ir.Node | None) -> Linear | None:
    """Return the layer whose multiplying node this is; None where it is no such node or isn't understood whole."""
    if node is None or node.domain not in {"", "ai.onnx"} or node.op_type not in _KINDS:
        return None
    weight = floats(node.inputs[1])
    return None if weight is None else _KINDS[node.op_type](node, weight.ndim)


def linear_at(value: ir.Value) -> Linear | None:
    """Return the layer whose output this is, bias and all."""
    node = value.producer()
    if node is not None and node.op_type == "Add":
        pair = data_and_constant(node)
        node = None if pair is None else pair[0].producer()
    found = linear_of(node)
    return found if found is not None and found.output is value else None


def fold(
    editor: Editor,
    linear: Linear,
    factor: NDArray[np.float64] | None = None,
    shift: NDArray[np.float64] | None = None,
) -> bool:
    """Let a layer answer with `factor * y + shift` for y, its answer so far.

    Computed in float64 and rounded once.

    Args:
        editor: Of the layer's graph.
        linear: To change.
        factor: [channels]; None for 1.
        shift: [channels]; None for 0.

    Returns:
        Whether it was done. It is not where float32 can't hold the new weights, or where there is no bias to shift.
    """
    changes = {}
    if factor is not None:
        aligned = [1] * linear.weight.ndim
        aligned[linear.out_axis] = -1
        changes[linear.node, 1] = linear.weight * factor.reshape(aligned)
    if linear.bias is not None:
        scaled = linear.bias_values * (1.0 if factor is None else factor)
        changes[linear.bias] = scaled + (0.0 if shift is None else shift)
    elif shift is not None:
        return False
    if not all(_fits(exact) for exact in changes.values()):
        return False
    for (node, index), exact in changes.items():
        replace(editor, node, index, exact)
    return True


def replace(editor: Editor, node: ir.Node, index: int, exact: NDArray[np.float64]) -> None:
    """Give a node's constant input other values, rounded to float32; whoever else uses the old ones keeps them."""
    node.replace_input_with(index, editor.weight(exact.astype(np.float32), node.inputs[index]))


def _fits(exact: NDArray[np.float64]) -> bool:
    """Tell whether float32 can hold the values: none becomes infinite, and none that matters vanishes."""
    peak = float(np.abs(exact).max(initial=0.0))
    with np.errstate(over="ignore"):
        error = float(np.abs(exact.astype(np.float32) - exact).max(initial=0.0))
    return bool(error <= ROUNDING * peak)


def _known(node: ir.Node, index: int) -> NDArray[np.float64]:
    array = floats(node.inputs[index])
    assert array is not None, "looked at when the layer was found"  # noqa: S101
    return array


def _matmul(node: ir.Node, rank: int) -> Linear | None:
    output = node.outputs[0]
    shape = sizes(output)
    if rank != 2 or shape is None:
        return None
    axis, bias = len(shape) - 1, None
    add = only_user(output)
    if add is not None and add.op_type == "Add":
        pair = data_and_constant(add)
        if pair is not None and pair[0] is output and _is_vector(pair[1], shape[-1]) and sizes(add.outputs[0]) == shape:
            bias = (add, tuple(add.inputs).index(pair[1]))
            output = add.outputs[0]
    return Linear(node, 0, 1, output, axis, bias)


def _gemm(node: ir.Node, rank: int) -> Linear | None:
    plain = all(name not in node.attributes or node.attributes[name].as_float() == 1.0 for name in ("alpha", "beta"))
    if rank != 2 or not plain or integer(node, "transA", 0):
        return None
    swapped = integer(node, "transB", 0)
    weight = constant_sizes(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if has_bias and not _is_vector(node.inputs[2], weight[0 if swapped else 1]):
        return None
    return Linear(node, int(bool(swapped)), int(not swapped), node.outputs[0], 1, (node, 2) if has_bias else None)


def _conv(node: ir.Node, _rank: int) -> Linear | None:
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if has_bias and floats(node.inputs[2]) is None:
        return None
    return Linear(node, 1, 0, node.outputs[0], 1, (node, 2) if has_bias else None)


def _is_vector(value: ir.Value | None, channels: int | str | None) -> bool:
    """Tell whether a constant holds one float32 per channel, the channels last."""
    shape = constant_sizes(value)
    return floats(value) is not None and shape == (*(1,) * (len(shape) - 1), channels)


_KINDS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
