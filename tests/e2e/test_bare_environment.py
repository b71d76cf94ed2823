"""The bare promise: a bundle is verified where there is numpy, one runtime and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import deploykit

PROJECT = Path(deploykit.__file__).parents[2]
PROGRAM = """
import importlib.util, json, sys
import deploykit
report = deploykit.verify(sys.argv[1])
absent = [name for name in ("torch", "timm", "onnx", "PIL", "scipy", "rich", "typer") if importlib.util.find_spec(name)]
print(json.dumps({
    "verdicts": {f"{j.artifact} {j.run.precision}": j.verdict.value for j in report.judgements},
    "gates": {f"{j.artifact} {j.run.precision}": len(j.gates) for j in report.judgements},
    "not_run": report.not_run, "code": report.exit_code(strict=True), "intruders": absent,
}))
"""


def _environment(root: Path, runtime: str) -> Path:
    """Make a virtual environment with deploykit (without its dependencies), numpy and one runtime; return its Python."""
    venv.create(root)
    python = root / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    pip.append("--no-compile")
    for words in ([*pip, "--no-deps", str(PROJECT)], [*pip, "numpy", runtime]):
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return python


@pytest.mark.network
@pytest.mark.parametrize(("runtime", "target"), [("onnxruntime", "ort"), ("openvino", "openvino")])
def test_a_copied_bundle_is_verified_with_numpy_and_one_runtime(
    bundle: Path, tmp_path: Path, runtime: str, target: str
) -> None:
    python = _environment(tmp_path / "venv", runtime)
    copy = shutil.copytree(bundle, tmp_path / "copied")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(python), "-c", PROGRAM, str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["intruders"] == []
    for run, verdict in found["verdicts"].items():
        here = f".{target} " in run
        assert verdict == ("pass" if here else "not_run"), found
        assert (found["gates"][run] > 0) == here
    assert any("task gates: Pillow is not installed" in reason for reason in found["not_run"])
    assert found["code"] == 6, "what was not run is told, not passed over"


PROVIDER = """
from deploykit.runtime.backends.onnxruntime_providers import PROVIDERS
for name in ("cuda", "tensorrt"):
    print(repr(PROVIDERS[name].absent()))
print(PROVIDERS["tensorrt"].refused(0))
"""


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(sys.platform != "linux", reason="TensorRT's library is called otherwise elsewhere")
def test_the_tensorrt_that_onnxruntime_gpu_lists_is_not_here_until_its_library_is(tmp_path: Path) -> None:
    """It lists the provider wherever it is installed, with TensorRT or without."""
    python = _environment(tmp_path / "venv", "onnxruntime-gpu")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(python), "-c", PROVIDER], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    *absent, refused = done.stdout.splitlines()
    assert absent == ["''", "''"]
    assert refused.startswith("ONNX Runtime can't load TensorrtExecutionProvider: Please install TensorRT libraries")


def test_every_module_can_be_imported_without_the_heavy_libraries() -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in ('torch', 'timm', 'onnx', 'onnxsim', 'onnxruntime', 'openvino', 'PIL', 'scipy', 'filelock',"
        " 'tensorrt', 'tensorrt_rtx',"
        " 'platformdirs', 'safetensors', 'transformers', 'huggingface_hub'):\n    sys.modules[name] = None\n"
        "import deploykit\n"
        "for module in pkgutil.walk_packages(deploykit.__path__, 'deploykit.'):\n"
        "    if not module.name.endswith('__main__'):\n        importlib.import_module(module.name)\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr
