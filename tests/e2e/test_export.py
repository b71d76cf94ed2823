"""The main job, end to end, and what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

import deploykit
from deploykit.bundle import load_tensors
from deploykit.runtime.power import DETECTED, RESOLVED
from tests.e2e.support import python, run
from tests.support import EVAL_SIZE

CELLS = ("fp32:ort", "fp32:openvino")


def test_every_run_passes_against_the_original(exported: deploykit.Exported) -> None:
    judgements = exported.report.judgements
    assert [(j.artifact, j.run.label) for j in judgements] == [
        ("tiny-convnext.fp32.ort", "onnxruntime cpu f32"),
        ("tiny-convnext.fp32.openvino", "openvino cpu f32"),
        ("tiny-convnext.fp32.openvino", "openvino cpu auto"),
    ]
    assert [j.verdict for j in judgements] == [deploykit.Verdict.PASS] * 3
    assert exported.report.not_run == ()
    for judgement in judgements:
        assert judgement.metrics["images"] == EVAL_SIZE
        of_outputs = {gate.reference for gate in judgement.gates if gate.metric not in {RESOLVED, DETECTED}}
        assert of_outputs == {"original", "hub"}
        assert judgement.metrics["detected_misplaced"] == 1.0


def test_float32_runs_do_not_flip_an_answer(exported: deploykit.Exported) -> None:
    for judgement in exported.report.judgements:
        assert judgement.ran is not None
        if judgement.ran.precision == "f32":
            assert judgement.metrics["untied_flips"] == 0
            assert judgement.metrics["relative_max"] <= 1e-4


def test_file_names_tell_model_precision_and_target(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert {"tiny-convnext.fp32.onnx", "tiny-convnext.fp32.openvino.xml", "tiny-convnext.fp32.openvino.bin"} <= names


def test_labels_and_preprocessing_travel_inside_the_files(bundle: Path) -> None:
    original = deploykit.Bundle.open(bundle).manifest
    model = onnx.load(str(bundle / "tiny-convnext.fp32.onnx"))
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert original.preprocess is not None
    assert json.loads(texts["deploykit.labels"]) == list(original.labels)
    assert json.loads(texts["deploykit.preprocess"])["mean"] == list(original.preprocess.mean)
    ir = openvino.Core().read_model(str(bundle / "tiny-convnext.fp32.openvino.xml"))
    assert json.loads(ir.get_rt_info(["deploykit", "labels"]).astype(str)) == list(original.labels)


def test_no_local_path_is_in_any_file(bundle: Path) -> None:
    package = str(Path(deploykit.__file__).parent)
    for path in bundle.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            for needle in (package.encode(), b"site-packages", str(bundle.parent).encode()):
                assert needle not in content, f"{path.name} holds {needle!r}"


def test_every_node_of_the_hub_has_a_module(bundle: Path) -> None:
    model = onnx.load(str(bundle / "tiny-convnext.fp32.onnx"))
    modules = json.loads((bundle / "modules.json").read_text())["nodes"]
    assert {node.output[0] for node in model.graph.node} == set(modules)
    convs = [modules[node.output[0]] for node in model.graph.node if node.op_type == "Conv"]
    assert "stages.0.blocks.0.conv_dw" in convs
    assert len(set(modules.values())) > 40


def test_the_stock_runtime_opens_the_artifact_and_agrees_with_the_golden_outputs(bundle: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bundle / "tiny-convnext.fp32.onnx"), providers=["CPUExecutionProvider"])
    inputs = load_tensors(bundle / "golden/inputs.npz")["input"]
    expected = load_tensors(bundle / "golden/original.npz")["logits"]
    found = np.concatenate([session.run(None, {"input": row[None]})[0] for row in inputs])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_loading_a_bundle_gives_a_session(bundle: Path) -> None:
    with pytest.raises(
        deploykit.DeploykitError, match=r"holds tiny-convnext\.fp32\.ort, tiny-convnext\.fp32\.openvino"
    ):
        deploykit.load(bundle)
    with deploykit.load(bundle, artifact="tiny-convnext.fp32.openvino") as session:
        assert session.ran.precision == "f32"
        logits = session.infer({"input": load_tensors(bundle / "golden/inputs.npz")["input"][:1]})["logits"]
    assert logits.shape == (1, 12)


def test_timings_are_paired_with_the_original(exported: deploykit.Exported) -> None:
    timings = exported.report.timings
    assert [timing.candidate for timing in timings] == ["original", *(j.artifact for j in exported.report.judgements)]
    assert timings[0].speedup is None
    for timing in timings[1:]:
        assert timing.speedup is not None
        assert timing.speedup.lower <= timing.speedup.median <= timing.speedup.upper
        assert timing.min_ms <= timing.median_ms <= timing.p90_ms <= timing.p99_ms


def test_a_second_export_imports_neither_torch_nor_timm(bundle: Path, exported: deploykit.Exported) -> None:
    program = (
        "import sys, deploykit\n"
        "from deploykit import BenchOptions, ExportOptions\n"
        f"options = ExportOptions(cells={CELLS!r}, out={str(bundle)!r}, eval_size={EVAL_SIZE},"
        " bench_options=BenchOptions(rounds=6, burst_ms=10.0, warmup_ms=30.0))\n"
        "exported = deploykit.export_model('tiny-convnext', options)\n"
        "heavy = {'torch', 'timm', 'onnx', 'openvino'} & set(sys.modules)\n"
        "print(exported.report.verdict.value, sorted(heavy), all(s.cached for s in exported.bundle.manifest.stages))\n"
    )
    outcome = python("-c", program)
    assert outcome.out.split(" ", 1)[0] == "pass", outcome.err
    assert "'torch'" not in outcome.out
    assert "'timm'" not in outcome.out
    assert outcome.out.strip().endswith("True")


def test_json_of_an_export_is_one_object(tmp_path: Path) -> None:
    out = tmp_path / "b"
    outcome = run("export", "tiny-convnext", "--ort", "--no-bench", "--eval-size", "200", "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["bundle"] == str(out)
    assert found["verdict"] == "pass"
    (artifact,) = found["artifacts"]
    assert artifact["path"] == str(out / "tiny-convnext.fp32.onnx")
    assert artifact["bytes"] == (out / "tiny-convnext.fp32.onnx").stat().st_size
    assert (artifact["format"], artifact["target"], artifact["precision"]) == ("onnx", "ort", "fp32")
    assert artifact["verdict"] == "pass"
    assert artifact["metrics"]["agreement"] == 1.0


def test_a_dynamic_batch_is_run_at_sizes_off_the_traced_one(tmp_path: Path) -> None:
    options = deploykit.ExportOptions(cells=CELLS, out=str(tmp_path / "b"), dynamic=("batch",), bench=False)
    exported = deploykit.export_model("tiny-convnext", options)
    assert exported.bundle.manifest.axes == {"batch": 2}
    for judgement in exported.report.judgements:
        axes = [gate.metric for gate in judgement.gates if gate.kind.value == "axis"]
        assert axes == ["batch=1", "batch=3", "batch=5", "batch=8"]
        assert judgement.metrics["images"] == 2000, "as many as there is no word of"
        assert judgement.verdict is deploykit.Verdict.PASS
    (spec,) = exported.bundle.manifest.artifacts[0].inputs
    assert spec.text == "[batch 1..256, 3, 64, 64]"


def test_a_static_batch_is_what_was_asked_for(tmp_path: Path) -> None:
    options = deploykit.ExportOptions(cells=("fp32:ort",), out=str(tmp_path / "b"), batch=4, eval_size=200, bench=False)
    exported = deploykit.export_model("tiny-convnext", options)
    assert exported.bundle.manifest.artifacts[0].inputs[0].shape == (4, 3, 64, 64)
    assert exported.report.verdict is deploykit.Verdict.PASS


def test_the_recorded_command_makes_the_bundle_again(tmp_path: Path) -> None:
    first = tmp_path / "first"
    words = ["export", "tiny-convnext", "--openvino", "--no-bench", "--eval-size", "64"]
    assert run(*words, "--out", str(first)).code in {0, 6}
    command = deploykit.Bundle.open(first).manifest.command.split()
    assert command[0] == "deploykit"
    again = [str(tmp_path / "again") if word == str(first) else word for word in command[1:]]
    assert run(*again).code in {0, 6}
    digests = [
        [artifact.digest for artifact in deploykit.Bundle.open(root).manifest.artifacts]
        for root in (first, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
