"""A folder whose permissions bind, whoever runs the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

NOBODY = 65534


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty folder. Root, who may read everything, is nobody for the time."""
    if os.name != "posix":
        pytest.skip("permissions of POSIX")
    if os.geteuid() != 0:
        yield tmp_path
        return
    Image.init()  # nobody may not import what is in root's home
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)
