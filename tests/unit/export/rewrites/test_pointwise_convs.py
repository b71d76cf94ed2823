"""Layers on channels-last maps: which stay, and what becomes of the others and of what lies between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, Shape, graph, ints, node, operators, random, rewrite, weight

NAME = "pointwise-convs"
SHAPE = ("batch", 5, 7, 4)
WEIGHTS: dict[str, Array] = {
    "w": random(1, 4, 6),
    "b": random(2, 6),
    "v": random(3, 6, 3),
    "c": random(4, 3),
    "scale": random(5, 4),
    "shift": random(6, 4),
}
BLOCK = [
    node("LayerNormalization", "x,scale,shift", "norm"),
    node("MatMul", "norm,w", "p1"),
    node("Add", "p1,b", "fc1"),
    node("Gelu", "fc1", "act"),
    node("MatMul", "act,v", "p2"),
    node("Add", "p2,c", "fc2"),
    node("Transpose", "fc2", "y", perm=[0, 3, 1, 2]),
]


def block(
    outputs: Sequence[str] = ("y",),
    extra: Sequence[onnx.NodeProto] = (),
    shape: Shape = SHAPE,
    perm: Sequence[int] = (0, 3, 1, 2),
    **more: Array,
) -> onnx.ModelProto:
    nodes = [*BLOCK[:-1], node("Transpose", "fc2", "y", perm=list(perm)), *extra]
    return graph(nodes, {"x": shape}, outputs, {**WEIGHTS, **more})


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 2, 1), (0, 1, 2, 3)])
def test_another_transpose_stays(perm: tuple[int, ...]) -> None:
    assert rewrite(block(perm=perm), NAME)[1].places == 0


def test_a_transpose_that_does_not_say_how_stays() -> None:
    nodes = [*BLOCK[:-1], node("Transpose", "fc2", "y")]
    assert rewrite(graph(nodes, {"x": SHAPE}, ["y"], WEIGHTS), NAME)[1].places == 0


@pytest.mark.parametrize("outputs", [["y", "fc2"], ["y", "z"]])
def test_a_last_layer_that_is_used_channels_last_stays(outputs: list[str]) -> None:
    extra = [node("Relu", "fc2", "z")] if "z" in outputs else []
    assert rewrite(block(outputs, extra), NAME)[1].places == 0


@pytest.mark.parametrize("inside", ["act", "fc1", "p1"])
def test_what_is_used_channels_last_is_where_it_begins(inside: str) -> None:
    after, done = rewrite(block(["y", inside]), NAME)
    assert done.places == 1
    assert operators(after)["Conv"] == 1
    assert operators(after)["MatMul"] == 1


def test_no_layer_no_gain() -> None:
    nodes = [BLOCK[0], node("Gelu", "norm", "act"), node("Transpose", "act", "y", perm=[0, 3, 1, 2])]
    assert rewrite(graph(nodes, {"x": SHAPE}, ["y"], WEIGHTS), NAME)[1].places == 0


def test_two_maps_would_be_two_transposes_for_one() -> None:
    nodes = [*BLOCK[:-1], node("Add", "fc2,other", "sum"), node("Transpose", "sum", "y", perm=[0, 3, 1, 2])]
    model = graph(nodes, {"x": SHAPE, "other": ("batch", 5, 7, 3)}, ["y"], WEIGHTS)
    assert rewrite(model, NAME)[1].places == 0


def test_rows_that_come_from_elsewhere_are_no_map() -> None:
    nodes = [
        node("Gemm", "x,w,b", "rows"),
        node("Reshape", "rows,map", "fc1"),
        node("Transpose", "fc1", "y", perm=[0, 3, 1, 2]),
    ]
    model = graph(nodes, {"x": (70, 4)}, ["y"], {**WEIGHTS, "map": ints(2, 5, 7, 6)})
    assert rewrite(model, NAME)[1].places == 0


def test_a_map_that_was_cut_otherwise_is_not_the_same_map() -> None:
    """[2, 7, 5, C] flattened is [2 * 5 * 7, C] too, but its rows lie elsewhere."""
    nodes = [
        node("Reshape", "x,rows", "flat"),
        node("Gemm", "flat,w,b", "product"),
        node("Reshape", "product,map", "fc1"),
        node("Transpose", "fc1", "y", perm=[0, 3, 1, 2]),
    ]
    model = graph(nodes, {"x": (2, 7, 5, 4)}, ["y"], {**WEIGHTS, "rows": ints(-1, 4), "map": ints(2, 5, 7, 6)})
    assert rewrite(model, NAME)[1].places == 0


def test_a_map_that_is_cut_otherwise_for_a_while() -> None:
    """Between two maps of one shape lies one of another, where places are told apart."""
    nodes = [
        *BLOCK[:3],
        node("Reshape", "fc1,flat", "rows"),
        node("Reshape", "rows,other", "cut"),
        node("Mul", "cut,image", "weighed"),
        node("Reshape", "weighed,flat", "rows2"),
        node("Reshape", "rows2,map", "act"),
        *BLOCK[4:],
    ]
    weights = {**WEIGHTS, "image": random(7, 7, 5, 1), "flat": ints(-1, 6), "other": ints(2, 7, 5, 6)}
    model = graph(nodes, {"x": (2, 5, 7, 4)}, ["y"], {**weights, "map": ints(2, 5, 7, 6)})
    assert rewrite(model, NAME)[1].places == 0


@pytest.mark.parametrize("shape", [SHAPE, (2, 5, 7, 4), ("batch", 1, 1, 4)])
def test_two_layers_become_convolutions(shape: Shape) -> None:
    after, done = rewrite(block(shape=shape), NAME)
    assert done.places == 1
    assert operators(after) == {"LayerNormalization": 1, "Transpose": 1, "Conv": 2, "Gelu": 1}
    assert done.renames["y"] == "fc2"
    assert set(done.renames.values()) == {"norm", "fc1", "act", "fc2"}
    conv = next(given for given in after.graph.node if given.op_type == "Conv")
    assert np.array_equal(weight(after, conv.input[1])[:, :, 0, 0], WEIGHTS["w"].T)


@pytest.mark.parametrize("between", ["rows", "map"])
def test_layers_on_all_rows_of_the_map(between: str) -> None:
    """As simplifiers write a layer with a bias, with and without going back to the map in between."""
    back = [node("Reshape", "product,map", "fc1"), node("Gelu", "fc1", "act"), node("Reshape", "act,rows6", "flat6")]
    nodes = [
        BLOCK[0],
        node("Reshape", "norm,rows4", "flat4"),
        node("Gemm", "flat4,w,b", "product"),
        *(back if between == "map" else [node("Gelu", "product", "flat6")]),
        node("Gemm", "flat6,v,c", "rows", transB=1),
        node("Reshape", "rows,last", "fc2"),
        BLOCK[-1],
    ]
    weights: dict[str, Array] = {**WEIGHTS, "v": random(3, 3, 6), "rows4": ints(-1, 4), "rows6": ints(-1, 6)}
    weights |= {"map": ints(-1, 5, 7, 6), "last": ints(-1, 5, 7, 3)}
    known = {"fc1": (*SHAPE[:3], 6), "fc2": (*SHAPE[:3], 3)}
    after, done = rewrite(graph(nodes, {"x": SHAPE}, ["y"], weights, known=known), NAME)
    assert done.places == 1
    assert operators(after) == {"LayerNormalization": 1, "Transpose": 1, "Conv": 2, "Gelu": 1}
    assert done.renames["y"] == "fc2"


@given(
    st.permutations(["norm", "vector", "number", "image"]),
    st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    st.booleans(),
    st.sampled_from([SHAPE, (2, 5, 7, 4)]),
)
def test_what_lies_between_layers_comes_along(steps: list[str], operator: str, swap: bool, shape: Shape) -> None:
    nodes, last = list(BLOCK[:4]), "act"
    weights: dict[str, Array] = {
        **WEIGHTS,
        "vector": random(7, 6) ** 2 + 1,
        "number": np.array([[[[1.5]]]], np.float32),
    }
    weights |= {"image": random(8, 5, 7, 6) ** 2 + 1, "space": ints(1, 2)}
    for index, step in enumerate(steps):
        other = step
        if step == "norm":
            other = f"norm{index}"
            nodes.append(node("ReduceL2", f"{last},space", other))
        pair = f"{other},{last}" if swap and step != "norm" and operator != "Div" else f"{last},{other}"
        nodes.append(node("Mul" if step == "norm" else operator, pair, f"t{index}"))
        last = f"t{index}"
    nodes += [node("MatMul", f"{last},v", "p2"), *BLOCK[5:]]
    model = graph(nodes, {"x": shape}, ["y"], weights)
    after, done = rewrite(model, NAME)
    assert done.places == 1
    assert operators(after)["Transpose"] == 1
    assert not operators(after)["MatMul"]
