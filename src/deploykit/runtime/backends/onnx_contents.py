"""What precision an ONNX file holds, read from its structure alone: no library, no weights in memory."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploykit.errors import BadInputError
from deploykit.runtime.backends import contents
from deploykit.runtime.backends.contents import EIGHT_FLOAT, FULL, WEIGHTS, Operation
from deploykit.runtime.backends.protobuf import LENGTH, VARINT, Buffer, fields, messages, varint

#: Numbers of fields in onnx.proto.
_GRAPH: Final = 7
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12
_INPUTS, _OUTPUTS, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _INTEGER, _TENSOR = 1, 3, 5
_DIMS, _DATA_TYPE, _TENSOR_NAME = 1, 2, 8
_VALUE_NAME: Final = 1
#: TensorProto.DataType to grades; what isn't here is as good as float32. 4 bits are held to what 8 are.
_GRADES: Final[Mapping[int, str]] = {
    10: "f16",
    16: "bf16",
    **dict.fromkeys((2, 3, 21, 22), WEIGHTS),
    **dict.fromkeys((17, 18, 19, 20, 23, 24), EIGHT_FLOAT),
}
_UINT8: Final = 2
_INTEGER_PRODUCTS: Final = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "QAttention", "DynamicQuantizeLSTM"}
)
_PRODUCTS: Final = _INTEGER_PRODUCTS | {
    *("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"),
    *("FusedConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm", "MatMulNBits", "Attention", "GroupQueryAttention"),
}
MOVES: Final = frozenset(
    {
        "DequantizeLinear",
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Pad",
    }
    | {"Concat", "Split", "MaxPool", "Relu", "Clip", "Cast", "Expand", "SpaceToDepth", "DepthToSpace"}
)
_QUANTIZE, _CAST, _CONSTANT = "QuantizeLinear", "Cast", "Constant"


@dataclass
class _Node:
    """A NodeProto, as far as it is needed."""

    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, int] = field(default_factory=dict)
    constant: tuple[int, int] | None = None


def held(path: Path) -> str:
    """Return the grade that an ONNX file's weights are held in.

    Raises:
        BadInputError: The file is empty or not a protobuf.
    """
    if path.stat().st_size == 0:
        raise BadInputError(f"{path} is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = [(first, last) for number, first, last in messages(data, 0, len(data)) if number == _GRAPH]
            operations, outputs = _read(data, *graphs[-1]) if graphs else ([], [])
        except ValueError as error:
            raise BadInputError(f"{path} is no intact ONNX file: {error}") from error
    return contents.held(operations, outputs)


def _read(data: Buffer, start: int, end: int) -> tuple[list[Operation], list[str]]:
    """Return a graph's operations, constants first, and the names of its outputs."""
    types: dict[str, int] = {}
    constants, operations, outputs = [], [], []
    nodes: list[_Node] = []
    for number, first, last in messages(data, start, end):
        if number == _INITIALIZER:
            name, kind, values = _tensor(data, first, last)
            types[name] = kind
            constants.append(Operation((), (name,), values, _GRADES.get(kind, FULL)))
        elif number == _NODE:
            nodes.append(_node(data, first, last))
        elif number == _OUTPUT:
            outputs += [_text(data, a, b) for inner, a, b in messages(data, first, last) if inner == _VALUE_NAME]
    for node in nodes:
        if node.constant is not None:
            types.update(dict.fromkeys(node.outputs, node.constant[0]))
        operations.append(_operation(node, types))
    return [*constants, *operations], outputs


def _operation(node: _Node, types: Mapping[str, int]) -> Operation:
    kind = node.kind
    inputs, outputs = tuple(node.inputs), tuple(node.outputs)
    if node.constant is not None:
        return Operation((), outputs, node.constant[1], _GRADES.get(node.constant[0], FULL))
    into = 0
    if kind == _CAST:
        into = node.integers.get("to", 0)
    elif kind == _QUANTIZE:
        zero_point = inputs[2] if len(inputs) > 2 else ""
        into = node.integers.get("output_dtype", 0) or types.get(zero_point, _UINT8)
    return Operation(
        inputs,
        outputs,
        grade=_GRADES.get(into, FULL),
        multiplies=kind in _PRODUCTS,
        integer=kind in _INTEGER_PRODUCTS,
        moves=kind in MOVES,
    )


def _node(data: Buffer, start: int, end: int) -> _Node:
    found = _Node()
    for number, first, last in messages(data, start, end):
        if number == _INPUTS:
            found.inputs.append(_text(data, first, last))
        elif number == _OUTPUTS:
            found.outputs.append(_text(data, first, last))
        elif number == _OP_TYPE:
            found.kind = _text(data, first, last)
        elif number == _ATTRIBUTE:
            _attribute(data, first, last, found)
    if found.kind != _CONSTANT:
        found.constant = None
    return found


def _attribute(data: Buffer, start: int, end: int, into: _Node) -> None:
    name, integer = "", 0
    for number, wire, first, last in fields(data, start, end):
        if number == _ATTRIBUTE_NAME and wire == LENGTH:
            name = _text(data, first, last)
        elif number == _INTEGER and wire == VARINT:
            integer = first
        elif number == _TENSOR and wire == LENGTH:
            into.constant = _tensor(data, first, last)[1:]
    into.integers[name] = integer


def _tensor(data: Buffer, start: int, end: int) -> tuple[str, int, int]:
    """Return a tensor's name, its type and how many values it has."""
    name, kind, dims = "", 0, list[int]()
    for number, wire, first, last in fields(data, start, end):
        if number == _TENSOR_NAME and wire == LENGTH:
            name = _text(data, first, last)
        elif number == _DATA_TYPE and wire == VARINT:
            kind = first
        elif number == _DIMS:
            dims += [first] if wire == VARINT else _packed(data, first, last)
    return name, kind, math.prod(dims)


def _packed(data: Buffer, position: int, end: int) -> Iterator[int]:
    while position < end:
        value, position = varint(data, position, end)
        yield value


def _text(data: Buffer, start: int, end: int) -> str:
    return data[start:end].decode("utf-8")
