"""The products of an ONNX file that runtimes compute from 8 bits by 8 bits: rounded data by constant weights of int8.

Read from the file itself: no library, the weights of one layer in memory at a time.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import BadInputError
from deploykit.runtime.backends import onnx_contents
from deploykit.runtime.backends.contents import Product
from deploykit.runtime.backends.external_data import checked_model
from deploykit.runtime.backends.protobuf import LENGTH, VARINT, Buffer, fields, messages, varint

#: Numbers of fields in onnx.proto, and of the type int8.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUTS, _OUTPUTS, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _INTEGER, _TENSOR, _INTEGERS = 1, 3, 5, 8
_DIMS, _DATA_TYPE, _INT32_DATA, _NAME, _RAW_DATA, _EXTERNAL = 1, 2, 5, 8, 9, 13
_KEY, _VALUE = 1, 2
_INT8: Final = 3
#: Operators that leave 8 bits as they are, or take some of them away.
_MOVES: Final = onnx_contents.MOVES


@dataclass
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    integers: dict[str, list[int]] = field(default_factory=dict)
    constant: _Tensor | None = None

    def integer(self, name: str, default: int) -> int:
        return self.integers[name][0] if self.integers.get(name) else default


@dataclass
class _Tensor:
    """A TensorProto; its values stay in the file until they are asked for."""

    name: str = ""
    kind: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    packed: list[tuple[int, int, int]] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Weights:
    """Weights on their way to a product: the tensor, and how its axes were turned."""

    tensor: _Tensor
    turned: tuple[int, ...] | None = None


#: Of operators on integers, where data and weights stand; of all others they are inputs 0 and 1, behind DequantizeLinear.
_INTEGER_PRODUCTS: Final[Mapping[str, int]] = {
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}
_PRODUCTS: Final = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")


def products(model: str) -> Iterator[Product]:
    """Yield the layers of an ONNX file that integer kernels may compute, in the order of the file.

    Raises:
        BadInputError: The file is damaged, or leads outside its folder.
    """
    path = checked_model(model)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            graphs = [(first, last) for number, first, last in messages(data, 0, len(data)) if number == _GRAPH]
            if graphs:
                yield from _products(data, *graphs[-1], path.parent)
        except (ValueError, OSError) as error:
            raise BadInputError(f"{path} is no intact ONNX file: {error}") from error


def _products(data: Buffer, start: int, end: int, folder: Path) -> Iterator[Product]:
    weights: dict[str, _Weights] = {}
    rounded: set[str] = set()
    nodes = []
    for number, first, last in messages(data, start, end):
        if number == _INITIALIZER:
            tensor = _tensor(data, first, last)
            weights[tensor.name] = _Weights(tensor)
        elif number == _NODE:
            nodes.append(_node(data, first, last))
    for node in nodes:
        if node.constant is not None:
            weights.update({name: _Weights(node.constant) for name in node.outputs})
        elif node.kind in {"QuantizeLinear", "DynamicQuantizeLinear"}:
            rounded.update(node.outputs)
        elif node.kind in _MOVES and node.inputs:
            _follow(node, weights, rounded)
        elif (found := _weights_of(node, weights, rounded)) is not None:
            yield _product(node, _codes(data, found, folder))


def _follow(node: _Node, weights: dict[str, _Weights], rounded: set[str]) -> None:
    """Carry weights and rounded data through a node that moves them."""
    source = node.inputs[0]
    if source in rounded:
        rounded.update(node.outputs)
    held = weights.get(source)
    if held is None or len(held.tensor.dims) < 2:
        return
    if node.kind in {"DequantizeLinear", "Identity"}:
        weights.update(dict.fromkeys(node.outputs, held))
    elif node.kind == "Transpose" and held.turned is None:
        rank = len(held.tensor.dims)
        turned = tuple(node.integers.get("perm") or reversed(range(rank)))
        if sorted(turned) == list(range(rank)):
            weights.update(dict.fromkeys(node.outputs, _Weights(held.tensor, turned)))


def _weights_of(node: _Node, weights: Mapping[str, _Weights], rounded: set[str]) -> _Weights | None:
    """Return the int8 weights that a node multiplies rounded data by; None of all other nodes."""
    index = _INTEGER_PRODUCTS.get(node.kind)
    if index is None and (node.kind not in _PRODUCTS or not node.inputs or node.inputs[0] not in rounded):
        return None
    position = 1 if index is None else index
    held = weights.get(node.inputs[position]) if len(node.inputs) > position else None
    if held is None or held.tensor.kind != _INT8 or len(held.tensor.dims) < 2:
        return None
    return held


def _product(node: _Node, codes: NDArray[np.int8]) -> Product:
    name = node.outputs[0] if node.outputs else node.kind
    if "Conv" in node.kind:
        return Product(name, codes, 0, 1, node.integer("group", 1))
    last = codes.ndim - 1
    turned = "Gemm" in node.kind and bool(node.integer("transB", 0))
    return Product(name, codes, last - 1 if turned else last, last if turned else last - 1)


def _codes(data: Buffer, weights: _Weights, folder: Path) -> NDArray[np.int8]:
    """Return the values of int8 weights. Raises ValueError where they don't fit their shape."""
    tensor = weights.tensor
    count = math.prod(tensor.dims)
    if tensor.external:
        found = _outside(tensor, folder, count)
    elif tensor.raw is not None:
        found = np.frombuffer(data[tensor.raw[0] : tensor.raw[1]], np.int8)
    else:
        values = (one for wire, first, last in tensor.packed for one in _integers(data, wire, first, last))
        found = np.fromiter((value & 0xFF for value in values), np.uint8).view(np.int8)
    if len(found) != count:
        raise ValueError(f"{tensor.name[:40]!r} has {len(found)} values for the shape {tensor.dims[:8]}")
    codes = found.reshape(tensor.dims)
    return codes if weights.turned is None else codes.transpose(weights.turned)


def _outside(tensor: _Tensor, folder: Path, count: int) -> NDArray[np.int8]:
    """Read values beside the file; that they lie in its folder was checked before."""
    file, offset = folder / tensor.external.get("location", ""), tensor.external.get("offset", "0")
    if not offset.isdecimal() or int(offset) + count > file.stat().st_size:
        raise ValueError(f"{count} bytes of {tensor.name[:40]!r} at {offset[:40]!r} lie beyond the end of {file.name}")
    with file.open("rb") as stream:
        stream.seek(int(offset))
        return np.fromfile(stream, np.int8, count)


def _tensor(data: Buffer, start: int, end: int) -> _Tensor:
    found = _Tensor()
    for number, wire, first, last in fields(data, start, end):
        if number == _NAME and wire == LENGTH:
            found.name = data[first:last].decode("utf-8")
        elif number == _DATA_TYPE and wire == VARINT:
            found.kind = first
        elif number == _DIMS:
            found.dims += _integers(data, wire, first, last)
        elif number == _RAW_DATA and wire == LENGTH:
            found.raw = (first, last)
        elif number == _INT32_DATA:
            found.packed.append((wire, first, last))
        elif number == _EXTERNAL and wire == LENGTH:
            entry = {key: data[a:b].decode("utf-8") for key, a, b in messages(data, first, last)}
            found.external[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    return found


def _node(data: Buffer, start: int, end: int) -> _Node:
    found = _Node()
    texts: Mapping[int, Callable[[str], None]] = {_INPUTS: found.inputs.append, _OUTPUTS: found.outputs.append}
    for number, first, last in messages(data, start, end):
        if number in texts:
            texts[number](data[first:last].decode("utf-8"))
        elif number == _OP_TYPE:
            found.kind = data[first:last].decode("utf-8")
        elif number == _ATTRIBUTE:
            _attribute(data, first, last, found)
    if found.kind != "Constant":
        found.constant = None
    return found


def _attribute(data: Buffer, start: int, end: int, into: _Node) -> None:
    name, integers = "", list[int]()
    for number, wire, first, last in fields(data, start, end):
        if number == _ATTRIBUTE_NAME and wire == LENGTH:
            name = data[first:last].decode("utf-8")
        elif number in {_INTEGER, _INTEGERS}:
            integers += _integers(data, wire, first, last)
        elif number == _TENSOR and wire == LENGTH:
            into.constant = _tensor(data, first, last)
    into.integers[name] = integers


def _integers(data: Buffer, wire: int, first: int, last: int) -> Iterator[int]:
    """Yield the numbers of a field, one or packed."""
    if wire == VARINT:
        yield first
        return
    while first < last:
        value, first = varint(data, first, last)
        yield value
