"""Exact arithmetic of graphs in 8 bits, beside numpy's integers, where integer kernels may saturate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from deploykit.artifact import EXACT, RunConfig
from deploykit.errors import UnsupportedError, UsageError
from deploykit.runtime import processors
from deploykit.runtime.backends.base import backend_names, get_backend

Array = NDArray[Any]
KERNELS = RunConfig("onnxruntime", precision="f32", threads=1)
ARITHMETIC = RunConfig("onnxruntime", precision="f32", threads=1, arithmetic=EXACT)
RNG = np.random.default_rng(0)
ROWS, INNER, OUTER = 20, 64, 32
#: Near the ends of their ranges and of one sign: every pair of products is beyond 16 bits.
UNSIGNED = RNG.integers(150, 256, (ROWS, INNER)).astype(np.uint8)
SIGNED = (UNSIGNED.astype(np.int16) - 128).astype(np.int8)
WEIGHTS = RNG.integers(90, 128, (INNER, OUTER)).astype(np.int8)
IMAGES = RNG.integers(150, 256, (1, 16, 7, 7)).astype(np.uint8)
KERNEL = RNG.integers(90, 128, (OUTER, 16, 3, 3)).astype(np.int8)
DATA_SCALE, WEIGHT_SCALE = np.float32(0.01), np.float32(0.02)


def product(data: Array, weights: Array) -> Array:
    wide: Array = data.astype(np.int64) @ weights.astype(np.int64)
    return wide


def convolution(data: Array, kernel: Array) -> Array:
    windows = sliding_window_view(data.astype(np.int64), (3, 3), axis=(2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, kernel.astype(np.int64)))


@dataclass(frozen=True)
class Case:
    """A node, what it is fed, and its integer answer before it is scaled.

    `scaled` nodes are given scales and zero points; their answer has 8 bits, of type `kind`.
    """

    operator: str
    data: Array
    weights: Array
    answer: Array
    scaled: bool = True
    fed: bool = False
    kind: type[np.integer[Any]] = np.uint8
    inputs: Sequence[str] = field(default=("x", "x.s", "x.z", "w", "w.s", "w.z", "y.s", "y.z"))

    @property
    def scale(self) -> np.float32:
        """The scale of its answer."""
        most = np.abs(self.answer).max() * float(DATA_SCALE) * float(WEIGHT_SCALE)
        return np.float32(most / np.iinfo(self.kind).max)

    @property
    def expected(self) -> Array:
        """What it has to answer."""
        if not self.scaled:
            return self.answer
        limits = np.iinfo(self.kind)
        steps = np.rint(self.answer * float(DATA_SCALE) * float(WEIGHT_SCALE) / float(self.scale))
        return np.clip(steps, limits.min, limits.max)

    @property
    def constants(self) -> dict[str, Array]:
        axis = 0 if "Conv" in self.operator else 1
        count = self.weights.shape[axis] if not self.fed else 1
        made: dict[str, Array] = {
            "x.s": np.asarray(DATA_SCALE),
            "x.z": np.zeros((), self.data.dtype),
            "w.s": np.full(count, WEIGHT_SCALE, np.float32),
            "w.z": np.zeros(count, self.weights.dtype),
            "y.s": np.asarray(self.scale),
            "y.z": np.zeros((), self.kind),
        }
        return {
            **({name: made[name] for name in made if name in self.inputs}),
            **({} if self.fed else {"w": self.weights}),
        }


CASES = {
    "QLinearMatMul": Case("QLinearMatMul", UNSIGNED, WEIGHTS, product(UNSIGNED, WEIGHTS)),
    "QLinearMatMul of two activations": Case("QLinearMatMul", UNSIGNED, WEIGHTS, product(UNSIGNED, WEIGHTS), fed=True),
    "QLinearMatMul of signed data": Case("QLinearMatMul", SIGNED, WEIGHTS, product(SIGNED, WEIGHTS), kind=np.int8),
    "QLinearConv": Case("QLinearConv", IMAGES, KERNEL, convolution(IMAGES, KERNEL)),
    "MatMulInteger": Case(
        "MatMulInteger", UNSIGNED, WEIGHTS, product(UNSIGNED, WEIGHTS), scaled=False, inputs=("x", "w")
    ),
    "MatMulInteger with zero points": Case(
        "MatMulInteger", UNSIGNED, WEIGHTS, product(UNSIGNED, WEIGHTS), scaled=False, inputs=("x", "w", "x.z", "w.z")
    ),
    "ConvInteger": Case("ConvInteger", IMAGES, KERNEL, convolution(IMAGES, KERNEL), scaled=False, inputs=("x", "w")),
}


def saved(
    folder: Path, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], constants: Mapping[str, Array], kind: int
) -> Path:
    def value(name: str, array: Array) -> onnx.ValueInfoProto:
        return make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    graph = make.make_graph(
        list(nodes),
        "g",
        [value(name, array) for name, array in feeds.items()],
        [make.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "net.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9), path)
    return path


def answers(path: Path, feeds: Mapping[str, Array], config: RunConfig) -> Array:
    with get_backend(config.backend).open(str(path), config) as session:
        return session.infer(dict(feeds))["y"]


@pytest.mark.parametrize("name", CASES)
def test_integer_operators_answer_as_numpy_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    feeds = {"x": case.data, **({"w": case.weights} if case.fed else {})}
    kind = make.np_dtype_to_tensor_dtype(np.dtype(case.kind if case.scaled else np.int32))
    nodes = [make.make_node(case.operator, list(case.inputs), ["y"])]
    found = answers(saved(tmp_path, nodes, feeds, case.constants, kind), feeds, ARITHMETIC)
    assert np.array_equal(found, case.expected)


QDQ = [
    make.make_node("QuantizeLinear", ["x", "x.s", "x.z"], ["x.q"]),
    make.make_node("DequantizeLinear", ["x.q", "x.s", "x.z"], ["x.d"]),
    make.make_node("DequantizeLinear", ["w", "w.s", "w.z"], ["w.d"], axis=1),
    make.make_node("MatMul", ["x.d", "w.d"], ["m"]),
    make.make_node("QuantizeLinear", ["m", "y.s", "y.z"], ["y.q"]),
    make.make_node("DequantizeLinear", ["y.q", "y.s", "y.z"], ["y"]),
]


@pytest.mark.parametrize("signed", [False, True])
def test_between_q_and_dq_all_is_float(signed: bool, tmp_path: Path) -> None:
    """Stock, ONNX Runtime makes an integer product of it, and turns signed activations into unsigned ones for that."""
    codes = SIGNED if signed else UNSIGNED
    zero = -100 if signed else 0
    wide = product(codes.astype(np.int64) - zero, WEIGHTS)
    case = Case("QLinearMatMul", codes, WEIGHTS, wide, kind=np.int8 if signed else np.uint8)
    constants = {**case.constants, "x.z": np.asarray(zero, codes.dtype)}
    feeds = {"x": ((codes.astype(np.int64) - zero) * DATA_SCALE).astype(np.float32)}
    path = saved(tmp_path, QDQ, feeds, constants, TensorProto.FLOAT)
    expected = case.expected * float(case.scale)
    steps = np.abs(answers(path, feeds, ARITHMETIC) - expected) / float(case.scale)
    assert steps.max() < 1.01, "half a step is rounded either way"
    assert np.mean(steps > 0.01) < 0.01
    lost = np.abs(answers(path, feeds, KERNELS) - expected).max() / expected.max()
    assert (lost > 0.1) == processors.here().saturates


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    case = CASES["QLinearMatMul"]
    feeds = {"x": case.data}
    path = saved(
        tmp_path, [make.make_node(case.operator, list(case.inputs), ["y"])], feeds, case.constants, TensorProto.UINT8
    )
    onnx.save_model(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
        convert_attribute=False,
    )
    assert (tmp_path / "net.data").stat().st_size >= WEIGHTS.size
    assert np.array_equal(answers(path, feeds, ARITHMETIC), case.expected)


def test_the_arithmetic_is_part_of_the_label_and_refused_where_there_is_none(tmp_path: Path) -> None:
    assert ARITHMETIC.label == "onnxruntime cpu f32 exact arithmetic 1 threads"
    assert "session.disable_quant_qdq" in get_backend("onnxruntime").code("net.onnx", ARITHMETIC)
    for name in set(backend_names()) - {"onnxruntime"}:
        with pytest.raises(UsageError, match="has no arithmetic 'exact'"):
            get_backend(name).open(str(tmp_path / "net.onnx"), RunConfig(name, arithmetic=EXACT))
    path = saved(
        tmp_path, [make.make_node("Relu", ["x"], ["y"])], {"x": np.zeros((1, 2), np.float32)}, {}, TensorProto.FLOAT
    )
    with pytest.raises(UnsupportedError, match="exact arithmetic is computed on the CPU"):
        get_backend("onnxruntime")._open(str(path), RunConfig("onnxruntime", device="cuda:0", arithmetic=EXACT))
