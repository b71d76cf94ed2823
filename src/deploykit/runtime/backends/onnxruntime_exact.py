"""What an ONNX file in 8 bits computes by the arithmetic that stands in it, on any processor.

Integer kernels may answer otherwise: x86 without VNNI adds pairs of products of unsigned and signed bytes in 16 bits, which
saturate, and ONNX Runtime makes such products even of a graph whose activations are signed. Here Q/DQ stay what they are, so
that everything between them is float32. Operators that take integers themselves are given unsigned weights, whose kernels add
in 32 bits: w + 128 with a zero point that is larger by 128 is the same weight. A graph of floats is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit import optional
from deploykit.errors import BadInputError
from deploykit.runtime.backends.onnxruntime_files import first_line

if TYPE_CHECKING:
    import onnx

#: Settings of a session that leave Q/DQ as they are.
SETTINGS: Final[Mapping[str, str]] = {"session.disable_quant_qdq": "1"}
#: Operators that round activations to integers.
ROUNDING: Final = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear", "QLinearConv", "QLinearMatMul"}
)
#: From signed bytes to unsigned ones.
_SHIFT: Final = 128
_SHIFT_NAME: Final = "deploykit.exact.128"


@dataclass(frozen=True)
class _Product:
    """Where an operator takes things: its data, None where that is always unsigned; its weights; their zero point."""

    data: int | None
    weights: int
    zero_point: int


#: Operators that multiply integers by weights, by domain and name. ConvInteger is not among them: its kernel adds in 32 bits.
_PRODUCTS: Final[Mapping[tuple[str, str], _Product]] = {
    ("", "QLinearConv"): _Product(0, 3, 5),
    ("", "QLinearMatMul"): _Product(0, 3, 5),
    ("", "MatMulInteger"): _Product(0, 1, 3),
    ("com.microsoft", "QLinearConv"): _Product(0, 3, 5),
    ("com.microsoft", "QGemm"): _Product(0, 3, 5),
    ("com.microsoft", "MatMulIntegerToFloat"): _Product(0, 1, 5),
    ("com.microsoft", "DynamicQuantizeMatMul"): _Product(None, 1, 3),
}


def unsigned(path: Path) -> bytes | None:
    """Return a model whose products of unsigned bytes take unsigned weights too; None where they do.

    Raises:
        BadInputError: The file is no ONNX model.
        MissingComponentError: The package onnx is not installed.
    """
    optional.require("onnx")
    import onnx

    try:
        model = onnx.load_model(str(path), load_external_data=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        types = _types(model)
    except Exception as error:  # protobuf and the inference of shapes raise bases that are not public
        raise BadInputError(f"{path} is no ONNX model: {first_line(error)}") from error
    signed = [(node, product) for node, product in _products(model.graph) if _is_signed(node, product, types)]
    if not signed:
        return None
    _shift(model.graph, signed)
    return bytes(model.SerializeToString())


def _products(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, _Product]]:
    for node in graph.node:
        product = _PRODUCTS.get((node.domain.replace("ai.onnx", ""), node.op_type))
        if product is not None:
            yield node, product


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every tensor that is known, by name; of a float graph, that of none."""
    import onnx

    if not any(_products(model.graph)):
        return {}
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    return known | {value.name: value.type.tensor_type.elem_type for value in values}


def _is_signed(node: onnx.NodeProto, product: _Product, types: Mapping[str, int]) -> bool:
    """Tell whether a product is one of unsigned data by signed weights: kernels for signed data add in 32 bits."""
    import onnx

    data = None if product.data is None else types.get(node.input[product.data])
    signed: int = onnx.TensorProto.INT8
    return types.get(node.input[product.weights]) == signed != data


def _shift(graph: onnx.GraphProto, signed: list[tuple[onnx.NodeProto, _Product]]) -> None:
    """Give products unsigned weights; ONNX Runtime computes those that are constant when it loads the file."""
    import onnx
    from onnx import helper

    graph.initializer.append(helper.make_tensor(_SHIFT_NAME, onnx.TensorProto.INT32, (), [_SHIFT]))
    made: dict[str, list[onnx.NodeProto]] = {}

    def shifted(name: str) -> str:
        stem = f"{name}.deploykit.exact"
        wide, sum_, narrow = f"{stem}.int32", f"{stem}.sum", f"{stem}.uint8"
        made.setdefault(
            name,
            [
                helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.INT32),
                helper.make_node("Add", [wide, _SHIFT_NAME], [sum_]),
                helper.make_node("Cast", [sum_], [narrow], to=onnx.TensorProto.UINT8),
            ],
        )
        return narrow

    zero = "deploykit.exact.zero_point"
    for node, product in signed:
        node.input.extend([""] * (product.zero_point + 1 - len(node.input)))
        node.input[product.weights] = shifted(node.input[product.weights])
        node.input[product.zero_point] = (
            shifted(node.input[product.zero_point]) if node.input[product.zero_point] else zero
        )
    graph.initializer.append(helper.make_tensor(zero, onnx.TensorProto.UINT8, (), [_SHIFT]))
    nodes = list(graph.node)
    del graph.node[:]
    waiting = dict(made)
    computed = {name for node in nodes for name in node.output}
    graph.node.extend(new for name in made if name not in computed for new in waiting.pop(name))
    for node in nodes:
        graph.node.append(node)
        for name in node.output:
            graph.node.extend(waiting.pop(name, ()))
