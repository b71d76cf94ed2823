"""Global response normalisation: told apart from what only looks like it, and regrouped."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, Shape, graph, ints, node, operators, random, rewrite

NAME = "regroup-norms"
FIRST = (("batch", 4, 5, 7), (4, 1, 1), (2, 3), 1)
LAST = (("batch", 5, 7, 4), (4,), (1, 2), -1)


def response_norm(
    layout: tuple[Shape, tuple[int, ...], tuple[int, ...], int] = FIRST,
    swapped: Sequence[bool] = (False,) * 4,
    outputs: Sequence[str] = ("y",),
    **changes: Array,
) -> onnx.ModelProto:
    """As PyTorch's exporter writes timm's GlobalResponseNorm."""
    shape, vector, space, channel = layout
    names = [("x,n", "xn"), ("gamma,xn", "scaled"), ("beta,scaled", "branch"), ("x,branch", "y")]
    kinds = ["Mul", "Mul", "Add", "Add"]
    turned = [
        ",".join(given.split(",")[::-1]) if swap else given for (given, _), swap in zip(names, swapped, strict=True)
    ]
    nodes = [
        node("ReduceL2", "x,space", "l2"),
        node("ReduceMean", "l2,channel", "mean"),
        node("Add", "mean,eps", "safe"),
        node("Div", "l2,safe", "n"),
        *(node(kind, given, name) for kind, given, (_, name) in zip(kinds, turned, names, strict=True)),
    ]
    if "z" in outputs:
        nodes.append(node("Relu", "xn", "z"))
    weights: dict[str, Array] = {
        "space": ints(*space),
        "channel": ints(channel),
        "eps": random(0, 1) ** 2,
        "gamma": random(1, *vector),
        "beta": random(2, *vector),
    }
    return graph(nodes, {"x": shape}, outputs, {**weights, **changes})


@pytest.mark.parametrize("inside", ["xn", "scaled", "branch", "z"])
def test_something_inside_is_used_elsewhere(inside: str) -> None:
    assert rewrite(response_norm(outputs=["y", inside]), NAME)[1].places == 0


def test_a_norm_per_place_is_no_vector() -> None:
    nodes = response_norm().graph.node[4:]
    model = graph(
        list(nodes),
        {"x": (2, 4, 5, 7), "n": (2, 4, 5, 7)},
        ["y"],
        {"gamma": random(1, 4, 1, 1), "beta": random(2, 4, 1, 1)},
    )
    assert rewrite(model, NAME)[1].places == 0


@pytest.mark.parametrize("shape", [(4, 5, 1), (2, 4, 1, 1)])
def test_a_gamma_that_is_more_than_the_vector_stays(shape: tuple[int, ...]) -> None:
    layout = ((1, 4, 5, 7), *FIRST[1:])
    assert rewrite(response_norm(layout, gamma=random(1, *shape)), NAME)[1].places == 0


def test_another_sum_stays() -> None:
    """The sum adds another tensor than the one that is normalised."""
    nodes = [*response_norm().graph.node[:7], node("Add", "other,branch", "y")]
    weights: dict[str, Array] = {"space": ints(2, 3), "channel": ints(1), "eps": random(0, 1) ** 2}
    weights |= {"gamma": random(1, 4, 1, 1), "beta": random(2, 4, 1, 1)}
    shape = ("batch", 4, 5, 7)
    assert rewrite(graph(nodes, {"x": shape, "other": shape}, ["y"], weights), NAME)[1].places == 0


@given(st.sampled_from([FIRST, LAST, ((2, 4, 5, 7), *FIRST[1:])]), st.lists(st.booleans(), min_size=4, max_size=4))
def test_it_is_regrouped_whatever_the_layout_and_the_order(
    layout: tuple[Shape, tuple[int, ...], tuple[int, ...], int], swapped: list[bool]
) -> None:
    model = response_norm(layout, swapped)
    after, done = rewrite(model, NAME)
    assert done.places == 1
    large = [value.name for value in model.graph.value_info if value.name in {"xn", "scaled", "branch"}]
    assert len(large) == 3
    made = {given.output[0] for given in after.graph.node if given.op_type in {"Mul", "Add"}}
    whole = [value for value in after.graph.value_info if value.name in made and _is_map(value)]
    assert len(whole) == 1
    assert operators(after)["Mul"] == 2


def _is_map(value: onnx.ValueInfoProto) -> bool:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim].count(1) == 0
