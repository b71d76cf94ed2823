"""Layers on channels-last maps, followed by a transpose to channels first, as 1x1 convolutions that need no such transpose.

    LayerNorm ─ Gemm ─ Gelu ─ Gemm ─ Transpose(0, 3, 1, 2) ─ Add
    LayerNorm ─ Transpose(0, 3, 1, 2) ─ Conv ─ Gelu ─ Conv ─ Add

What lies between the layers comes along: activations, products with constants or vectors, means and norms over the map.
Runtimes keep convolutions in blocked layouts and let them add the residual.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.export.rewrites.editing import (
    Editor,
    Rewrite,
    Sizes,
    constant,
    integer,
    integers,
    made_by,
    permutation,
    sizes,
)
from deploykit.export.rewrites.linears import Linear, linear_at

if TYPE_CHECKING:
    import onnx_ir as ir

#: From channels last to channels first.
TO_FIRST = (0, 3, 1, 2)
#: Where each axis of a channels-last map goes.
MOVED_TO = (0, 2, 3, 1)
UNARY = ("Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid")
BINARY = ("Add", "Sub", "Mul", "Div")
REDUCTIONS = ("ReduceL2", "ReduceMean")


@dataclass(frozen=True)
class _Step:
    """How a channels-last tensor is made.

    Attributes:
        node: Takes the sources.
        sources: Channels-last tensors: [N, H, W, C], or [N * H * W, C].
        linear: The layer, where it is one.
    """

    node: ir.Node
    sources: tuple[ir.Value, ...]
    linear: Linear | None = None


def _run(editor: Editor) -> None:
    for node in editor.nodes("Transpose"):
        top = node.inputs[0]
        frame = sizes(top)
        if top is not None and frame is not None and None not in frame and permutation(node) == TO_FIRST:
            steps = _closed(_steps(top), node)
            if _pays(steps, frame[:3]):
                editor.take_over(node.outputs[0], _Emitter(editor, node, steps, frame[:3]).first(top))
                editor.places += 1


def _steps(top: ir.Value) -> dict[ir.Value, _Step]:
    """Return how `top` and what it is made of are made, as far as it could be done channels first."""
    steps: dict[ir.Value, _Step] = {}
    queue = [top]
    while queue:
        value = queue.pop()
        step = _step(value) if value not in steps else None
        if step is not None:
            steps[value] = step
            queue += step.sources
    return steps


def _step(value: ir.Value) -> _Step | None:
    shape = sizes(value)
    node = value.producer()
    if shape is None or node is None or node.inputs[0] is None:
        return None
    linear = linear_at(value)
    if linear is not None:
        source = linear.node.inputs[0]
        return _Step(linear.node, (source,), linear) if source is not None and linear.node.op_type != "Conv" else None
    if made_by(value, *UNARY) is not None or _is_flattening(node) or _reduced_axes(node) is not None:
        return _Step(node, (node.inputs[0],))
    if made_by(value, *BINARY) is not None and len(shape) == 4:
        sources = tuple(given for given in node.inputs if given is not None and constant(given) is None)
        return _Step(node, sources) if all(len(sizes(source) or ()) == 4 for source in sources) else None
    return None


def _is_flattening(node: ir.Node) -> bool:
    """Tell whether a Reshape goes from [N, H, W, C] to [N * H * W, C] or back."""
    if made_by(node.outputs[0], "Reshape") is None or node.inputs[0] is None:
        return False
    before, after = sizes(node.inputs[0]) or (), sizes(node.outputs[0]) or ()
    return {len(before), len(after)} == {2, 4} and isinstance(before[-1], int) and before[-1] == after[-1]


def _reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes that a reduction of a map runs over, from the front; None for any other node."""
    if made_by(node.outputs[0], *REDUCTIONS) is None or len(node.inputs) != 2 or not integer(node, "keepdims", 1):
        return None
    axes = integers(node.inputs[1])
    return None if not axes or len(sizes(node.outputs[0]) or ()) != 4 else tuple(axis % 4 for axis in axes)


def _closed(steps: dict[ir.Value, _Step], transpose: ir.Node) -> dict[ir.Value, _Step]:
    """Return the steps whose results nobody but other steps and the transpose uses: nothing is computed twice."""
    while True:
        nodes = {transpose, *(step.node for step in steps.values())}
        kept = {value: step for value, step in steps.items() if _is_inside(value, nodes)}
        if len(kept) == len(steps):
            return kept
        steps = kept


def _is_inside(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    return not value.is_graph_output() and all(user in nodes for user in value.consumers())


def _bases(steps: dict[ir.Value, _Step]) -> list[ir.Value]:
    """Return the tensors that the steps start from."""
    found = (source for step in steps.values() for source in step.sources if source not in steps)
    return list(dict.fromkeys(found))


def _pays(steps: dict[ir.Value, _Step], frame: Sizes) -> bool:
    """Tell whether there is a layer among the steps, and one map that they start from: one transpose for another.

    All tensors of four axes must be maps of the same `frame`, [N, H, W], or vectors: rows flattened from one map and cut into
    another lie elsewhere.
    """
    bases = [sizes(base) or () for base in _bases(steps)]
    between = [shape for shape in (sizes(value) or () for value in steps) if len(shape) != 2]
    if any(shape[:3] != frame and shape[1:3] != (1, 1) for shape in (*bases, *between)):
        return False
    return [shape[:3] for shape in bases].count(frame) == 1 and any(step.linear is not None for step in steps.values())


class _Emitter:
    """Makes the channels-first counterparts of channels-last tensors, each once."""

    def __init__(self, editor: Editor, before: ir.Node, steps: dict[ir.Value, _Step], frame: Sizes) -> None:
        self.editor = editor
        self.before = before
        self.steps = steps
        self.frame = frame
        self.made: dict[ir.Value, ir.Value] = {}

    def first(self, value: ir.Value, like: ir.Value | None = None) -> ir.Value:
        """Return the counterpart of `value`, called after `like` where it is made for a tensor that is only reshaped."""
        if value not in self.made:
            self.made[value] = self._emit(value, like or value)
        return self.made[value]

    def _emit(self, value: ir.Value, like: ir.Value) -> ir.Value:
        step = self.steps.get(value)
        if step is None:
            return self._node("Transpose", [value], like, {"perm": TO_FIRST})
        node = step.node
        if node.op_type == "Reshape":
            return self.first(step.sources[0], like)
        if step.linear is not None:
            return self._node("Conv", self._conv_inputs(step.linear, step.sources[0]), like, {"kernel_shape": (1, 1)})
        if node.op_type in REDUCTIONS:
            axes = np.array([MOVED_TO[axis] for axis in _reduced_axes(node) or ()], np.int64)
            inputs = [self.first(step.sources[0]), self.editor.weight(axes, node.inputs[1])]
        else:
            inputs = [self._operand(given) for given in node.inputs if given is not None]
        return self._node(node.op_type, inputs, like, node.attributes)

    def _conv_inputs(self, linear: Linear, source: ir.Value) -> list[ir.Value]:
        matrix = linear.weight if linear.out_axis == 0 else linear.weight.T
        kernel = matrix.astype(np.float32)[:, :, None, None]
        inputs = [self.first(source), self.editor.weight(kernel, linear.node.inputs[1])]
        if linear.bias is not None:
            node, index = linear.bias
            inputs.append(self.editor.weight(linear.bias_values.astype(np.float32), node.inputs[index]))
        return inputs

    def _operand(self, given: ir.Value) -> ir.Value:
        array = constant(given)
        if array is None:
            return self.first(given)
        if array.size == 1:
            return given
        aligned = array.reshape((1,) * (4 - array.ndim) + array.shape)
        return self.editor.weight(aligned.transpose(TO_FIRST), given)

    def _node(self, operator: str, inputs: list[ir.Value], like: ir.Value, attributes: Mapping[str, Any]) -> ir.Value:
        shape = sizes(like) or ()
        whole = shape if len(shape) == 4 else (*self.frame, shape[-1])
        return self.editor.node(self.before, operator, inputs, like, [whole[axis] for axis in TO_FIRST], attributes)


REWRITE = Rewrite("pointwise-convs", "layers on channels-last maps as 1x1 convolutions", _run)
