"""Transposes by way of flat shapes, gathers that count, means over maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tests.unit.export.rewrites.graphs import Array, Shape, graph, ints, node, operators, rewrite

KEYS = ("batch", 3, 5, 4)


def keys(
    shape: Shape = KEYS, flat: tuple[int, ...] = (-1, 5, 4), back: tuple[int, ...] = (-1, 3, 4, 5), **attributes: Any
) -> onnx.ModelProto:
    nodes = [
        node("Reshape", "x,flat", "rows"),
        node("Transpose", "rows", "turned", **(attributes or {"perm": [0, 2, 1]})),
        node("Reshape", "turned,back", "y"),
    ]
    return graph(nodes, {"x": shape}, ["y"], {"flat": ints(*flat), "back": ints(*back)})


@pytest.mark.parametrize(
    "model",
    [
        keys(perm=[0, 1, 2]),
        keys(flat=(-1, 10, 2), back=(-1, 3, 4, 5)),
        keys(back=(-1, 1, 4, 5)),
        keys(back=(3, -1, 4, 5)),
        keys(back=(-1, 3, 5, 4)),
        keys(back=(-1, 3, 20)),
        keys(shape=("batch", "heads", 5, 4)),
        keys(shape=(2, 1, 3, 5, 4)),
    ],
    ids=["no-swap", "other-rows", "fewer-heads", "heads-first", "not-swapped", "merged", "open", "inner-one"],
)
def test_other_reshapes_stay(model: onnx.ModelProto) -> None:
    assert rewrite(model, "direct-transposes")[1].places == 0


@pytest.mark.parametrize("given_out", ["rows", "turned"])
def test_a_flat_tensor_that_is_used_stays(given_out: str) -> None:
    model = keys()
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == given_out))
    assert rewrite(model, "direct-transposes")[1].places == 0


@pytest.mark.parametrize("shape", [KEYS, (2, 3, 5, 4), ("batch", 1, 5, 4), (1, "batch", 3, 5, 4), (1, 1, 5, 4)])
def test_keys_are_transposed_in_one_step(shape: Shape) -> None:
    heads = shape[-3]
    assert isinstance(heads, int)
    after, done = rewrite(keys(shape, back=(-1, heads, 4, 5)), "direct-transposes")
    assert done.places == 1
    assert operators(after) == {"Transpose": 1, **({"Squeeze": 1} if len(shape) == 5 else {})}
    assert done.renames["y"] == "y"


MAP = ("batch", 6, 1, 1)


def counted(
    width: int = 6, step: int = 6, start: int = 0, of: str = "x", places: Array | None = None
) -> onnx.ModelProto:
    """As PyTorch's exporter writes `as_strided` where the batch is open."""
    nodes = [
        node("Reshape", "x,all", "flat"),
        node("Shape", of, "shape", start=0, end=1),
        node("Squeeze", "shape", "n"),
        node("Range", "start,n,one", "rows"),
        node("Mul", "rows,width", "offsets"),
        node("Unsqueeze", "offsets,axes", "columns"),
        node("Add", "columns,places", "indices"),
        node("Gather", "flat,indices", "same", axis=0),
        node("Relu", "same", "y"),
    ]
    weights: dict[str, Array] = {
        "all": ints(-1),
        "axes": ints(1, 2, 3),
        "width": np.array(step),
        "start": np.array(start),
        "one": np.array(1),
        "places": np.arange(width).reshape(1, 6, 1, 1) if places is None else places,
    }
    return graph(nodes, {"x": MAP, "other": ("others",)}, ["y"], weights, known={"same": MAP})


@pytest.mark.parametrize(
    "changes",
    [
        {"places": np.arange(6)[::-1].reshape(1, 6, 1, 1).copy()},
        {"places": np.zeros((1, 6, 1, 1), np.int64)},
        {"step": 0},
        {"of": "other"},
    ],
    ids=["backwards", "same-place", "same-row", "other-size"],
)
def test_gathers_in_another_order_stay(changes: dict[str, Any]) -> None:
    assert rewrite(counted(**changes), "identity-gathers")[1].places == 0


def test_a_gather_that_counts_is_left_out() -> None:
    after, done = rewrite(counted(), "identity-gathers")
    assert done.places == 1
    assert operators(after) == {"Relu": 1}


def test_a_gather_whose_result_is_given_out_stays() -> None:
    model = counted()
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == "same"))
    assert rewrite(model, "identity-gathers")[1].places == 0


@pytest.mark.parametrize(
    ("order", "places"), [(np.arange(12), 1), (np.arange(12)[::-1].copy(), 0), (np.arange(12) % 6, 0)]
)
def test_constant_indices(order: Array, places: int) -> None:
    nodes = [
        node("Reshape", "x,all", "flat"),
        node("Gather", "flat,indices", "same", axis=0),
        node("Relu", "same", "y"),
    ]
    weights = {"all": ints(-1), "indices": order.reshape(2, 6, 1, 1)}
    model = graph(nodes, {"x": (2, 6, 1, 1)}, ["y"], weights)
    assert rewrite(model, "identity-gathers")[1].places == places


@pytest.mark.parametrize(
    ("shape", "axes", "keepdims"),
    [(MAP, (1, 2), 1), (MAP, (2,), 1), (MAP, (1, 2, 3), 1), (MAP, (2, 3), 0), (("batch", 6, 5), (1, 2), 1)],
)
def test_other_means_stay(shape: Shape, axes: tuple[int, ...], keepdims: int) -> None:
    model = graph([node("ReduceMean", "x,axes", "y", keepdims=keepdims)], {"x": shape}, ["y"], {"axes": ints(*axes)})
    assert rewrite(model, "global-pools")[1].places == 0


def test_means_of_an_old_opset_stay() -> None:
    """Until opset 18 axes were an attribute."""
    model = graph([node("ReduceMean", "x", "y", axes=[2, 3])], {"x": ("batch", 6, 5, 7)}, ["y"], {}, opset=13)
    assert rewrite(model, "global-pools")[1].places == 0


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2), (3, 2), (-2, 3)])
def test_a_mean_over_a_map_is_a_pool(axes: tuple[int, ...]) -> None:
    nodes = [node("ReduceMean", "x,axes", "mean"), node("Relu", "mean", "y")]
    after, done = rewrite(graph(nodes, {"x": ("batch", 6, 5, 7)}, ["y"], {"axes": ints(*axes)}), "global-pools")
    assert done.places == 1
    assert operators(after) == {"GlobalAveragePool": 1, "Relu": 1}
    assert done.renames["mean"] == "mean"
