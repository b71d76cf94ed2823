"""What commands are given as streams and names: closed, full, in another encoding, of bytes that are no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "deploykit")


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which $D is the command."""
    quoted = {"D": f"{sys.executable} -m deploykit", **env}
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env={**os.environ, **quoted})


@pytest.mark.parametrize(
    ("words", "code"), [("models --json", 0), ("models", 0), ("--help", 0), ("export tiny-convnet --json", 2)]
)
def test_a_reader_that_has_gone_leaves_the_exit_code_as_it_is(words: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, *words.split()], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device on this system")
@pytest.mark.parametrize("words", ["models", "models --json"])
def test_output_to_a_full_disk_is_exit_5_in_one_line(words: str) -> None:
    done = shell(f"$D {words} > /dev/full")
    assert done.returncode == 5
    assert done.stderr.splitlines() == ["error: the output can't be written: No space left on device"]


def test_all_streams_may_be_closed(tmp_path: Path) -> None:
    assert shell("$D models <&- >&- 2>&-").returncode == 0
    assert shell("$D export tiny-convnet <&- >&- 2>&-").returncode == 2
    done = shell("$D models --json <&- 2>&-")
    assert json.loads(done.stdout)["models"]


def test_an_encoding_without_the_signs_is_written_in_escapes() -> None:
    done = shell("$D doctor", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "\\u2714" in done.stdout


@pytest.mark.parametrize("command", ["verify", "bench", "inspect", "build", "run", "export"])
def test_a_name_that_is_no_text_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.onnx"
    words = [name, b"photo.jpg"] if command == "run" else [name]
    done = subprocess.run([*map(os.fsencode, COMMAND), command.encode(), *words], capture_output=True, text=True)
    assert done.returncode in {2, 7}
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "caf\\" in done.stderr
