"""Comparing graphs: interfaces by name, outputs by number, on inputs that every run draws alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as make
import pytest
from onnx import TensorProto, numpy_helper

from deploykit.artifact import FileRecord
from deploykit.bundle import save_tensors
from deploykit.errors import InternalError, UnsupportedError
from deploykit.export import equal, onnx_files
from deploykit.export.stage import TENSORS, Item


def graph(scale: float = 2.0, output: str = "y", shape: tuple[int | str, ...] = ("batch", 3, 9, 5)) -> onnx.ModelProto:
    """y = x * scale."""
    factor = numpy_helper.from_array(np.array([scale], np.float32), "factor")
    sides = [make.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", output)]
    built = make.make_graph([make.make_node("Mul", ["x", "factor"], [output])], "g", sides[:1], sides[1:], [factor])
    return make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


INPUTS = {"x": np.random.default_rng(0).standard_normal((3, 3, 9, 5), np.float32)}


def test_the_first_golden_inputs_are_compared(tmp_path: Path) -> None:
    save_tensors(tmp_path / TENSORS, {"x": np.arange(12, dtype=np.float32).reshape(6, 2)})
    item = Item("tensors", tmp_path, (FileRecord.of(tmp_path, TENSORS),))
    assert equal.probe(item)["x"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("after", [graph(output="z"), graph(shape=("rows", 3, 9, 5)), graph(shape=(1, 3, 9, 5))])
def test_another_interface_is_refused(after: onnx.ModelProto) -> None:
    with pytest.raises(InternalError, match=r"doing this changed the (in|out)puts from"):
        equal.check_interface(graph(), after, "doing this")


def test_what_nothing_was_said_of_may_be_told() -> None:
    """An output without a shape, or a dimension without a name or a size, may have one afterwards; never the other way."""
    told, silent, nameless = graph(), graph(), graph()
    silent.graph.output[0].type.tensor_type.ClearField("shape")
    nameless.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    for before in (silent, nameless):
        equal.check_interface(before, told, "doing this")
        with pytest.raises(InternalError, match="changed the outputs"):
            equal.check_interface(told, before, "doing this")


def test_sequences_are_refused() -> None:
    sequence = graph()
    sequence.graph.output[0].CopyFrom(make.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1]))
    with pytest.raises(UnsupportedError, match="'y' is a sequence_type, no tensor"):
        equal.check_interface(sequence, sequence, "doing this")


def test_the_same_interface_is_none_of_the_weights_business() -> None:
    equal.check_interface(graph(2.0), graph(3.0), "doing this")


@pytest.mark.parametrize("shape", [("batch", 3, 9, 5), (2, 3, 1, 1), (4, 7), ("batch", 6, 8)])
def test_a_changed_output_is_measured(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    onnx_files.save(graph(2.0, shape=shape), tmp_path / "a.onnx")
    onnx_files.save(graph(2.0002, shape=shape), tmp_path / "b.onnx")
    inputs = {"x": np.random.default_rng(0).standard_normal((3, *shape[1:]), np.float32)}  # type: ignore[arg-type]
    assert equal.difference(tmp_path / "a.onnx", tmp_path / "b.onnx", inputs).relative_max == pytest.approx(
        1e-4, rel=0.01
    )
    assert equal.difference(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs).relative_max == 0.0


def detector(scale: float = 1.0, *, keep: float = -9.0) -> onnx.ModelProto:
    """boxes [15, 3] = x in another shape, the last one scaled; found: those above `keep`."""
    constants = {"s": np.array([15, 3]), "k": np.ones((15, 1), np.float32), "z": np.array(keep, np.float32)}
    constants["k"][-1] = scale
    nodes = [
        make.make_node("Reshape", ["x", "s"], ["r"]),
        make.make_node("Mul", ["r", "k"], ["boxes"]),
        make.make_node("Greater", ["boxes", "z"], ["above"]),
        make.make_node("NonZero", ["above"], ["found"]),
    ]
    value = make.make_tensor_value_info
    built = make.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 3, 5])],
        [value("boxes", TensorProto.FLOAT, [15, 3]), value("found", TensorProto.INT64, [2, "n"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


def test_rows_of_an_output_without_a_batch_are_all_compared(tmp_path: Path) -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 3, 3, 5), np.float32)}
    onnx_files.save(detector(), tmp_path / "a.onnx")
    onnx_files.save(detector(1.5), tmp_path / "b.onnx")
    onnx_files.save(detector(keep=0.0), tmp_path / "c.onnx")
    assert equal.check_outputs(tmp_path / "a.onnx", tmp_path / "a.onnx", inputs, "doing this") == 0.0
    with pytest.raises(InternalError, match=r"doing this changed output 'boxes' by .* \(relative max; at most 1e-05\)"):
        equal.check_outputs(tmp_path / "a.onnx", tmp_path / "b.onnx", inputs, "doing this")
    told = r"doing this changed the outputs: output 'found': shapes differ: reference \[2, 45\], candidate \[2, \d+\]"
    with pytest.raises(InternalError, match=told):
        equal.check_outputs(tmp_path / "a.onnx", tmp_path / "c.onnx", inputs, "doing this")


@pytest.mark.parametrize("scale", [2.0001, float("nan")])
def test_a_difference_beyond_rounding_is_refused(tmp_path: Path, scale: float) -> None:
    onnx_files.save(graph(2.0), tmp_path / "a.onnx")
    onnx_files.save(graph(scale), tmp_path / "b.onnx")
    with pytest.raises(InternalError, match=r"doing this changed output 'y' by .* \(relative max; at most 1e-05\)"):
        equal.check_outputs(tmp_path / "a.onnx", tmp_path / "b.onnx", INPUTS, "doing this")


def test_a_difference_of_rounding_is_told(tmp_path: Path) -> None:
    onnx_files.save(graph(2.0), tmp_path / "a.onnx")
    onnx_files.save(graph(2.000001), tmp_path / "b.onnx")
    found = equal.check_outputs(tmp_path / "a.onnx", tmp_path / "b.onnx", INPUTS, "doing this")
    assert found == pytest.approx(5e-7, rel=0.1)
