"""A CUDA driver made of this machine's memory, for what would need a GPU only to be asked."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
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
def driver(fake_driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """Let deploykit find one that nobody has used before; returns it, to be asked what is still held."""
    library = Path(shutil.copy(fake_driver, tmp_path))
    monkeypatch.setattr(cuda, "LIBRARY", str(library))
    loaded = ctypes.CDLL(str(library))
    yield loaded
    assert loaded.fakeHeld() == 0
    assert loaded.fakePending() == 0
