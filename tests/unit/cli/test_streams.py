from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from deploykit.cli.streams import Lenient
from deploykit.errors import ResourceError


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        stream = Lenient(file)
        for _ in range(3):
            assert stream.write("text\n") == 5
            stream.flush()
        assert stream.writable()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device on this system")
def test_a_full_disk_is_told_once() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as file:
        stream = Lenient(file)
        stream.write("text\n")
        with pytest.raises(ResourceError, match="the output can't be written: No space left on device"):
            stream.flush()
        stream.write("more\n")
        stream.flush()


def test_a_stream_that_fails_otherwise_is_told(tmp_path: Path) -> None:
    class Broken(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with (tmp_path / "x").open("wb") as file:
        stream = Lenient(Broken(file, encoding="utf-8"))
        with pytest.raises(ResourceError, match="Input/output error"):
            stream.write("text")
