"""Graphs that no network would be: whatever a rewrite makes of them computes the same, under the same names."""

from __future__ import annotations

import math

import numpy as np
import onnx
from hypothesis import given, note
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, graph, ints, node, operators, random, rewrite

from deploykit.export.rewrite import REWRITES

#: Through a dozen layers of random weights.
TOLERANCE = 2e-5
BATCH = "batch"
Shape = tuple[int | str, ...]


class Draft:
    """A graph in the making: every tensor with its shape; the first axis is the batch."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.batch: int | str = BATCH if draw(st.booleans()) else 2
        self.shapes: dict[str, Shape] = {"x": (self.batch, 4, 3, 6)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def pick(self) -> tuple[str, Shape]:
        """Choose a tensor, most often the last one."""
        back = self.draw(st.sampled_from([1, 1, 1, 1, 2, 3, 4]))
        return list(self.shapes.items())[-min(back, len(self.shapes))]

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(operator, ",".join(inputs), name, **attributes))
        self.shapes[name] = shape
        return name

    def constant(self, shape: Shape) -> str:
        """Make a constant that can be broadcast into `shape`."""
        sizes = [dim if isinstance(dim, int) and self.draw(st.booleans()) else 1 for dim in shape[1:]]
        return self.weight(random(len(self.weights), *sizes[self.draw(st.integers(0, len(sizes))) :]))

    def model(self) -> onnx.ModelProto:
        used = {name for made in self.nodes for name in made.input}
        leaves = [made.output[0] for made in self.nodes if made.output[0] not in used]
        known = {name: shape for name, shape in self.shapes.items() if name != "x" and name not in leaves}
        return graph(self.nodes, {"x": self.shapes["x"]}, leaves, self.weights, known=known)


def layer(draft: Draft, name: str, shape: Shape) -> None:
    width = draft.draw(st.sampled_from([4, 6]))
    matrix = draft.weight(random(len(draft.weights), int(shape[-1]), width) / 2)
    made = draft.add("MatMul", [name, matrix], (*shape[:-1], width))
    if draft.draw(st.booleans()):
        draft.add("Add", [made, draft.weight(random(len(draft.weights), width))], (*shape[:-1], width))


def convolution(draft: Draft, name: str, shape: Shape) -> None:
    if len(shape) == 4:
        kernel = draft.weight(random(len(draft.weights), 6, int(shape[1]), 1, 1) / 2)
        draft.add("Conv", [name, kernel, draft.weight(random(len(draft.weights), 6))], (shape[0], 6, *shape[2:]))


def scale(draft: Draft, name: str, shape: Shape) -> None:
    draft.add("Mul", [name, draft.constant(shape)], shape)


def shift(draft: Draft, name: str, shape: Shape) -> None:
    draft.add("Add", [draft.constant(shape), name], shape)


def activation(draft: Draft, name: str, shape: Shape) -> None:
    draft.add(draft.draw(st.sampled_from(["Gelu", "Relu", "Tanh"])), [name], shape)


def softmax(draft: Draft, name: str, shape: Shape) -> None:
    draft.add("Softmax", [name], shape, axis=draft.draw(st.integers(1, len(shape) - 1)) - len(shape))


def transpose(draft: Draft, name: str, shape: Shape) -> None:
    order = (0, *draft.draw(st.permutations(range(1, len(shape)))))
    draft.add("Transpose", [name], tuple(shape[axis] for axis in order), perm=order)


def to_first(draft: Draft, name: str, shape: Shape) -> None:
    if len(shape) == 4:
        draft.add("Transpose", [name], (shape[0], shape[3], *shape[1:3]), perm=(0, 3, 1, 2))


def reshape(draft: Draft, name: str, shape: Shape) -> None:
    rest = [int(dim) for dim in shape[1:]]
    count = math.prod(rest)
    forms = [(count,), *((d, count // d) for d in (2, 3, 4) if count % d == 0)]
    forms += [(a, b, count // (a * b)) for a, b in ((4, 3), (2, 3), (3, 4)) if count % (a * b) == 0]
    form = draft.draw(st.sampled_from(forms))
    target = draft.weight(ints(-1, *form))
    draft.add("Reshape", [name, target], (shape[0], *form))


def cut(draft: Draft, name: str, shape: Shape) -> None:
    axis = draft.draw(st.integers(1, len(shape) - 1))
    size = int(shape[axis])
    if size > 1:
        start = draft.draw(st.integers(0, size - 1))
        given = [draft.weight(ints(number)) for number in (start, size, axis)]
        draft.add("Slice", [name, *given], (*shape[:axis], size - start, *shape[axis + 1 :]))


def select(draft: Draft, name: str, shape: Shape) -> None:
    axis = draft.draw(st.integers(1, len(shape) - 1))
    if len(shape) > 2:
        index = draft.weight(np.array(draft.draw(st.integers(0, int(shape[axis]) - 1))))
        draft.add("Gather", [name, index], (*shape[:axis], *shape[axis + 1 :]), axis=axis)


def mean(draft: Draft, name: str, shape: Shape) -> None:
    if len(shape) == 4:
        axes = draft.draw(st.sampled_from([(2, 3), (1, 2), (3,)]))
        pooled = tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))
        draft.add("ReduceMean", [name, draft.weight(ints(*axes))], pooled)


def total(draft: Draft, name: str, shape: Shape) -> None:
    """Add, or multiply by, another tensor of the same shape or of one number per channel or token."""
    others = [
        other
        for other, theirs in draft.shapes.items()
        if len(theirs) == len(shape) and all(dim in {1, size} for dim, size in zip(theirs, shape, strict=True))
    ]
    other = draft.draw(st.sampled_from(others))
    draft.add(draft.draw(st.sampled_from(["Add", "Mul"])), [name, other], shape)


STEPS = (
    *(layer, layer, layer, convolution, scale, scale, shift, shift, activation, softmax),
    *(transpose, to_first, reshape, cut, select, select, mean, total),
)


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    draft = Draft(draw)
    activation(draft, *next(iter(draft.shapes.items())))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12)):
        step(draft, *draft.pick())
    return draft.model()


@given(graphs(), st.permutations(sorted(REWRITES)))
def test_every_rewrite_in_any_order_computes_the_same(model: onnx.ModelProto, names: list[str]) -> None:
    note(str(operators(model)))
    for name in names:
        model, _ = rewrite(model, name, TOLERANCE)
