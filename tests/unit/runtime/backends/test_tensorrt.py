"""Opening and running TensorRT engines: what is refused, in which order and with which exit code; and how one is run."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import (
    BadInputError,
    DeploykitError,
    MissingComponentError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from deploykit.runtime.backends import cuda, tensorrt
from deploykit.runtime.backends.base import Backend, get_backend
from deploykit.runtime.backends.tensorrt_library import NATIVE, RTX, Flavour, plain
from deploykit.runtime.backends.tensorrt_record import SUFFIX, VERSION, EngineRecord, here, read_engine
from deploykit.verdict import PHASES, Executed

from .fake_tensorrt import FINDINGS, Context, Engine, Runtime, Script, module
from .tensorrt_api import recorded

HERE = "1.7.1.116"
ROWS = Axis("batch", 1, 2, 8)
LAYER = Executed("fc", "Gemm", "f16", 9)


def write(folder: Path, flavour: Flavour = RTX, change: Callable[[EngineRecord], EngineRecord] = lambda r: r) -> Path:
    """Write an engine of no meaning with a record that fits, but for `change`."""
    plan = flavour.magic + bytes(20) + bytes([1, 7, 1, 116]) + b"code" * 40
    record = EngineRecord(
        version=VERSION,
        flavour=flavour.module,
        built_by=HERE,
        platform=here(),
        capabilities=(86, 89),
        precision="fp16",
        inputs=(TensorSpec("x", "float32", (ROWS, 3)),),
        outputs=(TensorSpec("y", "float32", (ROWS, 3)),),
        size=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        source="e" * 64,
        texts={"precision": "fp16"},
        layers=(LAYER,),
    )
    path = folder / f"net{flavour.suffixes[0]}"
    path.write_bytes(plan)
    path.with_suffix(SUFFIX).write_bytes(change(record).to_bytes())
    return path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Let the backends find the fake libraries."""
    made = Script()

    def library(flavour: Flavour) -> Any:
        heard = ["IRuntime::deserializeCudaEngine: Error Code 1: Serialization (wrong in some way)"]
        return SimpleNamespace(
            trt=module(made), version=HERE, flavour=flavour, logger=None, listening=lambda: nullcontext(heard)
        )

    monkeypatch.setattr(tensorrt, "library", library)
    component = SimpleNamespace(require=lambda: HERE, version=lambda: HERE, title="TensorRT")
    monkeypatch.setattr(tensorrt.TensorRtBackend, "component", component)
    return made


def opened(path: Path, device: str = "cuda:0", precision: str = "auto", backend: Backend = tensorrt.RTX_BACKEND) -> Any:
    return backend.open(str(path), RunConfig(backend.name, device=device, precision=precision))


# ---- the ladder: nothing of this needs a GPU or a library --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "no engine of TensorRT for RTX: it is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "185 bytes; its record says 188: it was cut"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "SHA-256"),
        (lambda path: path.write_bytes(b"\x08\x0a" + path.read_bytes()), "an ONNX file, it seems"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(b"xxxx" + path.read_bytes()[4:]), "begins with b'xxxx'"),
        (lambda path: path.with_suffix(SUFFIX).unlink(), "no record net.trt-rtx.json beside it"),
        (lambda path: path.with_suffix(SUFFIX).write_text("{"), "is no JSON"),
        (lambda path: path.with_suffix(SUFFIX).write_text("[1]"), "net.trt-rtx.json"),
        (lambda path: path.with_suffix(SUFFIX).write_text('{"version": 2}'), "version 2; this deploykit reads up to 1"),
        (lambda path: path.with_suffix(SUFFIX).write_text('{"version": 1}'), "net.trt-rtx.json"),
    ],
)
def test_a_file_that_is_not_what_was_built_is_never_handed_to_the_library(
    tmp_path: Path, script: Script, change: Callable[[Path], object], words: str
) -> None:
    path = write(tmp_path)
    change(path)
    with pytest.raises(BadInputError, match=words):
        opened(path)
    assert script.calls == []


def test_every_byte_of_an_engine_counts(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(DeploykitError) as caught:
            read_engine(path, RTX)
        assert caught.value.exit_code in {2, 7}


def test_an_engine_of_the_other_library_is_called_by_its_name(tmp_path: Path, script: Script) -> None:
    native = write(tmp_path, NATIVE)
    renamed = native.rename(tmp_path / "net.trt-rtx.engine")
    with pytest.raises(UsageError, match=r"is an engine of TensorRT, not of TensorRT for RTX"):
        opened(renamed)


def test_a_record_of_the_other_library_is_refused(tmp_path: Path, script: Script) -> None:
    path = write(tmp_path, change=lambda record: replace(record, flavour="tensorrt"))
    with pytest.raises(BadInputError, match="speaks of an engine of tensorrt, not of tensorrt_rtx"):
        opened(path)


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8", "f12"])
def test_another_precision_than_the_engines_is_refused(tmp_path: Path, script: Script, precision: str) -> None:
    with pytest.raises(UnsupportedError, match=f"in {precision}, the engine computes in f16"):
        opened(write(tmp_path), precision=precision)


def test_options_that_mean_nothing_here_are_refused(tmp_path: Path, script: Script) -> None:
    path = str(write(tmp_path))
    with pytest.raises(UsageError, match="no threads to choose"):
        tensorrt.RTX_BACKEND.open(path, RunConfig("tensorrt_rtx", device="cuda:0", threads=2))
    with pytest.raises(UsageError, match="takes no hint 'speed': it takes cuda_graph"):
        tensorrt.RTX_BACKEND.open(path, RunConfig("tensorrt_rtx", device="cuda:0", hints={"speed": "1"}))
    with pytest.raises(UsageError, match="cuda_graph can't be 'yes': it matches"):
        tensorrt.RTX_BACKEND.open(path, RunConfig("tensorrt_rtx", device="cuda:0", hints={"cuda_graph": "yes"}))


def test_another_version_of_the_library_is_a_lack_with_the_line_that_mends_it(tmp_path: Path, script: Script) -> None:
    path = write(tmp_path, change=lambda record: replace(record, built_by="1.6.0.1"))
    with pytest.raises(
        MissingComponentError, match=r"built by TensorRT for RTX 1\.6\.0\.1, .*; 1\.7\.1\.116 is here"
    ) as caught:
        opened(path)
    assert caught.value.hints[0].action == "pip install tensorrt-rtx==1.6.0.1"


def test_engines_of_the_native_library_stay_on_their_system(tmp_path: Path, script: Script) -> None:
    change = lambda record: replace(record, platform="Windows AMD64")  # noqa: E731
    with pytest.raises(MissingComponentError, match="built on Windows AMD64 and runs there alone"):
        opened(write(tmp_path, NATIVE, change), backend=tensorrt.BACKEND)
    with pytest.raises(MissingComponentError, match="has no device 'cpu'; it runs on cuda:0"):
        opened(write(tmp_path, RTX, change), device="cpu")


def test_without_a_driver_all_that_a_cpu_can_check_comes_first(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libabsent.so.1")
    path, backend = write(tmp_path), tensorrt.RTX_BACKEND
    with pytest.raises(MissingComponentError, match="no NVIDIA driver here"):
        opened(path)
    config = backend.default_run()
    assert config == RunConfig("tensorrt_rtx", device="cuda:0", precision="auto")
    assert (
        backend.unavailable(config) == backend.place(config) == "no NVIDIA driver here: libabsent.so.1 is not installed"
    )
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="it was cut or changed"):
        opened(path)


def test_a_gpu_that_it_was_not_built_for_is_a_lack(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    path = write(tmp_path, change=lambda record: replace(record, capabilities=(75, 89)))
    with pytest.raises(MissingComponentError, match=r"for GPUs of SM 75, 89; Fake 3090 is SM 86") as caught:
        opened(path)
    assert caught.value.hints[0].action == "--sm 86"
    opened(path, device="cuda:1").close()


# ---- what the library itself has against it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "kind"),
    [
        ("MALFORMED_ENGINE", BadInputError),
        ("VERSION_MISMATCH", MissingComponentError),
        ("UNSUPPORTED_CC", MissingComponentError),
        ("OLD_CUDA_DRIVER", MissingComponentError),
        ("OLD_CUDA_RUNTIME", MissingComponentError),
        ("INSUFFICIENT_GPU_MEMORY", ResourceError),
    ],
)
def test_findings_of_the_library_are_errors_of_their_own(
    tmp_path: Path, script: Script, driver: ctypes.CDLL, finding: str, kind: type[DeploykitError]
) -> None:
    script.findings = FINDINGS[finding]
    with pytest.raises(kind, match=r"says TensorRT for RTX 1\.7\.1\.116"):
        opened(write(tmp_path))
    assert script.calls == [], "it is not loaded"
    assert driver.fakeHeld() == 0


def test_what_the_library_says_when_it_refuses_is_passed_on(
    tmp_path: Path, script: Script, driver: ctypes.CDLL
) -> None:
    script.opens = False
    with pytest.raises(UnsupportedError, match=r"can't open .*wrong in some way"):
        opened(write(tmp_path))
    script.opens, script.refuses = True, "create_execution_context"
    with pytest.raises(UnsupportedError, match=r"can't prepare .*wrong in some way"):
        opened(write(tmp_path))
    assert driver.fakeHeld() == 0


def test_too_little_memory_is_told_before_a_context_is_made(
    tmp_path: Path, script: Script, driver: ctypes.CDLL
) -> None:
    script.memory = 2 << 30
    with pytest.raises(ResourceError, match=r"needs 2,147 MB on the GPU, 1,074 MB are free") as caught:
        opened(write(tmp_path))
    assert "--profile" in caught.value.hints[0].action
    assert "create_execution_context" not in script.calls


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": ("FLOAT", (-1, 3))}, "has no tensor 'y'"),
        (
            {"x": ("HALF", (-1, 3)), "y": ("FLOAT", (-1, 3))},
            r"'x' as HALF \[-1, 3\]; its record says float32 \[batch 1..8, 3\]",
        ),
        ({"x": ("BF16", (-1, 3)), "y": ("FLOAT", (-1, 3))}, "'x' as BF16"),
        ({"x": ("FLOAT", (4, 3)), "y": ("FLOAT", (-1, 3))}, r"'x' as FLOAT \[4, 3\]"),
        ({"x": ("FLOAT", (-1, 3)), "y": ("FLOAT", (-1, 3, 1))}, "'y' as FLOAT"),
        ({"x": ("FLOAT", (-1, 3)), "y": ("FLOAT", (-1, 3)), "z": ("FLOAT", (1,))}, "doesn't name"),
    ],
)
def test_an_engine_that_takes_something_else_than_its_record_says_is_refused(
    tmp_path: Path, script: Script, driver: ctypes.CDLL, tensors: dict[str, tuple[str, tuple[int, ...]]], words: str
) -> None:
    script.tensors = tensors
    with pytest.raises(BadInputError, match=words):
        opened(write(tmp_path))
    assert driver.fakeHeld() == 0


# ---- running ---------------------------------------------------------------------------------------------------------------


def test_an_inference_goes_by_the_book(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    with opened(write(tmp_path)) as session:
        assert (session.ran.backend, session.ran.device, session.ran.precision) == (
            "tensorrt_rtx",
            "cuda:0 Fake 3090",
            "f16",
        )
        script.calls.clear()
        image = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(session.infer({"x": image})["y"], 2 * image)
        assert script.calls == [
            *("set_input_shape", "infer_shapes", "get_tensor_shape"),
            *("set_tensor_address", "set_tensor_address", "execute_async_v3"),
        ]
        assert driver.fakePending() == 0, "what is returned has arrived"
        for rows in (8, 1, 5):
            image = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(session.infer({"x": image})["y"], 2 * image)
        with pytest.raises(UsageError, match="takes shape"):
            session.infer({"x": np.zeros((9, 3), np.float32)})
        assert session.executed({"x": image}) == (LAYER,)
        assert session.metadata == {"deploykit.precision": "fp16"}
    assert driver.fakeHeld() == 0
    session.close()


def test_kernels_for_new_shapes_are_compiled_before_they_are_timed(
    tmp_path: Path, script: Script, driver: ctypes.CDLL
) -> None:
    opened(write(tmp_path)).close()
    assert "strategy EAGER" in script.calls
    script.calls.clear()
    opened(write(tmp_path, NATIVE), backend=tensorrt.BACKEND).close()
    assert not any(call.startswith("strategy") for call in script.calls)


def test_a_graph_is_captured_once_for_each_set_of_shapes(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    run = RunConfig("tensorrt", device="cuda:0", hints={"cuda_graph": "on"})
    before = driver.fakeLaunched()
    with tensorrt.BACKEND.open(str(write(tmp_path, NATIVE)), run) as session:
        for rows in (2, 2, 2, 5, 5):
            session.infer({"x": np.zeros((rows, 3), np.float32)})
        assert script.calls.count("execute_async_v3") == 4, "for each size one run and one capture"
        assert driver.fakeLaunched() - before == 5
        script.refuses = "execute_async_v3"
        with pytest.raises(UnsupportedError, match="tensorrt refuses to run"):
            session.infer({"x": np.zeros((7, 3), np.float32)})
    assert driver.fakeHeld() == 0


def test_each_shape_is_run_by_a_profile_that_holds_it(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    script.profiles = ((1, 1), (2, 5), (4, 8))
    run = RunConfig("tensorrt", device="cuda:0", hints={"cuda_graph": "on"})
    with tensorrt.BACKEND.open(str(write(tmp_path, NATIVE)), run) as session:
        for rows in (1, 1, 2, 5, 8, 4, 1):
            image = np.full((rows, 3), rows, np.float32)
            np.testing.assert_array_equal(session.infer({"x": image})["y"], 2 * image)
        changes = script.calls.count("set_optimization_profile_async")
        assert changes == 4, "to the second, to the third, back to the second, back to the first"
        script.refuses = "set_optimization_profile_async"
        with pytest.raises(UnsupportedError, match="refuses its optimization profile 2"):
            session.infer({"x": np.zeros((8, 3), np.float32)})
    assert driver.fakeHeld() == 0


def test_a_library_that_captures_graphs_itself_is_told_to(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    run = RunConfig("tensorrt_rtx", device="cuda:0", hints={"cuda_graph": "on"})
    before = driver.fakeLaunched()
    with tensorrt.RTX_BACKEND.open(str(write(tmp_path)), run) as session:
        session.infer({"x": np.zeros((2, 3), np.float32)})
    assert "graphs WHOLE_GRAPH_CAPTURE" in script.calls
    assert driver.fakeLaunched() == before


def test_the_parts_of_an_inference_are_timed_apart(tmp_path: Path, script: Script, driver: ctypes.CDLL) -> None:
    with opened(write(tmp_path)) as session:
        parts = session.phases({"x": np.zeros((2, 3), np.float32)}, 5)
        assert {name: part.shape for name, part in parts.items()} == dict.fromkeys(PHASES, (5,))
        for name in ("upload", "compute", "download"):
            np.testing.assert_array_equal(parts[name], 1_000_000)
        assert (parts["enqueue"] > 0).all()
        with pytest.raises(UsageError, match="takes shape"):
            session.phases({"x": np.zeros((9, 3), np.float32)}, 1)
    assert driver.fakeHeld() == 0


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes", "set_tensor_address", "execute_async_v3"])
def test_a_call_that_returns_false_is_never_passed_over(
    tmp_path: Path, script: Script, driver: ctypes.CDLL, call: str
) -> None:
    with opened(write(tmp_path)) as session:
        script.refuses = call
        with pytest.raises(UnsupportedError, match="tensorrt_rtx refuses"):
            session.infer({"x": np.zeros((2, 3), np.float32)})
    assert driver.fakeHeld() == 0


def test_an_engine_that_did_not_tell_of_its_layers_does_not_tell(
    tmp_path: Path, script: Script, driver: ctypes.CDLL
) -> None:
    path = write(tmp_path, change=lambda record: replace(record, layers=()))
    with opened(path) as session, pytest.raises(UnsupportedError, match="doesn't tell"):
        session.executed({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_the_fake_has_no_name_that_the_real_libraries_lack(flavour: str) -> None:
    real = recorded(flavour)["classes"]
    for fake, name in ((Context, "IExecutionContext"), (Engine, "ICudaEngine"), (Runtime, "Runtime")):
        names = {word for word in dir(fake) if not word.startswith("_")} - {"get_engine_validity"}
        assert names <= set(real[name])
    assert "get_engine_validity" in recorded("tensorrt_rtx")["classes"]["Runtime"]
    assert set(FINDINGS) <= set(recorded("tensorrt_rtx")["classes"]["EngineInvalidityDiagnostics"])


def test_files_find_their_backend_by_their_names() -> None:
    from deploykit.runtime.backends.base import backend_for

    assert backend_for("net.fp16.trt-rtx.engine") is get_backend("tensorrt_rtx")
    assert backend_for("net.engine") is backend_for("net.plan") is get_backend("tensorrt")


def test_code_is_python_that_names_file_device_and_library() -> None:
    code = tensorrt.RTX_BACKEND.code("a b.trt-rtx.engine", RunConfig("tensorrt_rtx", device="cuda:1"))
    compile(code, "code", "exec")
    assert "'a b.trt-rtx.engine'" in code
    assert "'cuda:1'" in code
    assert "import tensorrt_rtx as trt" in code


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] "
            "Cannot compile operation 'node_linear' for Turing: FP32 GEMM is not supported. In compileGraph at /a/b.cpp:9)",
            "Cannot compile operation 'node_linear' for Turing: FP32 GEMM is not supported",
        ),
        ("something new", "something new"),
        ("", ""),
    ],
)
def test_where_it_was_said_is_left_out_of_what_was_said(message: str, words: str) -> None:
    assert plain(message) == words


def test_a_record_is_the_same_bytes_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    record, _ = read_engine(path, RTX)
    assert record.to_bytes() == path.with_suffix(SUFFIX).read_bytes()
    assert json.loads(record.to_bytes())["inputs"][0]["shape"][0]["max"] == 8
