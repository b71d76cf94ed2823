"""Ranges measured inside a graph: an open batch changes nothing of what is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.helper as make
import onnxruntime
import pytest
from onnx import TensorProto
from tests.unit.export.cast_support import Array, hub, model, node, random

from deploykit.calibration.ranges import RangeTable
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files
from deploykit.export.ranges import SAMPLES, measure, watch

WEIGHTS: dict[str, Array] = {
    "kernel": random(1, 256, 4, 3, 3, scale=0.3),
    "rows": np.array([0, -1], np.int64),
    "matrix": random(2, 256, 5),
}
NODES = [
    node("Conv", "x,kernel", "a", pads=[1, 1, 1, 1]),
    node("GlobalAveragePool", "a", "b"),
    node("Reshape", "b,rows", "c"),
    node("Gemm", "c,matrix", "y"),
]


def test_an_open_batch_is_sampled_as_a_batch_of_one_is(tmp_path: Path) -> None:
    feeds = [{"x": random(seed, 1, 4, 8, 8)} for seed in range(3)]
    found = {}
    for batch in (1, "batch"):
        graph = hub(model(NODES, WEIGHTS, (batch, 4, 8, 8)), tmp_path / f"graph{batch}")
        (tmp_path / f"run{batch}").mkdir()
        collectors = measure(graph.path(onnx_files.MODEL), feeds, tmp_path / f"run{batch}")
        found[batch] = {name: collector.range() for name, collector in collectors.items()}
    assert list(found[1]) == list(found["batch"]) == ["x", "a", "b", "c", "y"]
    for name, fixed in found[1].items():
        opened = found["batch"][name]
        assert (fixed.min, fixed.max) == (opened.min, opened.max)
        np.testing.assert_array_equal(fixed.histogram, opened.histogram)
    assert np.count_nonzero(found["batch"]["c"].histogram) > 100, "of 256 values three times over, not of a few"


def test_small_tensors_are_taken_whole_and_large_ones_in_part() -> None:
    steps = {entry.name: entry.step for entry in watch(model(NODES, WEIGHTS, ("batch", 4, 8, 8)))}
    assert steps["c"] == steps["b"] == steps["y"] == 1
    assert steps["a"] is not None
    assert steps["a"] > 8


@pytest.mark.parametrize(
    ("height", "least", "most"),
    [
        (1, 32, 32),
        (100, 3200, 3200),
        (352, 1024, 1024),
        (1952, 1024, 1024),
        (4096, SAMPLES // 2, 2 * SAMPLES),
        (40960, SAMPLES // 2, 2 * SAMPLES),
    ],
)
def test_of_a_tensor_whose_size_is_open_all_is_taken_while_that_is_little(height: int, least: int, most: int) -> None:
    made = model([node("Relu", "x", "y")], {}, (1, 4, "height", 8))
    assert [(entry.name, entry.step) for entry in watch(made)] == [("x", None), ("y", None)]
    session = onnxruntime.InferenceSession(made.SerializeToString())
    values = np.random.default_rng(1).standard_normal((1, 4, height, 8)).astype(np.float32)
    (told,) = session.run(None, {"x": values})
    low, high, count = told[:3]
    assert (low, high) == (values.min(), values.max())
    assert least <= count <= most
    assert len(told) == 2 * (3 + count)
    assert np.isin(told[3 : 3 + int(count)], values).all()


def test_what_lies_behind_a_group_norm_is_looked_at_too() -> None:
    made = model([node("Identity", "x", "norm"), node("Relu", "norm", "y")], {"ones": np.ones(4, np.float32)}, opset=21)
    made.graph.node[0].CopyFrom(node("GroupNormalization", "x,ones,ones", "norm", num_groups=2))
    before = [entry.SerializeToString() for entry in made.graph.node]
    inferred = onnx_files.with_one_row(made)
    assert [entry.SerializeToString() for entry in inferred.graph.node] == before, "no node has changed"
    assert [entry.name for entry in watch(made)] == ["x", "norm", "y"]


def test_a_graph_without_floating_tensors_has_no_ranges(tmp_path: Path) -> None:
    value = [make.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in "xy"]
    graph = make.make_graph([node("Abs", "x", "y")], "g", value[:1], value[1:])
    whole = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    onnx_files.save(whole, tmp_path / onnx_files.MODEL)
    assert measure(tmp_path / onnx_files.MODEL, [{"x": np.array([1, -2])}], tmp_path) == {}
    RangeTable("g", "i", 1, {}).save(tmp_path / "ranges.npz")
    assert RangeTable.load(tmp_path / "ranges.npz").tensors == {}


@pytest.mark.parametrize(("domain", "version"), [("", 9), ("ai.onnx.ml", 3)])
def test_an_old_opset_is_refused(domain: str, version: int) -> None:
    graph = make.make_graph([], "g", [make.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [])
    old = make.make_model(graph, opset_imports=[make.make_opsetid(domain, version)], ir_version=8)
    with pytest.raises(UnsupportedError, match="opset 10 and above"):
        watch(old)
