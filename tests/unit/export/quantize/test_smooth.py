"""Smoothing on small graphs: exact in float, a cure for outlying channels in 8 bits, and off where it doesn't help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.export.cast_support import Array, hub, item, model, node, table_of
from tests.unit.export.quantize.test_stage import options

from deploykit.artifact import Preprocess
from deploykit.bundle import save_tensors
from deploykit.export import onnx_files, provenance
from deploykit.export.calibrate import INPUTS
from deploykit.export.quantize import attention, cost, smooth
from deploykit.export.ranges import FROM_IMAGES, RangesOptions
from deploykit.export.stage import TENSORS, Item, Workspace
from deploykit.runtime import drift

CHANNELS, TOKENS, IMAGES = 16, 6, 12
RNG = np.random.default_rng(11)
RECIPE = Preprocess((CHANNELS, TOKENS, CHANNELS), "bicubic", 1.0, "center", (0.0,) * CHANNELS, (1.0,) * CHANNELS)
ROWS = cost.RowsOptions("x", RECIPE, IMAGES)
NODES = [
    node("LayerNormalization", "x,scale,bias", "n", axis=-1),
    node("Reshape", "n,flat", "r"),
    node("Gemm", "r,fc1.weight,fc1.bias", "h"),
    node("Relu", "h", "a"),
    node("Gemm", "a,fc2.weight", "y"),
]
MODULES = {"n": "norm", "r": "norm", "h": "mlp.fc1", "a": "mlp.act", "y": "mlp.fc2"}


def weights(outlier: float) -> dict[str, Array]:
    """Return weights of which two channels of the norm are `outlier` times as large, and what takes them as much smaller."""
    scale, fc1 = np.ones(CHANNELS, np.float32), RNG.standard_normal((CHANNELS, 24)).astype(np.float32) / 4
    scale[[2, 9]] *= outlier
    fc1[[2, 9]] /= outlier
    return {
        "scale": scale,
        "bias": RNG.standard_normal(CHANNELS).astype(np.float32) / 8,
        "flat": np.asarray([TOKENS, CHANNELS], np.int64),
        "fc1.weight": fc1,
        "fc1.bias": RNG.standard_normal(24).astype(np.float32) / 4,
        "fc2.weight": RNG.standard_normal((24, 8)).astype(np.float32) / 5,
    }


def given_items(folder: Path, outlier: float) -> dict[str, Item]:
    graph = hub(model(NODES, weights(outlier), (1, TOKENS, CHANNELS)), folder / "graph", MODULES)
    made = {"graph": graph}
    for name in ("golden", "images"):
        (folder / name).mkdir()
        rows = RNG.standard_normal((IMAGES, TOKENS, CHANNELS)).astype(np.float32)
        if name == "golden":
            save_tensors(folder / name / TENSORS, {"x": rows})
        else:
            np.save(folder / name / INPUTS, rows)
        made[name] = item({"golden": "tensors", "images": "images"}[name], folder / name, {})
    ranges = folder / "ranges"
    ranges.mkdir()
    work = Workspace(ranges, lambda _done, _total: None)
    FROM_IMAGES.run({"graph": graph, "images": made["images"]}, RangesOptions("x", RECIPE), work)
    return {**made, "ranges": item("ranges", ranges, {})}


def smoothed(inputs: dict[str, Item], folder: Path, *strengths: float) -> Item:
    folder.mkdir()
    chosen = smooth.SmoothOptions(strengths, options("onnxruntime"), ROWS)
    facts = smooth.STAGE.run(inputs, chosen, Workspace(folder, lambda _done, _total: None))
    return item("graph", folder, facts)


def outputs(graph: Item, inputs: dict[str, Item]) -> Array:
    return cost.run(str(graph.path(onnx_files.MODEL)), cost.rows_of(inputs, ROWS))["y"]


def test_outlying_channels_are_cured_and_nothing_changes_in_float(tmp_path: Path) -> None:
    inputs = given_items(tmp_path, outlier=200.0)
    made = smoothed(inputs, tmp_path / "smoothed", 0.5, 0.8)
    errors = made.facts["errors"]
    assert made.facts["norms"] == 1
    assert made.facts["strength"] > 0.0
    assert errors[f"{made.facts['strength']:g}"] == min(errors.values()) < errors["off"] / 50
    assert drift.relative_max(outputs(inputs["graph"], inputs), outputs(made, inputs)) < 1e-6
    assert set(provenance.read(made.path(onnx_files.MODULES)).values()) == set(MODULES.values())


def test_where_none_of_the_strengths_helps_the_graph_is_handed_on_byte_by_byte(tmp_path: Path) -> None:
    inputs = given_items(tmp_path, outlier=1.0)
    made = smoothed(inputs, tmp_path / "smoothed")
    assert made.facts["strength"] == 0.0
    assert made.digest == inputs["graph"].digest


def test_a_graph_without_norms_is_not_tried_at_all(tmp_path: Path) -> None:
    inputs = given_items(tmp_path, outlier=1.0)
    plain = model([node("MatMul", "x,w", "y")], {"w": np.eye(CHANNELS, dtype=np.float32)}, (1, TOKENS, CHANNELS))
    graph = hub(plain, tmp_path / "plain", {"y": "fc"})
    table = table_of(graph, tmp_path / "table", {})
    made = smoothed({**inputs, "graph": graph, "ranges": table}, tmp_path / "smoothed", 0.5)
    assert (made.facts["norms"], made.facts["errors"], made.digest) == (0, {}, graph.digest)


@pytest.mark.parametrize(
    "others",
    [
        [node("Add", "n,x", "z")],
        [node("Transpose", "n", "t", perm=[0, 2, 1]), node("MatMul", "t,other", "z")],
        [node("Mul", "x,n", "z")],
    ],
)
def test_a_norm_that_something_else_takes_too_stays_as_it_is(others: list[object]) -> None:
    arrays = {**weights(1.0), "other": np.ones((TOKENS, 4), np.float32)}
    graph = ir.serde.deserialize_model(model([*NODES, *others], arrays, (1, TOKENS, CHANNELS))).graph
    assert list(smooth.norms_of(graph)) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.0, 2.0**100, width=32, allow_subnormal=False), min_size=CHANNELS, max_size=CHANNELS),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1e6),
)
def test_factors_are_positive_and_stay_within_reach(absmax: list[float], strength: float, outlier: float) -> None:
    graph = ir.serde.deserialize_model(model(NODES, weights(max(outlier, 1e-3)), (1, TOKENS, CHANNELS))).graph
    (norm,) = smooth.norms_of(graph)
    made = smooth.factors(norm, np.asarray(absmax, np.float32), strength)
    assert np.all((made >= 1 / attention.REACH) & (made <= attention.REACH))
    assert np.all(made[np.asarray(absmax) == 0.0] == 1.0)
