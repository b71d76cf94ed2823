"""What precision a file holds is read from its graph, whatever it says of itself."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import BadInputError
from deploykit.runtime.backends import contents, onnx_contents
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.backends.contents import Operation
from deploykit.verdict import GRADES

Node: TypeAlias = onnx.NodeProto
Constants: TypeAlias = Mapping[str, NDArray[Any]]
SIZE = 32
W = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
ZEROS, ONE = np.zeros((SIZE, SIZE), np.int8), np.asarray(1, np.float32)
SCALES = np.full(SIZE, 0.01, np.float32)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> Node:
    made: Node = helper.make_node(kind, inputs, [output], **attributes)
    return made


def save(path: Path, nodes: Sequence[Node], constants: Mapping[str, NDArray[Any]], **metadata: str) -> Path:
    """Write a graph from "x" to "y"."""
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, SIZE]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def product(weights: str, data: str = "x", to: str = "y") -> Node:
    return node("MatMul", [data, weights], to)


def dequantized(axis: int = 1) -> Node:
    return node("DequantizeLinear", ["w8", "scales"], "w", axis=axis)


def rounded(source: str = "x", to: str = "x_dq") -> list[Node]:
    return [
        node("QuantizeLinear", [source, "one", "zero"], f"{to}_q"),
        node("DequantizeLinear", [f"{to}_q", "one", "zero"], to),
    ]


ROUNDING: Constants = {"one": ONE, "zero": np.asarray(128, np.uint8)}
EIGHT: Constants = {"w8": ZEROS + 1, "scales": SCALES}
GRAPHS: Mapping[str, tuple[str, list[Node], Constants]] = {
    "plain": ("f32", [product("w")], {"w": W}),
    "no weights": ("f32", [node("Relu", ["x"], "y")], {}),
    "half, between casts": (
        "f16",
        [node("Cast", ["w16"], "w", to=TensorProto.FLOAT), product("w")],
        {"w16": W.astype(np.float16)},
    ),
    "rounded to half on the way": (
        "f16",
        [
            node("Cast", ["w"], "w16", to=TensorProto.FLOAT16),
            node("Cast", ["x"], "x16", to=TensorProto.FLOAT16),
            product("w16", "x16", "y16"),
            node("Cast", ["y16"], "y", to=TensorProto.FLOAT),
        ],
        {"w": W},
    ),
    "bfloat16": (
        "bf16",
        [node("Cast", ["wb"], "w", to=TensorProto.FLOAT), product("w")],
        {"wb": W.astype(ml_dtypes.bfloat16)},
    ),
    "steps and scales": (
        "int8-weights",
        [
            node("Cast", ["w8"], "steps", to=TensorProto.FLOAT),
            node("Mul", ["steps", "scales"], "w"),
            product("w"),
        ],
        EIGHT,
    ),
    "int8 weights alone": ("int8-weights", [dequantized(), product("w")], EIGHT),
    "int8": ("int8", [dequantized(), *rounded(), product("w", "x_dq")], {**EIGHT, **ROUNDING}),
    "int8 with moves between": (
        "int8",
        [
            dequantized(),
            *rounded(),
            node("Transpose", ["x_dq"], "turned", perm=[1, 0]),
            node("Transpose", ["turned"], "back", perm=[1, 0]),
            product("w", "back"),
        ],
        {**EIGHT, **ROUNDING},
    ),
    "float32 weights that are rounded in the graph": (
        "int8",
        [*rounded(), *rounded("w", "w_dq"), product("w_dq", "x_dq")],
        {"w": W, **ROUNDING},
    ),
    "an activation that was computed with since": (
        "int8-weights",
        [dequantized(), *rounded(), node("Sigmoid", ["x_dq"], "s"), product("w", "s")],
        {**EIGHT, **ROUNDING},
    ),
    "16 bits are no 8": (
        "f32",
        [
            node("QuantizeLinear", ["x", "one", "zero"], "q"),
            node("DequantizeLinear", ["q", "one", "zero"], "d"),
            product("w", "d"),
        ],
        {"w": W, "one": ONE, "zero": np.asarray(0, np.uint16)},
    ),
    "a constant in a node": (
        "int8-weights",
        [
            helper.make_node("Constant", [], ["w8"], value=numpy_helper.from_array(ZEROS + 1)),
            dequantized(),
            product("w"),
        ],
        {"scales": SCALES},
    ),
    "transposed": (
        "int8-weights",
        [dequantized(), node("Transpose", ["w"], "t", perm=[1, 0]), product("t")],
        EIGHT,
    ),
    # Whose only business is to look coarse:
    "int8 that nobody uses": ("f32", [product("w")], {"w": W, "dummy": np.ones((512, 512), np.int8)}),
    "int8 that leads nowhere": (
        "f32",
        [product("plain"), dequantized(), product("w", "x", "dead")],
        {"plain": W, **EIGHT},
    ),
    "int8 zeros added to float32": (
        "f32",
        [
            node("Cast", ["w8"], "zeros", to=TensorProto.FLOAT),
            node("Add", ["plain", "zeros"], "w"),
            product("w"),
        ],
        {"plain": W, "w8": ZEROS},
    ),
    "one small int8 layer of many": (
        "f32",
        [
            node("DequantizeLinear", ["few", "one"], "small"),
            node("Mul", ["x", "one"], "x1"),
            product("first", "x1", "h"),
            node("Split", ["h"], "part", num_outputs=1),
            node("Slice", ["part", "begin", "end", "axes"], "narrow"),
            product("small", "narrow", "k"),
            node("Concat", ["k", "k"], "wide", axis=1),
            product("last", "wide"),
        ],
        {
            "few": np.ones((2, SIZE // 2), np.int8),
            "one": ONE,
            "first": W,
            "last": W,
            "begin": np.asarray([0]),
            "end": np.asarray([2]),
            "axes": np.asarray([1]),
        },
    ),
}
#: OpenVINO can't read these from ONNX, or folds them while reading.
ONNX_ONLY = {"int8 that leads nowhere", "16 bits are no 8", "int8 zeros added to float32"}


@pytest.mark.parametrize("name", GRAPHS)
def test_an_onnx_file_holds_what_carries_its_weights(tmp_path: Path, name: str) -> None:
    grade, nodes, constants = GRAPHS[name]
    path = save(tmp_path / "m.onnx", nodes, constants, **{"deploykit.precision": "fp8"})
    assert onnx_contents.held(path) == grade
    assert {get_backend(one).held(str(path)) for one in ("onnxruntime", "openvino", "emulator")} == {grade}


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in ONNX_ONLY])
def test_an_ir_of_it_holds_the_same(tmp_path: Path, name: str) -> None:
    import openvino

    grade, nodes, constants = GRAPHS[name]
    model = openvino.Core().read_model(str(save(tmp_path / "m.onnx", nodes, constants)))
    model.set_rt_info("fp8", ["deploykit", "precision"])
    openvino.save_model(model, str(tmp_path / "m.xml"), compress_to_fp16=False)
    assert get_backend("openvino").held(str(tmp_path / "m.xml")) == grade


def test_an_ir_that_is_saved_in_half_is_half(tmp_path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(str(save(tmp_path / "m.onnx", *GRAPHS["plain"][1:])))
    openvino.save_model(model, str(tmp_path / "m.xml"), compress_to_fp16=True)
    assert get_backend("openvino").held(str(tmp_path / "m.xml")) == "f16"


@pytest.mark.parametrize("form", ["dynamic", "QDQ", "QOperator"])
def test_what_onnx_runtime_quantizes_is_int8(tmp_path: Path, form: str) -> None:
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        rows = iter([{"x": np.ones((2, SIZE), np.float32)}] * 2)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.rows, None)

    source, made = save(tmp_path / "m.onnx", *GRAPHS["plain"][1:]), tmp_path / "q.onnx"
    if form == "dynamic":
        ort.quantize_dynamic(source, made)
    else:
        ort.quantize_static(source, made, Reader(), quant_format=ort.QuantFormat[form])
    assert onnx_contents.held(made) == "int8"


def test_weights_beside_the_graph_count_as_those_inside(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [dequantized(), product("w")], EIGHT)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert onnx_contents.held(path) == "int8-weights"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["cut", "flip"]))
def test_a_damaged_file_is_told_or_read(seed: int, damage: str) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "m.onnx", *GRAPHS["int8"][1:])
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        if damage == "cut":
            del data[place:]
        else:
            data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert onnx_contents.held(path) in {"f32", "f16", "bf16", "int8-weights", "int8", "fp8"}
        except BadInputError as error:
            assert str(path) in error.message  # noqa: PT017 - either is right


@given(st.lists(st.tuples(st.integers(1, 10**6), st.sampled_from(["f32", "f16", "int8-weights", "fp8"])), min_size=1))
def test_no_file_is_coarser_than_a_tenth_of_its_weights(layers: list[tuple[int, str]]) -> None:
    names = [f"w{index}" for index in range(len(layers))]
    constants = [Operation((), (name,), values, grade) for name, (values, grade) in zip(names, layers, strict=True)]
    products = [Operation(("x", name), (f"y{name}",), multiplies=True) for name in names]
    found = contents.held([*constants, *products], [f"y{name}" for name in names])
    order: Callable[[str], int] = GRADES.index
    total = sum(values for values, _ in layers)
    as_coarse = sum(values for values, grade in layers if order(grade) >= order(found))
    assert as_coarse >= contents.LEAST_SHARE * total or found == "f32"
    coarser = sum(values for values, grade in layers if order(grade) > order(found))
    assert coarser < contents.LEAST_SHARE * total
