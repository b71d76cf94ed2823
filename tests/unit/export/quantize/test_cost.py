"""What one layer costs, on small graphs in the real runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.export.cast_support import hub, item, model, node, table_of
from tests.unit.export.quantize.test_stage import MODULES, PLACEMENTS, TOKENS, WIDTH, attention, network, options

from deploykit.artifact import Preprocess, RunConfig
from deploykit.bundle import save_tensors
from deploykit.export import onnx_files
from deploykit.export.calibrate import INPUTS
from deploykit.export.quantize import cost
from deploykit.export.stage import TENSORS, Item, Workspace
from deploykit.runtime.backends.base import get_backend

RECIPE = Preprocess((8, 8, 8), "bicubic", 1.0, "center", (0.0,) * 8, (1.0,) * 8)
ROWS = cost.RowsOptions("x", RECIPE, 5)
GOLDEN = 3


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Item]:
    """A graph with its ranges, golden inputs, images and what it says to them."""
    graph = network(tmp_path / "graph")
    rng = np.random.default_rng(3)
    golden, images, answers = (tmp_path / name for name in ("golden", "images", "answers"))
    for folder in (golden, images, answers):
        folder.mkdir()
    save_tensors(golden / TENSORS, {"x": rng.standard_normal((GOLDEN, 8, 8, 8)).astype(np.float32)})
    np.save(images / INPUTS, rng.standard_normal((9, 8, 8, 8)).astype(np.float32))
    inputs = {
        "graph": graph,
        "golden": item("tensors", golden, {}),
        "images": item("images", images, {}),
        "ranges": table_of(graph, tmp_path / "table", {"b": (0.0, 8.0), "d": (-2.0, 6.0)}, rest=(-8.0, 8.0)),
    }
    facts = cost.answers_stage(with_images=True).run(inputs, ROWS, Workspace(answers, lambda _done, _total: None))
    assert facts["rows"] == GOLDEN + ROWS.images
    return {**inputs, "answers": item("tensors", answers, {})}


def errors_of(given: dict[str, Item], layer: cost.Layer, tmp_path: Path) -> list[float]:
    folder = tmp_path / layer.node
    folder.mkdir()
    chosen = cost.CostOptions(options("onnxruntime"), layer.node, ROWS)
    facts = cost.cost_stage(with_images=True).run(given, chosen, Workspace(folder, lambda _done, _total: None))
    errors = cost.read(item("cost", folder, facts))
    assert facts["error"] == errors.mean()
    return [float(error) for error in errors]


def test_every_layer_has_a_cost_of_its_own_and_nothing_else_is_left_behind(
    given: dict[str, Item], tmp_path: Path
) -> None:
    layers = cost.layers_of(given["graph"], options("onnxruntime"))
    assert [layer.module for layer in layers] == list(MODULES.values())
    costs = [errors_of(given, layer, tmp_path) for layer in layers]
    assert all(0.0 < error < 0.01 for errors in costs for error in errors)
    assert len({tuple(errors) for errors in costs}) == len(layers)
    assert [path.name for path in (tmp_path / layers[0].node).iterdir()] == [cost.COST]


def test_a_layer_that_is_kept_is_none_that_may_go(given: dict[str, Item]) -> None:
    kept = replace(options("onnxruntime"), kept=("a",))
    assert [layer.node for layer in cost.layers_of(given["graph"], kept)] == ["c", "y"]


def test_multiply_adds_are_those_that_the_runtime_counts(given: dict[str, Item]) -> None:
    layers = cost.layers_of(given["graph"], options("onnxruntime"))
    assert [layer.macs for layer in layers] == [8 * 8 * 16 * 8 * 9, 8 * 8 * 16 * 9, 16 * 10]
    config = RunConfig("onnxruntime", precision="f32")
    with get_backend("onnxruntime").open(str(given["graph"].path(onnx_files.MODEL)), config) as session:
        executed = session.executed({"x": np.zeros((1, 8, 8, 8), np.float32)})
    assert [layer.macs for layer in executed] == [layer.macs for layer in layers]


def test_a_product_of_activations_is_a_layer_that_may_go(tmp_path: Path) -> None:
    graph = attention(tmp_path / "graph")
    layers = cost.layers_of(graph, options("openvino"))
    assert [(layer.node, layer.module, layer.macs) for layer in layers] == [
        ("qkv", "", TOKENS * 3 * WIDTH * WIDTH),
        ("scores", "attn", TOKENS * TOKENS * WIDTH),
        ("mixed", "attn", TOKENS * TOKENS * WIDTH),
        ("y", "", TOKENS * WIDTH * WIDTH),
    ]
    assert [layer.node for layer in cost.layers_of(graph, options("onnxruntime"))] == ["qkv", "y"]


def test_the_graph_of_another_table_is_refused(given: dict[str, Item], tmp_path: Path) -> None:
    assert PLACEMENTS["onnxruntime"] is not None
    other = table_of(replace(given["graph"], identity="other"), tmp_path / "other", {}, rest=(-8.0, 8.0))
    layer = cost.layers_of(given["graph"], options("onnxruntime"))[0]
    with pytest.raises(Exception, match="belongs to graph"):
        errors_of({**given, "ranges": other}, layer, tmp_path)


def test_costs_are_those_of_the_graph_where_kernels_would_saturate(tmp_path: Path) -> None:
    """Weights of one sign at the end of their range, bright data: added in pairs of 16 bits, half of each sum is lost."""
    rng = np.random.default_rng(5)
    weight = rng.uniform(0.8, 1.0, (WIDTH, WIDTH)).astype(np.float32) / WIDTH
    graph = hub(
        model([node("MatMul", "x,w", "a"), node("Relu", "a", "y")], {"w": weight}, (1, WIDTH)), tmp_path / "graph"
    )
    golden, answers = tmp_path / "golden", tmp_path / "answers"
    golden.mkdir()
    answers.mkdir()
    save_tensors(golden / TENSORS, {"x": rng.uniform(7.0, 8.0, (GOLDEN, WIDTH)).astype(np.float32)})
    table = table_of(graph, tmp_path / "table", {"x": (0.0, 8.0), "a": (0.0, 8.0)}, rest=(0.0, 8.0))
    given = {"graph": graph, "golden": item("tensors", golden, {}), "ranges": table}
    rows = replace(ROWS, preprocess=None)
    cost.answers_stage(with_images=False).run(given, rows, Workspace(answers, lambda _done, _total: None))
    given |= {"answers": item("tensors", answers, {})}
    whole = options("onnxruntime")
    chosen = replace(whole, placement=replace(whole.placement, pairs=False))
    (layer,) = cost.layers_of(graph, chosen)
    folder = tmp_path / "cost"
    folder.mkdir()
    facts = cost.cost_stage(with_images=False).run(
        given, cost.CostOptions(chosen, layer.node, rows), Workspace(folder, lambda _done, _total: None)
    )
    assert 0.0 < facts["error"] < 1e-4
