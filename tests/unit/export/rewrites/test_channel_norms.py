"""Norms of channels-last maps, computed channels first: told apart from other norms, and the same values."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, Shape, graph, node, operators, random, rewrite

NAME = "channel-norms"
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
#: Means and variances are summed in another order.
TOLERANCE = 1e-5


def norm(
    shape: Shape = ("batch", 6, 4, 5),
    there: list[int] = LAST,
    back: list[int] = FIRST,
    outputs: tuple[str, ...] = ("y",),
    weights: str = ",gamma,beta",
    opset: int = 20,
    **attributes: Any,
) -> onnx.ModelProto:
    """A norm between two transposes, as PyTorch's exporter writes timm's LayerNorm2d."""
    nodes = [
        node("Transpose", "x", "last", perm=there),
        node("LayerNormalization", f"last{weights}", "normed", **attributes),
        node("Transpose", "normed", "y", perm=back),
    ]
    if "z" in outputs:
        nodes.append(node("Relu", "normed", "z"))
    channels = shape[1] if there == LAST and attributes.get("axis", -1) in {-1, 3} else None
    size = (channels,) if isinstance(channels, int) else (1,)
    constants: dict[str, Array] = {"gamma": random(1, *size), "beta": random(2, *size)}
    return graph(nodes, {"x": shape}, outputs, constants, opset=opset)


@pytest.mark.parametrize(
    "model",
    [
        norm(there=[0, 1, 3, 2], back=[0, 1, 3, 2]),
        norm(back=[0, 3, 2, 1]),
        norm(axis=2),
        norm(outputs=("y", "normed")),
        norm(outputs=("y", "z")),
        norm(weights=",x1"),
        norm(opset=17),
    ],
    ids=["other-axes", "not-back", "wider", "given-out", "used", "computed-weights", "axes-as-attribute"],
)
def test_other_norms_stay(model: onnx.ModelProto) -> None:
    if any("x1" in given.input for given in model.graph.node):
        gamma = onnx.helper.make_tensor_value_info("x1", onnx.TensorProto.FLOAT, [6])
        model.graph.input.append(gamma)
    assert rewrite(model, NAME)[1].places == 0


@given(
    batch=st.sampled_from(["batch", 1, 2]),
    channels=st.integers(2, 9),
    shift=st.booleans(),
    attributes=st.sampled_from([{}, {"axis": 3}, {"epsilon": 0.5}]),
)
def test_norms_over_channels_need_no_transposes(
    batch: int | str, channels: int, shift: bool, attributes: dict[str, Any]
) -> None:
    model = norm((batch, channels, 4, 5), weights=",gamma,beta" if shift else ",gamma", **attributes)
    after, done = rewrite(model, NAME, TOLERANCE)
    assert done.places == 1
    assert not operators(after).keys() & {"Transpose", "LayerNormalization"}
    assert done.renames["y"] == "normed"


def test_a_transposed_map_that_is_used_elsewhere_is_still_made() -> None:
    after, done = rewrite(norm(outputs=("y", "last")), NAME, TOLERANCE)
    assert done.places == 1
    assert operators(after)["Transpose"] == 1
