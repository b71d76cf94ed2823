"""`--trt --defer` and `deploykit build`: the graph is judged here, the engine is built of it where its GPU is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from deploykit.artifact import FileRecord
from deploykit.bundle import Bundle, BundleWriter, Placement
from deploykit.errors import BadInputError, UsageError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.runtime.backends.tensorrt_record import BuildOrder, read_engine
from deploykit.workflow.build import build, commands
from tests.e2e.support import python, run

needs_rtx = pytest.mark.skipif(
    COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"
)
without_trt = pytest.mark.skipif(COMPONENTS["tensorrt"].version() is not None, reason="TensorRT is installed here")
HEAVY = ("torch", "onnx", "onnxruntime", "timm", "PIL", "scipy")


@pytest.fixture(scope="module")
def deferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an fp16 graph with an open batch, its engine deferred."""
    out = tmp_path_factory.mktemp("deferred") / "bundle"
    words = (
        "--fp16",
        "--trt",
        "--defer",
        "--dynamic",
        "batch",
        "--profile",
        "batch=1,4,8",
        "--no-bench",
        "--no-verify",
        "--json",
    )
    made = run("export", "tiny-dinov2", *words, "--out", str(out))
    assert made.code == 0, made.err
    (entry,) = json.loads(made.out)["artifacts"]
    assert entry["target"] == "trt-graph"
    return out


def rewritten(root: Path, order: BuildOrder) -> None:
    """Let a bundle ask for another engine."""
    bundle = Bundle.open(root)
    artifact = bundle.manifest.artifacts[0]
    path = root.parent / "order.json"
    path.write_bytes(order.to_bytes())
    old = artifact.files[1]
    measured = FileRecord.of(path.parent, path.name)
    record = dataclasses.replace(measured, path=f"other.{old.path}")
    changed = dataclasses.replace(artifact, files=(artifact.main, record))
    manifest = dataclasses.replace(bundle.manifest, artifacts=(changed,)).sealed()
    BundleWriter(root, manifest.source.digest, replace=False).commit([Placement(path, record)], manifest)


@pytest.fixture
def for_rtx(deferred: Path, tmp_path: Path) -> Path:
    """The same bundle, asking for an engine that can be built here."""
    root = shutil.copytree(deferred, tmp_path / "bundle")
    (artifact,) = Bundle.open(root).manifest.artifacts
    order = BuildOrder.read(root / artifact.files[1].path)
    rewritten(root, dataclasses.replace(order, flavour=RTX.module, capabilities=(86, 89)))
    return root


def test_bf16_and_fp8_are_judged_where_they_are_written(tmp_path: Path) -> None:
    words = ("--bf16", "--fp8", "--trt", "--defer", "--no-bench", "--eval-size", "20", "--calib-size", "40")
    made = run("export", "tiny-dinov2", *words, "--json", "--out", str(tmp_path / "bundle"))
    assert made.code == 6, "twenty images can't tell; all else passes"
    judged = {one.artifact.split(".")[1]: one for one in Bundle.open(tmp_path / "bundle").manifest.judgements}
    assert {name: one.ran.precision for name, one in judged.items() if one.ran} == {"bf16": "bf16", "fp8": "f16"}
    for one in judged.values():
        numeric = {
            gate.metric: gate.verdict.value for gate in one.gates if gate.metric in {"finite", "sqnr_db", "cosine"}
        }
        assert numeric == {"finite": "pass", "sqnr_db": "pass", "cosine": "pass"}
    assert judged["bf16"].metrics["sqnr_db"] > judged["fp8"].metrics["sqnr_db"] + 10
    assert any("int8 share" in reason for reason in judged["fp8"].not_run)


@without_trt
def test_without_tensorrt_nothing_is_started_and_the_ways_out_are_named(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--fp16", "--trt", "--out", str(tmp_path / "b"))
    assert outcome.code == 5
    for words in ("TensorRT is not installed here", "--defer", "--trt-rtx"):
        assert words in outcome.err
    assert not (tmp_path / "b").exists()


def test_deferring_what_is_built_here_is_wrong_usage(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--fp16", "--trt-rtx", "--defer", "--out", str(tmp_path / "b"))
    assert outcome.code == 2
    assert "every target of this export is built here" in outcome.err


@without_trt
def test_build_without_tensorrt_changes_nothing(deferred: Path) -> None:
    before = (deferred / "manifest.json").read_bytes()
    outcome = run("build", str(deferred))
    assert outcome.code == 5
    assert "TensorRT is not installed here" in outcome.err
    assert (deferred / "manifest.json").read_bytes() == before


def test_the_line_of_tensorrts_own_tool_builds_the_same(deferred: Path) -> None:
    (line,) = commands(deferred)
    words = line.split()
    assert words[0] == "trtexec"
    assert f"--onnx={deferred / 'tiny-dinov2.fp16.trt.onnx'}" in words
    assert f"--saveEngine={deferred / 'tiny-dinov2.fp16.trt.engine'}" in words
    assert words[-3:] == [
        "--minShapes=input:1x3x70x70",
        "--optShapes=input:4x3x70x70",
        "--maxShapes=input:8x3x70x70",
    ]
    assert run("build", str(deferred), "--dry-run").out.strip() == line


def test_the_graphs_numbers_are_judged_where_it_was_written(deferred: Path) -> None:
    verified = run("verify", str(deferred), "--json")
    assert verified.code == 0, verified.err
    (judged,) = json.loads(verified.out)["judgements"]
    assert (judged["run"]["backend"], judged["ran"]["precision"], judged["verdict"]) == ("emulator", "f16", "pass")


def test_a_bundle_without_orders_is_wrong_usage(bundle: Path) -> None:
    with pytest.raises(UsageError, match="nothing was deferred"):
        build(bundle)


@needs_rtx
def test_an_engine_is_added_to_its_bundle(for_rtx: Path) -> None:
    before = Bundle.open(for_rtx).manifest
    (made,) = build(for_rtx)
    bundle = Bundle.open(for_rtx)
    bundle.check()
    assert [artifact.name for artifact in bundle.manifest.artifacts] == [before.artifacts[0].name, made.name]
    record, plan = read_engine(for_rtx / made.main.path, RTX)
    assert (record.capabilities, record.source, record.inputs) == ((86, 89), made.parent, before.artifacts[0].inputs)
    assert len(plan) == record.size
    assert bundle.manifest.judgements == before.judgements
    stage = bundle.manifest.stages[-1]
    assert (stage.stage, stage.facts["built_by"]) == ("build", record.built_by)
    assert [artifact.name for artifact in build(for_rtx)] == [made.name], "again renews it"
    assert len(Bundle.open(for_rtx).manifest.artifacts) == 2
    verified = run("verify", str(for_rtx))
    assert verified.code == 6
    assert "1 passed, 1 not run" in verified.out


@needs_rtx
def test_the_engine_is_built_without_pytorch_and_onnx(for_rtx: Path) -> None:
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "from deploykit.workflow.build import build\n"
        "print(build(sys.argv[1])[0].name)\n"
    )
    outcome = python("-c", program, str(for_rtx))
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip().startswith("tiny-dinov2.fp16")


@needs_rtx
def test_a_changed_graph_is_not_built(for_rtx: Path) -> None:
    graph = for_rtx / Bundle.open(for_rtx).manifest.artifacts[0].main.path
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(BadInputError, match="SHA-256"):
        build(for_rtx)
    assert len(Bundle.open(for_rtx).manifest.artifacts) == 1


def test_an_order_for_an_unknown_library_is_refused(deferred: Path, tmp_path: Path) -> None:
    root = shutil.copytree(deferred, tmp_path / "bundle")
    (artifact,) = Bundle.open(root).manifest.artifacts
    rewritten(root, dataclasses.replace(BuildOrder.read(root / artifact.files[1].path), flavour="tensorrt_nano"))
    with pytest.raises(UsageError, match="tensorrt_nano"):
        build(root)
