"""Factors after layers: where they must stay, how they go, and what they leave alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, Shape, apply, graph, ints, node, operators, random, rewrite, weight

NAME = "fold-scales"
MLP = [node("MatMul", "x,w", "product"), node("Add", "product,b", "sum"), node("Mul", "sum,gamma", "y")]
INPUTS = {"x": ("batch", 5, 4)}
WEIGHTS: dict[str, Array] = {"w": random(1, 4, 6), "b": random(2, 6), "gamma": random(3, 6)}


def mlp(**changes: Array) -> onnx.ModelProto:
    return graph(MLP, INPUTS, ["y"], {**WEIGHTS, **changes})


@pytest.mark.parametrize(
    "gamma",
    [random(3, 5, 1), random(3, 5, 6), random(3, 1, 5, 6), random(3, 2, 1, 6), np.full(6, np.nan, np.float32)],
    ids=["wrong-axis", "per-place", "per-place-too", "enlarges", "no-number"],
)
def test_a_factor_that_is_not_one_per_channel_stays(gamma: Array) -> None:
    model = graph(MLP, {"x": (1, 5, 4)}, ["y"], {**WEIGHTS, "gamma": gamma})
    after, done = apply(model, NAME)
    assert done.places == 0
    assert operators(after) == operators(model)


def test_the_sum_is_used_twice() -> None:
    nodes = [*MLP, node("Relu", "sum", "z")]
    after, done = rewrite(graph(nodes, INPUTS, ["y", "z"], WEIGHTS), NAME)
    assert done.places == 0
    assert operators(after)["Mul"] == 1


def test_the_product_is_used_twice() -> None:
    nodes = [*MLP, node("Relu", "product", "z")]
    _, done = rewrite(graph(nodes, INPUTS, ["y", "z"], WEIGHTS), NAME)
    assert done.places == 0


@pytest.mark.parametrize("given_out", ["sum", "product"])
def test_what_is_scaled_is_given_out(given_out: str) -> None:
    _, done = rewrite(graph(MLP, INPUTS, ["y", given_out], WEIGHTS), NAME)
    assert done.places == 0


@pytest.mark.parametrize("fed", ["gamma", "w", "b"])
def test_what_is_fed_or_can_be_is_no_constant(fed: str) -> None:
    shape = WEIGHTS[fed].shape
    rest = {name: array for name, array in WEIGHTS.items() if name != fed}
    for weights in (rest, WEIGHTS):
        model = graph(MLP, {**INPUTS, fed: shape}, ["y"], weights)
        assert rewrite(model, NAME)[1].places == 0


@pytest.mark.parametrize("factor", [1e20, 1e-44], ids=["infinite", "vanishing"])
def test_weights_that_float32_cannot_hold_stay(factor: float) -> None:
    model = mlp(w=WEIGHTS["w"] * np.float32(1e20 if factor > 1 else 1e-2), gamma=np.full(6, factor, np.float32))
    assert apply(model, NAME)[1].places == 0


def test_graphs_of_old_opsets_are_left_alone() -> None:
    assert rewrite(graph(MLP, INPUTS, ["y"], WEIGHTS, opset=12), NAME)[1].places == 0
    assert rewrite(graph(MLP, INPUTS, ["y"], WEIGHTS, opset=13), NAME)[1].places == 1


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_stays(attributes: dict[str, Any]) -> None:
    nodes = [node("Gemm", "x,w,b", "sum", **attributes), node("Mul", "sum,gamma", "y")]
    assert rewrite(graph(nodes, {"x": (4, 4)}, ["y"], WEIGHTS), NAME)[1].places == 0


def test_a_gemm_that_adds_a_matrix_stays() -> None:
    nodes = [node("Gemm", "x,w,b", "sum"), node("Mul", "sum,gamma", "y")]
    model = graph(nodes, {"x": (3, 4)}, ["y"], {**WEIGHTS, "b": random(2, 3, 6)})
    assert rewrite(model, NAME)[1].places == 0


def test_a_vector_follows_a_reshape_that_mixes_rows_and_channels_nowhere() -> None:
    """[N, 6] as [6, N]: each column is a row, but channels lie across both."""
    nodes = [*MLP[:2], node("Reshape", "sum,shape", "mixed"), node("Mul", "mixed,gamma", "y")]
    weights: dict[str, Array] = {**WEIGHTS, "shape": ints(6, -1), "gamma": random(3, 6, 1)}
    assert rewrite(graph(nodes, {"x": ("batch", 4)}, ["y"], weights), NAME)[1].places == 0


def test_slices_that_overlap_share_channels() -> None:
    assert rewrite(_cut((0, 4), (3, 6)), NAME)[1].places == 0
    assert rewrite(_cut((0, 3), (3, 6)), NAME)[1].places == 2


def test_slices_of_an_open_dimension_are_not_followed() -> None:
    nodes = [
        *MLP[:2],
        node("Slice", "sum,start,end,axis", "part"),
        node("Slice", "sum,end,last,axis", "rest"),
        node("Mul", "part,gamma", "y"),
    ]
    weights: dict[str, Array] = {**WEIGHTS, "start": ints(0), "end": ints(1), "last": ints(9), "axis": ints(0)}
    assert rewrite(graph(nodes, INPUTS, ["y", "rest"], weights), NAME)[1].places == 0


def test_layer_scale_goes_into_weights_and_bias() -> None:
    after, done = rewrite(mlp(), NAME)
    assert done.places == 1
    assert operators(after) == {"MatMul": 1, "Add": 1}
    matmul, add = after.graph.node
    exact = WEIGHTS["w"].astype(np.float64) * WEIGHTS["gamma"]
    assert np.array_equal(weight(after, matmul.input[1]), exact.astype(np.float32))
    assert add.output[0] == "y"
    assert done.renames == {"product.rewritten": "product", "sum.rewritten": "sum", "y": "sum"}


def test_weights_that_others_use_stay_as_they_are() -> None:
    nodes = [*MLP, node("MatMul", "x,w", "other"), node("Add", "other,b", "z")]
    after, done = rewrite(graph(nodes, INPUTS, ["y", "z"], WEIGHTS), NAME)
    assert done.places == 1
    assert {tensor.name for tensor in after.graph.initializer} == {"w", "b", "w.rewritten", "b.rewritten"}
    assert np.array_equal(weight(after, "w"), WEIGHTS["w"])


CONV: dict[str, Array] = {"w": random(1, 6, 4, 3, 3), "b": random(2, 6)}
FORMS: dict[str, tuple[list[onnx.NodeProto], Mapping[str, Shape], dict[str, Array]]] = {
    "operands swapped": ([*MLP[:1], node("Add", "b,product", "sum"), node("Mul", "gamma,sum", "y")], INPUTS, {}),
    "no bias": ([*MLP[:1], node("Mul", "product,gamma", "y")], INPUTS, {}),
    "one number": (MLP, INPUTS, {"gamma": np.array(0.125, np.float32)}),
    "gemm": ([node("Gemm", "x,w,b", "sum"), MLP[2]], {"x": ("batch", 4)}, {}),
    "gemm, no bias": ([node("Gemm", "x,w", "sum"), MLP[2]], {"x": ("batch", 4)}, {}),
    "gemm, turned": ([node("Gemm", "x,w,b", "sum", transB=1), MLP[2]], {"x": ("batch", 4)}, {"w": random(1, 6, 4)}),
    "conv": (
        [node("Conv", "x,w,b", "sum", pads=[1, 1, 1, 1]), MLP[2]],
        {"x": ("batch", 4, 5, 7)},
        {**CONV, "gamma": random(3, 6, 1, 1)},
    ),
    "conv, no bias": (
        [node("Conv", "x,w", "sum"), MLP[2]],
        {"x": ("batch", 4, 5, 7)},
        {**CONV, "gamma": random(3, 1, 6, 1, 1)},
    ),
    "depthwise": (
        [node("Conv", "x,w,b", "sum", group=6), MLP[2]],
        {"x": ("batch", 6, 5, 7)},
        {**CONV, "w": random(1, 6, 1, 3, 3), "gamma": random(3, 6, 1, 1)},
    ),
    "two factors": ([*MLP[:2], node("Mul", "sum,gamma", "once"), node("Mul", "once,gamma", "y")], INPUTS, {}),
    "reshaped and transposed": (
        [
            node("Gemm", "x,w,b", "sum"),
            node("Reshape", "sum,shape", "map"),
            node("Transpose", "map", "turned", perm=[0, 3, 1, 2]),
            node("Mul", "turned,gamma", "y"),
        ],
        {"x": ("rows", 4)},
        {"gamma": random(3, 1, 6, 1, 1), "shape": ints(-1, 1, 1, 6)},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_layer(form: str) -> None:
    nodes, inputs, changes = FORMS[form]
    model = graph(nodes, inputs, ["y"], {**WEIGHTS, **changes})
    after, done = rewrite(model, NAME)
    assert done.places == operators(model)["Mul"] > 0
    assert not operators(after)["Mul"]
    assert set(done.renames) & {"y"}


def test_attention_scales_queries_and_keys_and_leaves_values_alone() -> None:
    nodes = [
        node("MatMul", "x,w", "product"),
        node("Add", "product,b", "qkv"),
        node("Reshape", "qkv,apart", "view"),
        node("Transpose", "view", "permuted", perm=[2, 0, 3, 1, 4]),
        *(node("Slice", f"permuted,{i},{i + 1},0", name) for i, name in enumerate(["q1", "k1", "v1"])),
        *(node("Squeeze", f"{name}1,0", name) for name in "qkv"),
        node("Mul", "q,scale", "qs"),
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("Mul", "kt,scale", "ks"),
        node("MatMul", "qs,ks", "scores"),
        node("MatMul", "scores,v", "y"),
    ]
    weights: dict[str, Array] = {
        "w": random(1, 8, 24),
        "b": random(2, 24),
        "scale": np.array([0.7], np.float32),
        **{str(index): ints(index) for index in range(4)},
        "apart": ints(-1, 5, 3, 2, 4),
    }
    after, done = rewrite(graph(nodes, {"x": ("batch", 5, 8)}, ["y"], weights), NAME)
    assert done.places == 2
    assert not operators(after)["Mul"]
    exact: Array = weights["b"].astype(np.float64)
    exact[:16] *= np.float32(0.7)
    assert np.allclose(weight(after, after.graph.node[1].input[1]), exact, rtol=1e-7)
    names = {output for given in after.graph.node for output in given.output}
    assert {"v", "v1", "qs", "ks", "permuted.rewritten"} <= names
    assert not {"q", "k", "permuted", "qkv"} & names
    assert done.renames["qs"] == "q"


def _cut(*bounds: tuple[int, int]) -> onnx.ModelProto:
    """Channels of one layer cut in two, each with a factor of its own."""
    nodes = list(MLP[:2])
    weights: dict[str, Array] = {**WEIGHTS, "axis": ints(-1)}
    for name, (start, end) in zip("yz", bounds, strict=True):
        weights |= {f"{name}0": ints(start), f"{name}1": ints(end), f"{name}g": random(start, end - start)}
        nodes += [node("Slice", f"sum,{name}0,{name}1,axis", f"{name}2"), node("Mul", f"{name}2,{name}g", name)]
    return graph(nodes, INPUTS, ["y", "z"], weights)


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """A layer, moves, a factor that fits what they made of it, more moves."""
    heads, width, tokens = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 5))
    channels = heads * width
    weights: dict[str, Array] = {"w": random(1, 4, channels), "b": random(2, channels)}
    nodes = [node("MatMul", "x,w", "product"), node("Add", "product,b", "t0")]
    batch: int | str = "batch" if draw(st.booleans()) else 2
    shape: tuple[int, ...] = (-1 if batch == "batch" else 2, tokens, channels)
    apart = draw(st.booleans())
    if apart:
        shape = (shape[0], tokens, heads, width)
        weights["apart"] = ints(*shape)
        nodes.append(node("Reshape", "t0,apart", "t1"))
    order = draw(st.permutations(range(1, len(shape))))
    nodes.append(node("Transpose", nodes[-1].output[0], "turned", perm=[0, *order]))
    sizes = [shape[axis] for axis in order]
    is_channel = [axis >= 2 for axis in order]
    kept = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    gamma = [size if channel and keep else 1 for size, channel, keep in zip(sizes, is_channel, kept, strict=True)]
    weights["gamma"] = random(draw(st.integers(0, 99)), *gamma)
    nodes.append(node("Mul", draw(st.sampled_from(["turned,gamma", "gamma,turned"])), "scaled"))
    nodes.append(node("Neg", "scaled", "y"))  # a Relu can cut off all large values, and roundings are judged by those
    return graph(nodes, {"x": (batch, tokens, 4)}, ["y"], weights)


@given(chains())
def test_any_factor_of_channels_is_folded_through_any_moves(model: onnx.ModelProto) -> None:
    after, done = rewrite(model, NAME)
    assert done.places == 1
    assert not operators(after)["Mul"]


@given(chains(), st.integers(0, 9))
def test_a_factor_that_tells_tokens_apart_never_is(model: onnx.ModelProto, seed: int) -> None:
    turned = next(value for value in model.graph.value_info if value.name == "turned")
    sizes = [dim.dim_value for dim in turned.type.tensor_type.shape.dim][1:]
    permutation = list(next(given for given in model.graph.node if given.op_type == "Transpose").attribute[0].ints)
    tokens = permutation[1:].index(1)
    shape = [1] * len(sizes)
    shape[tokens] = sizes[tokens]
    gamma = next(tensor for tensor in model.graph.initializer if tensor.name == "gamma")
    gamma.CopyFrom(onnx.numpy_helper.from_array(random(seed, *shape), "gamma"))
    done = rewrite(model, NAME)[1]
    assert done.places == (1 if sizes[tokens] == 1 else 0)
