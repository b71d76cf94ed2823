"""`--trt-rtx` without a GPU: engines are built, all that can be checked is checked, the rest is said to be not run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploykit.bundle import Bundle
from deploykit.data import rendered
from deploykit.errors import MissingComponentError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.runtime.backends.tensorrt_record import read_engine
from deploykit.verdict import int8_share
from tests.e2e.support import run


def _has_gpu() -> bool:
    try:
        return bool(cuda.driver().gpus)
    except MissingComponentError:
        return False


pytestmark = [
    pytest.mark.skipif(COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"),
    pytest.mark.skipif(_has_gpu(), reason="there is a GPU here"),
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of fp16 and int8 engines with an open batch."""
    out = tmp_path_factory.mktemp("rtx") / "bundle"
    words = ("--fp16", "--int8", "--trt-rtx", "--dynamic", "batch", "--profile", "batch=1,4,8", "--sm", "86,89")
    few = ("--eval-size", "50", "--calib-size", "40", "--no-repair")
    made = run("export", "tiny-dinov2", *words, *few, "--json", "--out", str(out))
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert {entry["verdict"] for entry in told["artifacts"]} == {"not_run"}
    assert len(told["not_run"]) == 2, "each is told once"
    assert all("no NVIDIA driver here" in reason for reason in told["not_run"])
    return out


def test_a_bundle_holds_engines_with_their_records(engines: Path) -> None:
    bundle = Bundle.open(engines)
    bundle.check()
    for artifact in bundle.manifest.artifacts:
        assert [Path(record.path).suffix for record in artifact.files] == [".engine", ".json"]
        record, _ = read_engine(engines / artifact.main.path, RTX)
        assert (record.inputs, record.outputs) == (artifact.inputs, artifact.outputs)
        assert record.source == artifact.parent
        assert record.capabilities == (86, 89)
        assert record.inputs[0].text == "[batch 1..8, 3, 70, 70]"
        stage = next(stage for stage in bundle.manifest.stages if stage.node == artifact.name)
        assert stage.facts["built_by"] == record.built_by
    int8 = next(artifact for artifact in bundle.manifest.artifacts if artifact.precision == "int8")
    facts = next(stage.facts for stage in bundle.manifest.stages if stage.node == int8.name)
    assert facts["layers"]["int8"] == 22, "all but the products of attention"
    record, _ = read_engine(engines / int8.main.path, RTX)
    assert int8_share(record.layers) > 0.95


def test_one_image_can_be_tuned_for_by_itself(tmp_path: Path) -> None:
    words = ("--fp16", "--trt-rtx", "--dynamic", "batch", "--sm", "89", "--no-verify", "--no-bench")
    parts = ("--profile", "batch=1,1,1", "--profile", "batch=2,4,8")
    made = run("export", "tiny-dinov2", *words, *parts, "--out", str(tmp_path / "b"))
    assert made.code == 0, made.err
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.artifacts[0].inputs[0].text == "[batch 1..8, 3, 70, 70]"
    facts = next(stage.facts for stage in manifest.stages if stage.node == manifest.artifacts[0].name)
    assert [profile["input"] for profile in facts["profiles"]] == ["[batch 1..1, 3, 70, 70]", "[batch 2..8, 3, 70, 70]"]


def test_verify_says_what_was_not_run_and_finds_one_wrong_byte(engines: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engines, tmp_path / "copy")
    verified = run("verify", str(copy))
    assert verified.code == 6
    assert "not run: no NVIDIA driver here" in verified.out
    assert verified.out.strip().endswith("0 passed, 2 not run")
    assert run("verify", str(copy), "--allow-not-run").code == 6, "nothing ran, so nothing passed"
    engine = copy / Bundle.open(copy).manifest.artifacts[0].main.path
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(bytes(data))
    assert run("verify", str(copy), "--allow-not-run").code == 7
    opened = run("inspect", str(engine))
    assert opened.code == 7
    assert "its record says" in opened.err


def test_inspect_tells_of_an_engine_that_cannot_be_opened_here(engines: Path, tmp_path: Path) -> None:
    artifacts = Bundle.open(engines).manifest.artifacts
    engine = engines / next(one.main.path for one in artifacts if one.precision == "int8")
    record, _ = read_engine(engine, RTX)
    told = run("inspect", str(engine))
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0].startswith(f"engine  int8 for SM 86, 89, built by TensorRT for RTX {record.built_by} on ")
    for words in (
        record.sha256,
        "profile batch 1 to 8, tuned for 4",
        "22 int8",
        "input   input float32 [batch 1..8, 3, 70, 70]",
        "deploykit.labels  [",
    ):
        assert words in told.out
    assert lines[-1].startswith("not opened here: no NVIDIA driver here")
    found = json.loads(run("inspect", str(engine), "--json").out)
    assert (found["ran"], found["record"]["capabilities"]) == (None, [86, 89])
    assert found["not_opened"].startswith("no NVIDIA driver here")
    bare = shutil.copy(engine, tmp_path / engine.name)
    assert run("inspect", str(bare)).code == 7, "an engine without its record tells nothing"


def fragile(path: Path) -> Path:
    """Write a network one of whose layers takes channels of very different sizes, which no grid for all of them holds."""
    draw = np.random.default_rng(0)
    sizes = np.ones((16, 1, 1, 1), np.float32)
    sizes[0] = 500
    weights = {
        "first": draw.normal(0, 0.2, (16, 3, 3, 3)),
        "middle": draw.normal(0, 0.1, (16, 16, 3, 3)),
        "spread": draw.normal(0, 0.3, (16, 16, 1, 1)) * sizes,
        "gather": draw.normal(0, 0.3, (16, 16, 1, 1)) / sizes.reshape(1, 16, 1, 1),
        "last": draw.normal(0, 0.1, (16, 16, 3, 3)),
        "head": draw.normal(0, 0.3, (16, 10)),
    }
    shape = {"pads": [1, 1, 1, 1]}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["a"], **shape),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "middle"], ["c"], **shape),
        onnx.helper.make_node("Conv", ["c", "spread"], ["d"]),
        onnx.helper.make_node("Relu", ["d"], ["e"]),
        onnx.helper.make_node("Conv", ["e", "gather"], ["f"]),
        onnx.helper.make_node("Conv", ["f", "last"], ["g"], **shape),
        onnx.helper.make_node("GlobalAveragePool", ["g"], ["h"]),
        onnx.helper.make_node("Flatten", ["h"], ["i"]),
        onnx.helper.make_node("Gemm", ["i", "head"], ["y"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 32, 32])]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 10])]
    constants = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "net", inputs, outputs, constants)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(proto.SerializeToString())
    return path


def test_an_engine_whose_graph_drifts_is_repaired_and_built_anew(tmp_path: Path) -> None:
    images = np.stack([rendered.render("calib", index, 32)[0] for index in range(32)])
    np.save(tmp_path / "images.npy", images)
    words = ("--int8", "--trt-rtx", "--sm", "89", "--calib", str(tmp_path / "images.npy"), "--no-bench")
    out = tmp_path / "bundle"
    made = run("export", str(fragile(tmp_path / "net.onnx")), *words, "--out", str(out))
    assert made.code == 0, made.err
    manifest = Bundle.open(out).manifest
    (artifact,) = manifest.artifacts
    assert artifact.target == "trt-rtx", "the graph that was judged is none of the artifacts"
    assert [judgement.verdict.value for judgement in manifest.judgements] == ["not_run"]
    (repair,) = manifest.repairs or ()
    assert (repair.artifact, repair.given_up, repair.rounds) == (artifact.name, "", 1)
    assert [entry.node for entry in repair.returned] == ["f"]
    assert repair.after is not None
    (before,), (after,) = repair.before.values(), repair.after.values()
    assert before["sqnr_db"] < 15.0 < after["sqnr_db"]
    record, _ = read_engine(out / artifact.main.path, RTX)
    assert Counter(layer.precision for layer in record.layers) == {"int8": 5, "f16": 1}
    assert "1 layer returned to float" in made.out
    assert "its graph in emulator cpu f16" in made.out
    kept = run("export", str(tmp_path / "net.onnx"), *words, "--no-repair", "--out", str(tmp_path / "kept"))
    assert kept.code == 0, kept.err
    (artifact,) = Bundle.open(tmp_path / "kept").manifest.artifacts
    record, _ = read_engine(tmp_path / "kept" / artifact.main.path, RTX)
    assert Counter(layer.precision for layer in record.layers) == {"int8": 6}


def test_bench_has_nothing_to_time(engines: Path) -> None:
    timed = run("bench", str(engines))
    assert timed.code == 5
    assert "nothing of this bundle can be timed here" in timed.err
    assert "no NVIDIA driver here" in timed.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--fp32", "--trt-rtx", "--sm", "75"), 8, "builds no fp32 for SM 75"),
        (("--fp16", "--trt-rtx", "--sm", "90"), 8, "builds no fp16 for SM 90"),
        (("--fp16", "--trt-rtx", "--sm", "8.6"), 2, "without their dots"),
        (("--bf16", "--trt-rtx", "--sm", "75"), 8, "builds no bf16 for SM 75"),
        (("--fp8", "--trt-rtx", "--sm", "86,89"), 8, "builds no fp8 for SM 86"),
        (("--fp8", "--ort"), 8, "no fp8 for ONNX Runtime"),
        (("--fp16", "--ort", "--sm", "86"), 2, "no target of this export is built for chosen GPUs"),
        (("--fp16", "--trt-rtx", "--profile", "batch=1,8,32"), 2, "the axis is not open"),
        (("--fp16", "--trt-rtx", "--dynamic", "batch", "--profile", "batch=1,8"), 2, "write AXIS=MIN,OPT,MAX"),
    ],
)
def test_what_cannot_be_built_is_refused_up_front(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    outcome = run("export", "tiny-dinov2", *words, "--out", str(tmp_path / "b"))
    assert outcome.code == code
    assert message in outcome.err
    assert not (tmp_path / "b").exists()
