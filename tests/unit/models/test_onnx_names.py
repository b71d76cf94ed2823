"""Names in a graph: which faults are found, and that what is allowed passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import BadInputError
from deploykit.models import onnx_names


def graph(then: str = "y") -> onnx.GraphProto:
    """Return x -> Relu -> If (whose branches take an outer name) -> output."""
    value = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [helper.make_node(kind, [then], [f"{kind}.out"], name=kind)],
            kind,
            [],
            [value(f"{kind}.out", TensorProto.FLOAT, [1])],
        )
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="relu"),
        helper.make_node("If", ["c"], ["out"], name="if", then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Clip", ["out", "", "high"], ["clipped"], name="clip"),
    ]
    constants = [
        helper.make_tensor("c", TensorProto.BOOL, [], [True]),
        helper.make_tensor("high", TensorProto.FLOAT, [], [1.0]),
    ]
    inputs = [value("x", TensorProto.FLOAT, [1]), value("high", TensorProto.FLOAT, [])]
    return helper.make_graph(nodes, "g", inputs, [value("clipped", TensorProto.FLOAT, [1])], constants)


def test_names_that_each_stand_for_one_tensor_pass() -> None:
    onnx_names.check(Path("a.onnx"), graph())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: g.output.append(g.output[0]), "'clipped' is among its outputs 2 times"),
        (lambda g: g.input.append(g.input[0]), "'x' is among its inputs 2 times"),
        (lambda g: g.input.append(helper.make_tensor_value_info("", TensorProto.FLOAT, [1])), "an input has no name"),
        (lambda g: g.output.append(helper.make_tensor_value_info("", TensorProto.FLOAT, [1])), "an output has no name"),
        (lambda g: g.node.append(helper.make_node("Neg", ["x"], ["y"])), "'y' is among its outputs of nodes 2 times"),
        (lambda g: g.node.append(helper.make_node("Neg", ["y"], ["x"])), "'x' is given and computed too"),
        (lambda g: g.node.append(helper.make_node("Neg", ["y"], ["c"])), "'c' is given and computed too"),
        (
            lambda g: g.node.append(helper.make_node("Neg", ["z"], ["w"], name="n")),
            "nothing gives 'z', which Neg 'n' takes",
        ),
        (
            lambda g: g.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1])),
            "nothing gives its output 'q'",
        ),
        (lambda g: g.CopyFrom(graph(then="z")), "nothing gives 'z', which (Neg|Abs) '"),
    ],
)
def test_a_name_that_stands_for_two_tensors_or_none_is_told(
    change: Callable[[onnx.GraphProto], object], told: str
) -> None:
    made = graph()
    change(made)
    with pytest.raises(BadInputError, match=rf"a\.onnx is no valid graph: {told}"):
        onnx_names.check(Path("a.onnx"), made)
