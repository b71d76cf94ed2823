"""A CUDA driver made of this machine's memory, for what would need a GPU only to be asked."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from deploykit.runtime.backends import cuda

SOURCE = Path(__file__).parent / "fake_driver.c"


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the compiled library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = tmp_path_factory.mktemp("driver") / "libfakecuda.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return library


@pytest.fixture
def driver(fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """Let deploykit find it; returns it, to be asked what is still held."""
    monkeypatch.setattr(cuda, "LIBRARY", str(fake_driver))
    return ctypes.CDLL(str(fake_driver))
