"""Queries, keys and values of one layer: found however they are cut, balanced exactly, rounded by one grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.export.cast_support import Array, hub, item, model, node
from tests.unit.export.quantize.test_stage import (
    ATTENTION,
    ATTENTION_WEIGHTS,
    JOINED,
    JOINED_WEIGHTS,
    TOKENS,
    WIDTH,
    options,
    rounded_tensors,
)

from deploykit.artifact import EXACT, RunConfig
from deploykit.calibration.ranges import RangeTable
from deploykit.export import onnx_files, provenance
from deploykit.export.quantize import attention, smooth
from deploykit.export.quantize.attention import Joint, joints_of
from deploykit.export.quantize.placement import Question
from deploykit.export.quantize.stage import QuantizeOptions, quantize
from deploykit.export.ranges import measure
from deploykit.export.rewrites.linears import linear_of
from deploykit.export.stage import Item
from deploykit.runtime import drift, processors
from deploykit.runtime.backends.base import get_backend

RNG = np.random.default_rng(5)
ROWS = RNG.standard_normal((12, 1, TOKENS, WIDTH)).astype(np.float32)
OPENVINO = options("openvino")
GRAPHS = {"timm": (ATTENTION, ATTENTION_WEIGHTS), "split": (JOINED, JOINED_WEIGHTS)}


def uneven(weights: dict[str, Array]) -> dict[str, Array]:
    """Return weights by which queries are far larger than keys, two of their channels above all, and values far smaller."""
    scale = np.repeat([20.0, 0.05, 0.01], WIDTH).astype(np.float32)
    scale[[3, 9]] *= 5
    scale[[WIDTH + 3, WIDTH + 9]] /= 5
    made = {**weights, "qkv.weight": weights["qkv.weight"] * scale, "proj.weight": weights["proj.weight"] * 100}
    return {**made, "qkv.bias": weights["qkv.bias"] * scale} if "qkv.bias" in weights else made


def graph_of(kind: str, folder: Path) -> Item:
    nodes, weights = GRAPHS[kind]
    return hub(model(nodes, uneven(weights), (1, TOKENS, WIDTH)), folder)


def joints(nodes: list[object], weights: dict[str, Array]) -> list[Joint]:
    graph = ir.serde.deserialize_model(model(nodes, weights, (1, TOKENS, WIDTH))).graph
    return list(joints_of([one for one in graph if one.op_type == "MatMul" and linear_of(one) is None]))


def table_of(graph: Item, folder: Path) -> RangeTable:
    folder.mkdir()
    seen = measure(graph.path(onnx_files.MODEL), ({"x": row} for row in ROWS), folder)
    return RangeTable(graph.digest, "images", len(ROWS), {name: one.range() for name, one in seen.items()})


def balanced(graph: Item, folder: Path) -> Item:
    (folder / "made").mkdir(parents=True)
    table = table_of(graph, folder / "table")
    loaded = ir.load(graph.path(onnx_files.MODEL))
    done = smooth.rewrite(table, 0.0, Question(OPENVINO.recipe, OPENVINO.placement, {})).apply(loaded)
    assert done.places == 1
    onnx_files.write(loaded, folder / "made")
    provenance.write(folder / "made" / onnx_files.MODULES, {})
    return item("graph", folder / "made")


def rounded(graph: Item, chosen: QuantizeOptions, folder: Path) -> Item:
    (folder / "made").mkdir(parents=True)
    table = table_of(graph, folder / "table")
    loaded = ir.load(graph.path(onnx_files.MODEL))
    quantize(loaded, table, {}, chosen)
    onnx_files.write(loaded, folder / "made")
    return item("graph", folder / "made")


def answers(graph: Item, backend: str = "onnxruntime") -> Array:
    """Return what a graph answers; in ONNX Runtime by its own arithmetic, in OpenVINO by the processor's kernels."""
    arithmetic = EXACT if backend == "onnxruntime" else None
    config = RunConfig(backend, precision="f32", threads=1, arithmetic=arithmetic)
    with get_backend(backend).open(str(graph.path(onnx_files.MODEL)), config) as session:
        return np.concatenate([session.infer({"x": row})["y"] for row in ROWS])


def test_channels_that_meet_are_known_by_number() -> None:
    for nodes, weights in GRAPHS.values():
        (found,) = joints(nodes, weights)
        numbers = np.arange(WIDTH)
        assert np.array_equal(found.queries, numbers)
        assert np.array_equal(found.keys, WIDTH + numbers)
        assert np.array_equal(found.values, 2 * WIDTH + numbers)
        assert found.taker.node.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("at", "others"),
    [
        (JOINED[3], [node("LayerNormalization", "k,gamma", "kn"), node("Reshape", "kn,whole", "k1")]),
        (JOINED[8], [node("MatMul", "shares,v", "mixed0"), node("Add", "mixed0,v", "mixed")]),
        (JOINED[9], [node("Relu", "mixed", "m"), node("MatMul", "m,proj.weight", "y")]),
        (JOINED[9], [node("MatMul", "mixed,proj.weight", "y0"), node("Add", "y0,mixed", "y")]),
        (JOINED[5], [node("Softmax", "q", "soft"), node("MatMul", "soft,keys", "scores")]),
        (JOINED[4], [node("Transpose", "k1", "keys0", perm=[0, 2, 1]), node("Mul", "keys0,half", "keys")]),
    ],
    ids=["keys normalized", "values added", "relu", "two takers", "queries changed", "keys scaled"],
)
def test_what_is_more_than_attention_is_left_alone(at: object, others: list[object]) -> None:
    index = JOINED.index(at)
    weights = {**JOINED_WEIGHTS, "gamma": np.ones(WIDTH, np.float32)}
    assert joints([*JOINED[:index], *others, *JOINED[index + 1 :]], weights) == []


@pytest.mark.parametrize("kind", GRAPHS)
def test_balancing_is_exact_and_makes_all_three_as_large(kind: str, tmp_path: Path) -> None:
    graph = graph_of(kind, tmp_path / "graph")
    made = balanced(graph, tmp_path / "balanced")
    assert drift.relative_max(answers(graph), answers(made)) < 2e-6
    before, after = (_absmax(one, tmp_path / name) for one, name in ((graph, "before"), (made, "after")))
    assert before[0].max() > 1e3 * before[2].max()
    assert np.allclose(after[0], after[1], rtol=1e-5)
    assert np.isclose(after[2].max(), after[0].max(), rtol=1e-5)
    assert np.allclose(after[2] / after[2].max(), before[2] / before[2].max(), rtol=1e-5)


def _absmax(graph: Item, folder: Path) -> Array:
    """Return the largest magnitude of each channel of queries, keys and values: [3, WIDTH]."""
    table = table_of(graph, folder)
    (joint,) = joints_in(graph)
    return attention.absmax_of(joint.layer, table).reshape(3, WIDTH)


def joints_in(graph: Item) -> tuple[Joint, ...]:
    loaded = ir.load(graph.path(onnx_files.MODEL)).graph
    return smooth.joints(loaded, Question(OPENVINO.recipe, OPENVINO.placement, {}))


@pytest.mark.parametrize("kind", GRAPHS)
def test_one_grid_for_a_balanced_layer_costs_no_more_than_three(kind: str, tmp_path: Path) -> None:
    graph = graph_of(kind, tmp_path / "graph")
    apart = replace(OPENVINO, placement=replace(OPENVINO.placement, joint=False))
    whole = balanced(graph, tmp_path / "balanced")
    found = {
        "three grids": rounded(graph, apart, tmp_path / "three"),
        "one grid": rounded(whole, OPENVINO, tmp_path / "one"),
        "unbalanced": rounded(graph, OPENVINO, tmp_path / "unbalanced"),
    }
    wanted = answers(graph)
    sqnr = {name: drift.sqnr_db(wanted, answers(one)) for name, one in found.items()}
    assert sqnr["one grid"] > sqnr["three grids"]
    assert sqnr["unbalanced"] < sqnr["one grid"] - 20.0
    # Weights are coarse enough for pairs of 16 bits; of products of two activations neither factor is.
    lost = 4.0 if processors.here().saturates else 3.0
    assert drift.sqnr_db(wanted, answers(found["one grid"], "openvino")) > sqnr["one grid"] - lost


def test_the_layer_is_rounded_before_it_is_cut_and_only_where_all_of_it_is(tmp_path: Path) -> None:
    graph = hub(model(JOINED, JOINED_WEIGHTS, (1, TOKENS, WIDTH)), tmp_path / "graph")
    assert rounded_tensors(graph, OPENVINO, tmp_path / "all") == ["biased", "mixed", "shares", "x"]
    kept = replace(OPENVINO, kept=("scores",))
    assert rounded_tensors(graph, kept, tmp_path / "kept") == ["mixed", "shares", "v", "x"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 2.0**60, width=32, allow_subnormal=False), min_size=3 * WIDTH, max_size=3 * WIDTH))
def test_factors_cancel_and_stay_within_reach(absmax: list[float]) -> None:
    (joint,) = joints(JOINED, JOINED_WEIGHTS)
    made = attention.factors(joint, np.asarray(absmax))
    assert np.all((made >= 1 / attention.REACH) & (made <= attention.REACH))
    assert np.allclose(made[joint.queries] * made[joint.keys], 1.0, rtol=1e-12)
    assert len(set(made[joint.values])) == 1
