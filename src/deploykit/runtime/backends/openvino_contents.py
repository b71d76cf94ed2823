"""What precision an OpenVINO IR holds, by the types of its constants and by what it rounds to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.runtime.backends import contents
from deploykit.runtime.backends.contents import EIGHT_FLOAT, FULL, WEIGHTS, Operation, Product

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
#: Layers that multiply by weights, their input 1.
_LAYERS: Final = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_EIGHT_BITS: Final = frozenset({"i8", "u8"})
#: What may lie between them and their codes.
_ON_WEIGHTS: Final = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose"})


def held(model: Any) -> str:  # noqa: ANN401 - the library has no types
    """Return the grade that the weights of a model that OpenVINO has read are held in."""
    operations = [_operation(node) for node in model.get_ordered_ops()]
    outputs = [_name(output.input_value(0)) for output in model.get_results()]
    return contents.held(operations, outputs)


def products(model: Any) -> Iterator[Product]:  # noqa: ANN401
    """Yield the layers of a model that OpenVINO has read which multiply data in 8 bits by constant weights of int8."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in _LAYERS and _is_rounded(node.input_value(0).get_node()):
            weights = _weights(node.input_value(1).get_node())
            if weights is not None:
                yield _product(node, weights)


def _is_rounded(node: Any) -> bool:  # noqa: ANN401
    """Tell whether data comes in 8 bits, whatever moved it since."""
    while True:
        kind = node.get_type_name()
        if kind == "FakeQuantize" or str(node.get_output_element_type(0).get_type_name()) in _EIGHT_BITS:
            return bool(kind != "Constant")
        if kind not in _MOVES or node.get_input_size() == 0:
            return False
        node = node.input_value(0).get_node()


def _weights(node: Any) -> NDArray[np.int8] | None:  # noqa: ANN401
    """Return the int8 codes behind a layer's weights, of their shape there; None where there are none."""
    kind = node.get_type_name()
    if kind == "Constant":
        is_signed = str(node.get_output_element_type(0).get_type_name()) == "i8"
        return np.asarray(node.data) if is_signed and len(node.get_output_shape(0)) > 1 else None
    codes = _weights(node.input_value(0).get_node()) if kind in _ON_WEIGHTS else None
    if codes is None or kind not in {"Reshape", "Transpose"}:
        return codes
    if kind == "Transpose":
        order = node.input_value(1).get_node()
        return codes.transpose(order.data.tolist()) if order.get_type_name() == "Constant" else None
    shape = list(node.get_output_shape(0)) if node.get_output_partial_shape(0).is_static else []
    return codes.reshape(shape) if len(shape) > 1 else None


def _product(node: Any, codes: NDArray[np.int8]) -> Product:  # noqa: ANN401
    name, kind = str(node.get_friendly_name()), node.get_type_name()
    if kind == "GroupConvolution":  # groups, out and in of each
        groups, out, *rest = codes.shape
        return Product(name, codes.reshape(groups * out, *rest), 0, 1, groups)
    if kind == "Convolution":
        return Product(name, codes, 0, 1)
    last = codes.ndim - 1
    turned = bool(node.get_attributes()["transpose_b"])
    return Product(name, codes, last - 1 if turned else last, last if turned else last - 1)


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
