"""What precision an OpenVINO IR holds, by the types of its constants and by what it rounds to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from deploykit.runtime.backends import contents
from deploykit.runtime.backends.contents import EIGHT_FLOAT, FULL, WEIGHTS, Operation

#: OpenVINO's names of types to grades; what isn't here is as good as float32. 4 bits and fewer are held to what 8 are.
_GRADES: Final[Mapping[str, str]] = {
    "f16": "f16",
    "bf16": "bf16",
    **dict.fromkeys(("i8", "u8", "i4", "u4", "u3", "u2", "nf4"), WEIGHTS),
    **dict.fromkeys(("f8e4m3", "f8e5m2", "f8e8m0", "f4e2m1"), EIGHT_FLOAT),
}
_PRODUCTS: Final = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul", "Einsum"}
    | {"DeformableConvolution", "LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell"}
)
#: An IR spells a DequantizeLinear as Convert, Subtract and Multiply.
_MOVES: Final = frozenset(
    {
        "Convert",
        "Subtract",
        "Multiply",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "StridedSlice",
        "Slice",
        "Gather",
    }
    | {
        "Pad",
        "Concat",
        "Split",
        "VariadicSplit",
        "MaxPool",
        "Relu",
        "Clamp",
        "Broadcast",
        "SpaceToDepth",
        "DepthToSpace",
    }
)
_MOST_LEVELS: Final = 256


def held(model: Any) -> str:  # noqa: ANN401 - the library has no types
    """Return the grade that the weights of a model that OpenVINO has read are held in."""
    operations = [_operation(node) for node in model.get_ordered_ops()]
    outputs = [_name(output.input_value(0)) for output in model.get_results()]
    return contents.held(operations, outputs)


def _operation(node: Any) -> Operation:  # noqa: ANN401
    kind = node.get_type_name()
    outputs = tuple(map(_name, node.outputs()))
    if kind == "Constant":
        return Operation((), outputs, math.prod(node.get_output_shape(0)), _grade(node))
    inputs = tuple(_name(node.input_value(index)) for index in range(node.get_input_size()))
    return Operation(inputs, outputs, grade=_rounds_to(node, kind), multiplies=kind in _PRODUCTS, moves=kind in _MOVES)


def _rounds_to(node: Any, kind: str) -> str:  # noqa: ANN401
    if kind == "Convert":
        return _grade(node)
    if kind == "FakeQuantize" and node.get_attributes()["levels"] <= _MOST_LEVELS:
        return WEIGHTS
    return EIGHT_FLOAT if kind == "FakeConvert" else FULL


def _grade(node: Any) -> str:  # noqa: ANN401
    return _GRADES.get(node.get_output_element_type(0).get_type_name(), FULL)


def _name(output: Any) -> str:  # noqa: ANN401
    return f"{output.get_node().get_name()}:{output.get_index()}"
