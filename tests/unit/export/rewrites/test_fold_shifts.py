"""Constants before layers: where padding, places or other users keep them, and how they go into biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.unit.export.rewrites.graphs import Array, graph, ints, node, operators, random, rewrite, weight

NAME = "fold-shifts"
CONV = [node("Add", "x,beta", "sum"), node("Conv", "sum,w,b", "y")]
WEIGHTS: dict[str, Array] = {"w": random(1, 6, 4, 1, 1), "b": random(2, 6), "beta": random(3, 4, 1, 1)}


def conv(attributes: dict[str, Any] | None = None, **changes: Array) -> onnx.ModelProto:
    nodes = [CONV[0], node("Conv", "sum,w,b", "y", **(attributes or {}))]
    return graph(nodes, {"x": ("batch", 4, 5, 7)}, ["y"], {**WEIGHTS, **changes})


@pytest.mark.parametrize("attributes", [{"pads": [0, 0, 1, 0]}, {"auto_pad": "SAME_UPPER"}])
def test_padding_knows_no_constant(attributes: dict[str, Any]) -> None:
    assert rewrite(conv(attributes, w=random(1, 6, 4, 3, 3)), NAME)[1].places == 0


def test_groups_are_left_alone() -> None:
    assert rewrite(conv({"group": 2}, w=random(1, 6, 2, 1, 1)), NAME)[1].places == 0


@pytest.mark.parametrize("shape", [(7,), (5, 1), (1, 5, 7), (4, 5, 7)])
def test_a_constant_that_differs_from_place_to_place_stays(shape: tuple[int, ...]) -> None:
    assert rewrite(conv(beta=random(3, *shape)), NAME)[1].places == 0


def test_a_layer_without_bias_has_nowhere_to_put_it() -> None:
    model = graph([CONV[0], node("Conv", "sum,w", "y")], {"x": ("batch", 4, 5, 7)}, ["y"], WEIGHTS)
    assert rewrite(model, NAME)[1].places == 0


@pytest.mark.parametrize("outputs", [["y", "sum"], ["y", "z"]])
def test_the_sum_is_used_elsewhere(outputs: list[str]) -> None:
    nodes = [*CONV, node("Relu", "sum", "z")] if "z" in outputs else CONV
    assert rewrite(graph(nodes, {"x": ("batch", 4, 5, 7)}, outputs, WEIGHTS), NAME)[1].places == 0


def test_a_constant_that_makes_its_tensor_larger_stays() -> None:
    model = graph(CONV, {"x": (1, 4, 5, 7)}, ["y"], {**WEIGHTS, "beta": random(3, 2, 4, 1, 1)})
    assert rewrite(model, NAME)[1].places == 0


def test_a_product_of_two_computed_tensors_is_no_layer() -> None:
    nodes = [node("Add", "x,beta", "sum"), node("MatMul", "sum,v", "y")]
    model = graph(nodes, {"x": ("batch", 5, 4), "v": ("batch", 4, 3)}, ["y"], {"beta": random(3, 4)})
    assert rewrite(model, NAME)[1].places == 0


def test_the_weights_get_no_copy() -> None:
    after, done = rewrite(conv(), NAME)
    assert done.places == 1
    assert operators(after) == {"Conv": 1}
    assert {tensor.name for tensor in after.graph.initializer} == {"w", "b.rewritten"}
    exact = WEIGHTS["b"] + WEIGHTS["w"].reshape(6, 4).astype(np.float64) @ WEIGHTS["beta"].reshape(-1)
    assert np.allclose(weight(after, "b.rewritten"), exact, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_a_kernel_of_any_size_that_pads_nothing(size: int) -> None:
    assert rewrite(conv({"strides": [2, 1]}, w=random(1, 6, 4, size, size)), NAME)[1].places == 1


@pytest.mark.parametrize("turned", [0, 1])
def test_a_matrix_product_of_rows(turned: int) -> None:
    nodes = [
        node("Add", "beta,x", "sum"),
        node("Reshape", "sum,rows", "flat"),
        node("Gemm", "flat,w,b", "product", transB=turned),
        node("Reshape", "product,map", "y"),
    ]
    shapes: dict[str, Array] = {"rows": ints(-1, 4), "map": ints(-1, 5, 7, 6), "beta": random(3, 1, 1, 1, 4)}
    weights: dict[str, Array] = {"w": random(1, 6, 4) if turned else random(1, 4, 6), "b": random(2, 6), **shapes}
    after, done = rewrite(graph(nodes, {"x": ("batch", 5, 7, 4)}, ["y"], weights), NAME)
    assert done.places == 1
    assert done.renames == {"flat.rewritten": "flat"}
    assert operators(after) == {"Reshape": 2, "Gemm": 1}


def test_one_constant_after_another() -> None:
    nodes = [node("Add", "x,first", "once"), node("Add", "once,beta", "sum"), CONV[1]]
    model = graph(nodes, {"x": ("batch", 4, 5, 7)}, ["y"], {**WEIGHTS, "first": random(4, 4, 1, 1)})
    after, done = rewrite(model, NAME)
    assert done.places == 2
    assert operators(after) == {"Conv": 1}


def test_one_layer_after_another() -> None:
    nodes = [node("MatMul", "x,w,", "p"), node("Add", "p,b", "s"), node("MatMul", "s,v", "q"), node("Add", "q,c", "y")]
    nodes[0] = node("MatMul", "x,w", "p")
    weights: dict[str, Array] = {"w": random(1, 4, 6), "b": random(2, 6), "v": random(3, 6, 5), "c": random(4, 5)}
    after, done = rewrite(graph(nodes, {"x": ("batch", 5, 4)}, ["y"], weights), NAME)
    assert done.places == 1
    assert operators(after) == {"MatMul": 2, "Add": 1}
