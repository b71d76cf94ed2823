"""A graph made wrong on purpose: where, how, and what is seen of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import FileRecord
from deploykit.bundle import save_tensors
from deploykit.errors import UnsupportedError
from deploykit.export import injected_faults, onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.reference import OutputsOptions
from deploykit.export.stage import TENSORS, Item, Workspace
from deploykit.models import sources
from deploykit.runtime import power
from deploykit.runtime.backends.base import Layer
from deploykit.runtime.batches import ask
from deploykit.runtime.power import BIASED, DOUBLED, SCALED, SHIFTED, SWAPPED, ZEROED, InjectedFault

RANDOM = np.random.default_rng(0)


def network(offset: float = 0.0, *, rows: int | str = 1, depth: int = 14) -> onnx.ModelProto:
    """Return a chain of convolutions with a head, whose answers lie `offset` away from nought."""
    weights = [RANDOM.standard_normal((4, 3 if not k else 4, 1, 1)).astype(np.float32) for k in range(depth)]
    tensors = [numpy_helper.from_array(weight, f"w{k}") for k, weight in enumerate(weights)]
    tensors += [numpy_helper.from_array(np.full(4, 0.1, np.float32), f"b{k}") for k in range(depth)]
    tensors += [numpy_helper.from_array(RANDOM.standard_normal((5, 4)).astype(np.float32), "head")]
    tensors += [numpy_helper.from_array(np.full(5, offset, np.float32), "offset")]
    nodes = [
        helper.make_node("Conv", [f"x{k}" if k else "input", f"w{k}", f"b{k}"], [f"x{k + 1}"]) for k in range(depth)
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{depth}"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "offset"], ["logits"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, [rows, 3, 4, 4])],
        [value("logits", TensorProto.FLOAT, [rows, 5])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def item(root: Path, kind: str, name: str) -> Item:
    return Item(kind, root, (FileRecord.of(root, name),))


def measure(tmp_path: Path, model: onnx.ModelProto) -> tuple[InjectedFault, ...]:
    """Run the stage on a graph."""
    folders = {name: tmp_path / name for name in ("graph", "golden", "outputs", "made")}
    for folder in folders.values():
        folder.mkdir()
    onnx_files.save(model, folders["graph"] / onnx_files.MODEL)
    inputs = {"input": RANDOM.standard_normal((8, 3, 4, 4)).astype(np.float32)}
    with open_graph(folders["graph"] / onnx_files.MODEL) as session:
        rows = [session.infer({"input": inputs["input"][k : k + 1]})["logits"] for k in range(8)]
    save_tensors(folders["golden"] / TENSORS, inputs)
    save_tensors(folders["outputs"] / TENSORS, {"logits": np.concatenate(rows)})
    given = {
        "graph": item(folders["graph"], "graph", onnx_files.MODEL),
        "golden": item(folders["golden"], "tensors", TENSORS),
        "outputs": item(folders["outputs"], "tensors", TENSORS),
    }
    injected_faults.STAGE.run(given, OutputsOptions(1), Workspace(folders["made"], lambda _done, _total: None))
    assert [path.name for path in folders["made"].iterdir()] == [power.FILE]
    return power.load_faults(folders["made"] / power.FILE)


def test_faults_are_spread_over_the_depth_and_of_every_kind() -> None:
    layers = injected_faults.layers_of(network())
    assert [layer.weight for layer in layers] == [*(f"w{k}" for k in range(14)), "head"]
    assert layers[0] == Layer("w0", 0, "b0")
    assert layers[-1] == Layer("head", 0, "offset")
    changes = list(injected_faults.changes_of(layers))
    scaled = [change.tensor for change in changes if change.kind == SCALED]
    assert len(scaled) == injected_faults.LAYERS
    assert (scaled[0], scaled[-1]) == ("w0", "head")
    assert {change.kind for change in changes} == set(power.KINDS)
    assert [change.tensor for change in changes if change.kind == SWAPPED] == ["head"]
    assert all(change.tensor.startswith(("b", "offset")) for change in changes if change.kind == BIASED)


def test_a_graph_without_weights_has_no_faults() -> None:
    assert list(injected_faults.changes_of(())) == []


def test_output_channels_of_each_operator() -> None:
    tensors = [numpy_helper.from_array(np.ones((2, 3), np.float32), name) for name in ("m", "g")]
    tensors += [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "t")]
    tensors += [
        numpy_helper.from_array(np.ones((2, 3), np.int64), "int"),
        numpy_helper.from_array(np.ones((), np.float32), "s"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["a"]),
        helper.make_node("MatMul", ["a", "m"], ["again"]),
        helper.make_node("Gemm", ["x", "g"], ["b"]),
        helper.make_node("ConvTranspose", ["x", "t"], ["c"]),
        helper.make_node("MatMul", ["x", "int"], ["d"]),
        helper.make_node("MatMul", ["x", "s"], ["e"]),
        helper.make_node("MatMul", ["x", "y"], ["f"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))
    assert injected_faults.layers_of(model) == (
        Layer("m", -1, ""),
        Layer("g", 1, ""),
        Layer("t", 1, ""),
    )


def test_each_change_changes_what_it_says() -> None:
    values = RANDOM.standard_normal((4, 3)).astype(np.float32)
    before = values.copy()
    change = injected_faults.CHANGES
    assert np.array_equal(change[SCALED](values, 0), values * np.float32(1.05))
    assert np.array_equal(change[SHIFTED](values, 1)[:, 1:], values[:, :-1])
    assert not change[ZEROED](values, 1)[:, 1].any()
    assert (change[ZEROED](values, 1) == values).sum() == 8
    assert (change[DOUBLED](values, 0) != values).sum() == 1
    assert np.array_equal(change[SWAPPED](values, 0)[[0, 3]], values[[3, 0]])
    assert change[BIASED](values[:, 0], 0)[2] == pytest.approx(values[2, 0] + 0.1)
    assert np.array_equal(values, before)


def test_faults_of_a_network_are_measured_on_its_own_answers(tmp_path: Path) -> None:
    found = measure(tmp_path, network())
    assert len(found) == len(list(injected_faults.changes_of(injected_faults.layers_of(network()))))
    scaled = [fault.sqnr_db for fault in found if fault.kind == SCALED]
    assert np.median(scaled) == pytest.approx(26, abs=8)  # 20 log10(1 / 0.05), against what answers vary by
    assert all(fault.relative_max > 1e-3 for fault in found if fault.kind == SHIFTED)
    assert {gate.verdict.value for gate in power.power_gates(found, power.NOTICEABLE)} == {"pass"}


def test_an_offset_hides_no_fault(tmp_path: Path) -> None:
    found = measure(tmp_path, network(offset=1000.0))
    scaled = [fault for fault in found if fault.kind == SCALED and fault.tensor != "head"]
    assert power.detected(scaled, power.NOTICEABLE) == 1.0


def test_dead_layers_show_no_fault(tmp_path: Path) -> None:
    model = network()
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "w13")
    head.CopyFrom(numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "w13"))
    found = measure(tmp_path, model)
    inputs, _ = power.power_gates(found, power.NOTICEABLE)
    assert inputs.verdict.value == "inconclusive"


def test_an_original_is_made_wrong_and_put_right_again() -> None:
    with sources.open_original(sources.resolve("tiny-convnext")) as session:
        layers = session.layers()
        names = {name for layer in layers for name in (layer.weight, layer.bias) if name}
        before = session.weights(names)
        inputs = {"input": RANDOM.standard_normal((4, 3, 64, 64)).astype(np.float32)}
        outputs = ask(session, inputs, 2).arranged()
        faults = injected_faults.faults_of_session(session, inputs, outputs, 2)
        after = session.weights(names)
        again = ask(session, inputs, 2).arranged()
    assert {fault.kind for fault in faults} == {SCALED, SHIFTED, ZEROED, DOUBLED, BIASED, SWAPPED}
    assert len({fault.tensor for fault in faults}) >= injected_faults.LAYERS
    assert all(np.array_equal(before[name], after[name]) for name in names)
    assert all(np.array_equal(outputs[name], again[name]) for name in outputs)
    assert power.detected([fault for fault in faults if fault.kind == SHIFTED], power.NOTICEABLE) > 0.9


def test_an_original_whose_weights_are_put_back_though_it_fails() -> None:
    with sources.open_original(sources.resolve("tiny-convnext")) as session:
        (first, *_) = session.layers()
        before = session.weights({first.weight})[first.weight]
        feeds = {"input": np.zeros((1, 3, 64, 64), np.float32)}
        with pytest.raises(RuntimeError):
            session.infer_with(feeds, {first.weight: np.zeros((1, 2), np.float32)})
        assert np.array_equal(session.weights({first.weight})[first.weight], before)


def test_a_graph_that_is_an_original_shows_no_weights(tmp_path: Path) -> None:
    onnx_files.save(network(), tmp_path / onnx_files.MODEL)
    with open_graph(tmp_path / onnx_files.MODEL) as session:
        assert session.layers() == ()
        assert injected_faults.faults_of_session(session, {}, {}, 1) == ()
        with pytest.raises(UnsupportedError, match=r"can't run with other weights: \['w0'\]"):
            session.infer_with({}, {"w0": np.zeros(1, np.float32)})
