"""The GPU through CUDA's driver, ONNX Runtime's CUDA provider and PyTorch: run, judged, timed. Skipped where there is none."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.backends.clocks import clocks
from deploykit.runtime.backends.onnxruntime_providers import PROVIDERS
from deploykit.verdict import Verdict
from deploykit.workflow.options import VerifyOptions

pytestmark = pytest.mark.gpu


@pytest.fixture
def lane() -> cuda.Lane:
    if reason := cuda.lacking(cuda.FIRST):
        pytest.skip(reason)
    index, _ = cuda.gpu_at(cuda.FIRST)
    return cuda.Lane(cuda.driver(), index)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ONNX files, made without the GPU."""
    if reason := cuda.lacking(cuda.FIRST):
        pytest.skip(reason)
    cells = ("fp32:ort", "fp16:ort", "int8:ort")
    folder = tmp_path_factory.mktemp("made") / "bundle"
    options = deploykit.ExportOptions(cells=cells, out=str(folder), bench=False, repair=False, dynamic=("batch",))
    deploykit.export_model("tiny-convnext", options)
    return folder


@pytest.fixture
def usual(bundle: Path) -> Path:
    """The bundle, where ONNX Runtime has its CUDA provider."""
    run = get_backend("onnxruntime").default_run().on(cuda.FIRST)
    if reason := get_backend("onnxruntime").unavailable(run):
        pytest.skip(reason)
    return bundle


def test_memory_and_time_are_the_gpus(lane: cuda.Lane) -> None:
    sent = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    address = lane.block("x", sent.nbytes)
    with lane.marks(2) as marks:
        marks.set(0)
        lane.upload(sent, address)
        marks.set(1)
        back = lane.download(address, sent.shape, "float32")
        lane.wait()
        assert 0 < marks.milliseconds(0, 1) < 1000
    np.testing.assert_array_equal(back, sent)
    lane.close()


def test_a_captured_copy_copies_what_is_there_when_it_is_launched(lane: cuda.Lane) -> None:
    first, second = (np.full(4096, value, np.float32) for value in (1, 2))
    back = np.zeros(4096, np.float32)
    driver = cuda.driver()
    source, target = lane.block("source", first.nbytes), lane.block("target", first.nbytes)

    def copy() -> None:
        driver.call(
            "cuMemcpyDtoDAsync_v2",
            *(ctypes.c_uint64(one) for one in (target, source)),
            ctypes.c_size_t(first.nbytes),
            ctypes.c_void_p(lane.stream),
        )

    lane.upload(first, source)
    lane.wait()
    graph = lane.capture(copy)
    for sent in (first, second):
        lane.upload(sent, source)
        graph.launch()
        back = lane.download(target, sent.shape, "float32")
        lane.wait()
        np.testing.assert_array_equal(back, sent)
    graph.close()
    lane.close()


def test_clocks_are_told(lane: cuda.Lane) -> None:
    lane.close()
    found = clocks(cuda.FIRST)
    assert found is not None
    assert found.sm_mhz > 0
    assert found.memory_mhz > 0


def test_every_artifact_passes_on_the_gpu(usual: Path) -> None:
    report = deploykit.verify(usual, VerifyOptions(device="cuda"))
    assert {judgement.run.device for judgement in report.judgements} == {"cuda:0"}
    fp32, fp16, int8 = (judgement for judgement in report.judgements if not judgement.run.hints)
    assert fp32.ran is not None
    assert "CUDAExecutionProvider" in fp32.ran.device
    assert (fp32.verdict, fp16.verdict) == (Verdict.PASS, Verdict.PASS)
    assert int8.verdict is Verdict.NOT_RUN, "the provider has no kernels for all of it"
    assert "a part of" in int8.reason


@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_a_further_provider_that_is_here_runs_all_of_a_file_or_says_why_not(provider: str, bundle: Path) -> None:
    run = RunConfig("onnxruntime", device="cuda:0", hints={"provider": provider})
    if reason := get_backend("onnxruntime").unavailable(run):
        pytest.skip(reason)
    report = deploykit.verify(bundle, VerifyOptions(device="cuda"))
    found = [judgement for judgement in report.judgements if judgement.run.hints.get("provider") == provider]
    assert len(found) == 3
    for judgement in found[:2]:
        assert judgement.verdict is Verdict.PASS
        assert judgement.ran is not None
        assert PROVIDERS[provider].name in judgement.ran.device


def test_both_are_timed_on_the_gpu_and_taken_apart(usual: Path) -> None:
    options = deploykit.BenchOptions(rounds=6, burst_ms=10.0, warmup_ms=30.0)
    report = deploykit.bench(usual, options, device="cuda")
    original, *artifacts = [timing for timing in report.timings if not timing.run.hints]
    assert (original.candidate, original.run.device) == ("original", "cuda:0")
    assert len(artifacts) == 2
    assert any("int8" in line for line in report.untimed)
    for timing in report.timings:
        assert timing.gpu is not None
        assert timing.gpu.compute_ms > 0
        assert timing.gpu.clocks is not None
    assert all(timing.speedup is not None for timing in artifacts)


def test_a_node_that_the_provider_cannot_run_is_named_an_error(tmp_path: Path, usual: Path) -> None:
    """Without a word ONNX Runtime would give it to the CPU."""
    make = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Det", ["x"], ["y"])
    sides = [make("x", onnx.TensorProto.FLOAT, [2, 3, 3]), make("y", onnx.TensorProto.FLOAT, [2])]
    graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:])
    path = tmp_path / "det.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    run = RunConfig("onnxruntime", device="cuda:0")
    with pytest.raises(UnsupportedError, match=r"would run a part of .*det\.onnx on the CPU"):
        get_backend("onnxruntime").open(str(path), run)


def test_tf32_is_off_where_f32_is_asked_for_and_told_where_it_is_on(tmp_path: Path, usual: Path) -> None:
    """A product of sums that need more bits than TF32 has."""
    make = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
    shapes = {"a": [512, 512], "b": [512, 512], "c": [512, 512]}
    sides = {name: make(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = onnx.helper.make_graph([node], "g", [sides["a"], sides["b"]], [sides["c"]])
    path = tmp_path / "product.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    draw = np.random.default_rng(1)
    feeds = {name: draw.standard_normal((512, 512)).astype(np.float32) for name in "ab"}
    truth = feeds["a"].astype(np.float64) @ feeds["b"].astype(np.float64)
    errors = {}
    for precision in ("f32", "auto"):
        with get_backend("onnxruntime").open(str(path), RunConfig("onnxruntime", "cuda:0", precision)) as session:
            errors[session.ran.precision] = np.abs(session.infer(feeds)["c"] - truth).max() / np.abs(truth).max()
    assert errors["f32"] < 2e-6
    if "tf32" in errors:
        assert errors["tf32"] > 5e-5
