"""ONNX Runtime's providers for GPUs: which there are, why none is here, and what a real plugin says without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploykit.artifact import RunConfig
from deploykit.errors import MissingComponentError, UnsupportedError, UsageError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda, onnxruntime_gpu, onnxruntime_providers
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.backends.onnxruntime_providers import PROVIDERS, Plugin, ways

ORT = get_backend("onnxruntime")
CUDA = RunConfig("onnxruntime", device="cuda:0", precision="f32")
RTX = PROVIDERS["rtx"]
assert isinstance(RTX, Plugin)
with_plugin = pytest.mark.skipif(
    COMPONENTS[RTX.package].version() is None,
    reason="TensorRT for RTX is not installed here as a plugin of ONNX Runtime",
)
#: A driver and a management library with the names that the plugin links to, and no GPU.
STUBS = {
    "libcuda.so.1": (
        "cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCurrent cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetCurrent "
        "cuDestroyExternalMemory cuDestroyExternalSemaphore cuExternalMemoryGetMappedBuffer cuGetErrorString "
        "cuImportExternalMemory cuImportExternalSemaphore cuInit cuSignalExternalSemaphoresAsync cuStreamGetCtx "
        "cuWaitExternalSemaphoresAsync"
    ),
    "libnvidia-ml.so.1": "nvmlErrorString nvmlInit_v2 nvmlShutdown nvmlSystemGetDriverVersion",
}


@pytest.fixture
def least(tmp_path: Path) -> str:
    """The file that a provider is tried with."""
    path = tmp_path / "least.onnx"
    path.write_bytes(onnxruntime_providers._LEAST)
    return str(path)


def named(provider: str, **changes: str) -> RunConfig:
    return RunConfig("onnxruntime", device="cuda:0", precision="auto", hints={"provider": provider, **changes})


def test_on_a_gpu_there_is_a_way_for_each_provider_and_on_a_processor_one() -> None:
    assert ORT.ways(CUDA.on("cpu"), "cuda") == (CUDA, named("tensorrt"), named("rtx"))
    assert ORT.ways(CUDA, "cpu") == (CUDA.on("cpu"),)
    assert [way.label for way in ways(CUDA)][1:] == [
        f"onnxruntime cuda:0 auto provider={name}" for name in ("tensorrt", "rtx")
    ]


@pytest.mark.skipif(not cuda.lacking(cuda.FIRST), reason="there is a GPU")
def test_where_no_way_is_here_the_usual_one_says_why() -> None:
    assert ORT.on(CUDA, "cuda") == (CUDA,)
    for way in ORT.ways(CUDA, "cuda"):
        assert ORT.unavailable(way)


def test_an_unknown_provider_is_refused_by_name(least: str) -> None:
    with pytest.raises(UsageError, match=r"hint provider can't be 'dml': it matches cuda\|tensorrt\|rtx"):
        ORT.open(least, named("dml"))


def test_a_provider_for_a_gpu_is_no_word_of_the_processors(least: str) -> None:
    with pytest.raises(UsageError, match="takes no hint 'provider'"):
        ORT.open(least, RunConfig("onnxruntime", hints={"provider": "cuda"}))


def test_the_least_of_files_is_one() -> None:
    """What a provider is tried with has to be sound, or no provider ever is here."""
    session = onnxruntime.InferenceSession(onnxruntime_providers._LEAST)
    assert session.run(None, {"x": np.array([-1], np.float32)})[0] == 0


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has them"
)
def test_a_runtime_without_a_provider_says_what_to_install(provider: str, least: str) -> None:
    with pytest.raises(MissingComponentError, match=r"has no \w+ExecutionProvider: it takes onnxruntime-gpu") as caught:
        ORT.open(least, named(provider))
    assert caught.value.hints
    assert caught.value.exit_code == 5


@with_plugin
def test_the_plugin_without_a_driver_is_told_before_it_is_loaded(least: str) -> None:
    if not (reason := cuda.lacking(cuda.FIRST)):
        pytest.skip("there is a GPU")
    assert ORT.unavailable(named("rtx")) == reason
    with pytest.raises(MissingComponentError) as caught:
        ORT.open(least, named("rtx"))
    assert "ort-rtx" in caught.value.hints[0].action


REFUSED = """
from deploykit.runtime.backends.onnxruntime_providers import PROVIDERS
for _ in range(2):
    print(PROVIDERS["rtx"].refused(0))
"""


def refused(library_path: Path) -> list[str]:
    """Return what the plugin says in a process that finds libraries in a folder."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library_path)}
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@with_plugin
@pytest.mark.skipif(not cuda.lacking(cuda.FIRST), reason="there is a driver")
def test_the_plugin_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    first, second = refused(tmp_path)
    assert first.startswith("ONNX Runtime can't load NvTensorRTRTXExecutionProvider: ")
    assert "libcuda.so.1" in first
    assert second == first, "it is tried once"


@with_plugin
@pytest.mark.skipif(not cuda.lacking(cuda.FIRST), reason="there is a driver")
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_plugin_that_finds_no_gpu_is_not_taken_for_one_that_does(tmp_path: Path) -> None:
    """The real plugin, registered beside a driver that has nothing but names."""
    for library, names in STUBS.items():
        source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in names.split())
        words = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(tmp_path / library), "-xc", "-"]
        subprocess.run(words, input=source, text=True, check=True)
    assert refused(tmp_path) == ["NvTensorRTRTXExecutionProvider finds no GPU 0 that it can use"] * 2


@pytest.mark.parametrize("name", ["tensorrt", "rtx"])
def test_a_provider_without_a_switch_for_tf32_is_refused_where_f32_is_asked_for(name: str) -> None:
    ampere, turing = cuda.Gpu("A", 80, 1), cuda.Gpu("T", 75, 1)
    f32 = RunConfig("onnxruntime", "cuda:0", "f32", hints={"provider": name})
    with pytest.raises(UnsupportedError, match=r"may multiply float32 in TF32 on A .* ask for precision 'auto'"):
        onnxruntime_gpu._grade(PROVIDERS[name], f32, ampere)
    assert onnxruntime_gpu._grade(PROVIDERS[name], f32, turing) == "f32"
    assert onnxruntime_gpu._grade(PROVIDERS[name], named(name), ampere) == "tf32"
    assert onnxruntime_gpu._grade(PROVIDERS["cuda"], f32, ampere) == "f32"
    with pytest.raises(UnsupportedError, match="not in 'bf16'"):
        onnxruntime_gpu._grade(PROVIDERS[name], RunConfig("onnxruntime", "cuda:0", "bf16"), turing)


def test_the_code_names_the_provider_and_its_settings() -> None:
    made = ORT.code("net.onnx", CUDA)
    assert "providers=[('CUDAExecutionProvider', {'device_id': '0', 'use_tf32': '0'})]" in made
    assert "import tensorrt" in ORT.code("net.onnx", named("tensorrt"))
    plugin = ORT.code("net.onnx", named("rtx", **{"session.intra_op.allow_spinning": "0"}))
    assert "add_provider_for_devices(devices[0:1], {'device_id': '0'})" in plugin
    assert "InferenceSession('net.onnx', options)" in plugin
    assert "allow_spinning" in plugin
    assert "provider'" not in plugin
    for code in (made, plugin):
        compile(code, "code", "exec")
