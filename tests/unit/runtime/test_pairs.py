"""Weights that may saturate are found in a file itself, on any machine, by whatever quantizer it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import BadInputError
from deploykit.runtime.pairs import MOST_PAIR, Excess, excess_of, note
from deploykit.runtime.saturation import FILE

RNG = np.random.default_rng(0)
FULL = np.full((16, 8), 127, np.int8)
FITTING = np.full((16, 8), MOST_PAIR // 2, np.int8)
ROUNDED = [
    helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x8"]),
    helper.make_node("DequantizeLinear", ["x8", "one", "zero"], ["xd"]),
]
FIXED: Mapping[str, NDArray[Any]] = {"one": np.asarray(0.01, np.float32), "zero": np.asarray(0, np.uint8)}


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, NDArray[Any]], shape: Sequence[int] = (4, 16)
) -> Path:
    """Write a graph from "x" to "y"."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in {**FIXED, **constants}.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def weights(codes: NDArray[np.int8], channels: int, axis: int) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    held: dict[str, NDArray[Any]] = {
        "w8": codes,
        "w.scales": np.full(channels, 0.1, np.float32),
        "w.zeros": np.zeros(channels, np.int8),
    }
    return [helper.make_node("DequantizeLinear", [*held], ["w"], axis=axis)], held


def product(path: Path, codes: NDArray[np.int8], *, data: str = "xd") -> Path:
    dequantized, held = weights(codes, codes.shape[1], 1)
    return save(path, [*ROUNDED, *dequantized, helper.make_node("MatMul", [data, "w"], ["y"])], held)


def kernel(path: Path, codes: NDArray[np.int8], group: int = 1) -> Path:
    dequantized, held = weights(codes, len(codes), 0)
    node = helper.make_node("Conv", ["xd", "w"], ["y"], group=group)
    return save(path, [*ROUNDED, *dequantized, node], held, (1, codes.shape[1] * group, 8, 8))


def converted(path: Path) -> Path:
    """Return the same network as an OpenVINO IR."""
    made = path.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(str(path)), str(made), compress_to_fp16=False)
    return made


def both(path: Path) -> list[Excess]:
    return [
        excess_of("onnxruntime", str(path)),
        excess_of("openvino", str(path)),
        excess_of("openvino", str(converted(path))),
    ]


def test_a_damaged_file_is_bad_input(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", FULL)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInputError, match="no intact ONNX file"):
        excess_of("onnxruntime", str(path))


@pytest.mark.parametrize(("dims", "words"), [((16, 9), "128 values"), ((1 << 40, 1 << 40), "128 values")])
def test_weights_of_another_size_than_they_claim_are_bad_input(
    tmp_path: Path, dims: tuple[int, ...], words: str
) -> None:
    path = product(tmp_path / "m.onnx", FULL)
    model = onnx.load(path)
    held = next(one for one in model.graph.initializer if one.name == "w8")
    del held.dims[:]
    held.dims.extend(dims)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match=words):
        excess_of("onnxruntime", str(path))


@pytest.mark.parametrize(("field", "value"), [("offset", "4096"), ("offset", "-8"), ("length", "9")])
def test_weights_beside_the_file_are_read_and_no_further(tmp_path: Path, field: str, value: str) -> None:
    path = product(tmp_path / "m.onnx", FULL)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=64)
    assert excess_of("onnxruntime", str(path)).most == 254
    held = next(one for one in onnx.load(path, load_external_data=False).graph.initializer if one.name == "w8")
    model = onnx.load(path, load_external_data=False)
    held = next(one for one in model.graph.initializer if one.name == "w8")
    for entry in held.external_data:
        entry.value = value if entry.key == field else entry.value
    path.write_bytes(model.SerializeToString())
    if field == "offset":
        with pytest.raises(BadInputError, match=r"lie beyond the end of w\.data"):
            excess_of("onnxruntime", str(path))
    else:
        assert excess_of("onnxruntime", str(path)).most == 254, "the shape says how many there are"


def test_products_convolutions_and_groups_are_found_in_onnx_and_in_an_ir(tmp_path: Path) -> None:
    for codes, most, over in ((FULL, 254, 1), (FITTING, 128, 0)):
        assert {(one.most, one.over, one.layers) for one in both(product(tmp_path / "p.onnx", codes))} == {
            (most, over, 1)
        }
        block = np.broadcast_to(codes[:8, :4, None, None], (8, 4, 3, 3)).copy()
        assert {(one.most, one.over) for one in both(kernel(tmp_path / "c.onnx", block))} == {(most, over)}
        assert {(one.most, one.over) for one in both(kernel(tmp_path / "g.onnx", block, 2))} == {(most, over)}


def test_neighbours_are_told_by_the_layout_of_each_layer(tmp_path: Path) -> None:
    codes = np.zeros((16, 8), np.int8)
    codes[0, :], codes[2, :] = 100, 100  # inputs 0 and 2 are no neighbours
    codes[4, 0], codes[4, 1] = 100, 100  # two outputs are none either
    assert {one.most for one in both(product(tmp_path / "p.onnx", codes))} == {100}
    codes[1, 3] = 90
    assert {one.most for one in both(product(tmp_path / "p.onnx", codes))} == {190}
    dequantized, held = weights(codes.T.copy(), 8, 0)
    turned = helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0])
    path = save(
        tmp_path / "t.onnx", [*ROUNDED, *dequantized, turned, helper.make_node("MatMul", ["xd", "wt"], ["y"])], held
    )
    assert {one.most for one in both(path)} == {190}
    gemm = helper.make_node("Gemm", ["xd", "w"], ["y"], transB=1)
    assert {one.most for one in both(save(tmp_path / "g.onnx", [*ROUNDED, *dequantized, gemm], held))} == {190}


def test_depthwise_kernels_unrounded_data_and_unsigned_weights_are_not(tmp_path: Path) -> None:
    deep = np.full((8, 1, 3, 3), 127, np.int8)
    assert {one.layers for one in both(kernel(tmp_path / "d.onnx", deep, 8))} == {0}
    assert {one.layers for one in both(product(tmp_path / "w.onnx", FULL, data="x"))} == {0}
    held: dict[str, NDArray[Any]] = {
        "w8": np.full((16, 8), 255, np.uint8),
        "w.scales": np.ones(8, np.float32),
        "w.zeros": np.full(8, 128, np.uint8),
    }
    node = helper.make_node("DequantizeLinear", [*held], ["w"], axis=1)
    path = save(tmp_path / "u.onnx", [*ROUNDED, node, helper.make_node("MatMul", ["xd", "w"], ["y"])], held)
    assert excess_of("onnxruntime", str(path)).layers == 0


def test_operators_on_integers_are_looked_into(tmp_path: Path) -> None:
    held: dict[str, NDArray[Any]] = {"w8": FULL, "ws": np.asarray(0.1, np.float32), "wz": np.asarray(0, np.int8)}
    nodes = [
        ROUNDED[0],
        helper.make_node("QLinearMatMul", ["x8", "one", "zero", "w8", "ws", "wz", "one", "zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "one", "zero"], ["y"]),
    ]
    assert excess_of("onnxruntime", str(save(tmp_path / "q.onnx", nodes, held))).most == 254
    dynamic = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w8", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    assert excess_of("onnxruntime", str(save(tmp_path / "d.onnx", dynamic, held))).over == 1


def test_codes_that_are_written_one_by_one_are_read(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", -FULL)
    model = onnx.load(path)
    held = next(one for one in model.graph.initializer if one.name == "w8")
    values = numpy_helper.to_array(held).ravel().tolist()
    held.CopyFrom(helper.make_tensor("w8", TensorProto.INT8, [16, 8], values))
    assert not held.raw_data
    onnx.save(model, path)
    assert excess_of("onnxruntime", str(path)).most == 254


def test_the_note_names_classes_the_worst_layer_and_what_to_do(tmp_path: Path) -> None:
    told = note("net.int8.ort", ("onnxruntime",), str(product(tmp_path / "m.onnx", FULL)))
    assert told.startswith("net.int8.ort may saturate on avx512, avx2, sse4, x86: 1 of its 1 int8 layers")
    assert "(sums to 254, 128 fit, in y)" in told
    assert "session.x64quantprecision=1" in told
    assert "session" not in note("n", ("openvino",), str(converted(product(tmp_path / "o.onnx", FULL))))
    assert note("n", ("onnxruntime",), str(product(tmp_path / "f.onnx", FITTING))) == ""
    assert note("n", ("tensorrt",), "net.engine") == ""


def test_the_probe_of_runtimes_is_a_file_that_saturates() -> None:
    assert excess_of("onnxruntime", str(FILE)).over == 2
