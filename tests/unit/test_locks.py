"""A folder has one writer at a time, whoever the others are; the lock is gone when its holder is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploykit.errors import ResourceError, UsageError
from deploykit.locks import LOCK, locked

HOLDER = """
import sys, time
from pathlib import Path
from deploykit.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds `folder`, with a cache of its own."""
    environment = {**os.environ, "DEPLOYKIT_CACHE": str(folder.parent / "another-cache")}
    words = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_until_the_holder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "bundle"
    process = holding(folder)
    with process:
        with pytest.raises(ResourceError, match=f"another export is writing to {folder}"), locked(folder):
            pass
        assert (folder / LOCK).exists(), "who was refused leaves the holder's lock alone"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / LOCK).exists(), "what is killed can't tidy up"
    with locked(folder):
        (folder / "file").write_text("mine")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(ResourceError, match="another export is writing"), locked(tmp_path):
            pass
        with pytest.raises(ResourceError), locked(tmp_path / ".." / tmp_path.name):
            pass
    with locked(tmp_path):
        pass


def test_a_folder_made_for_nothing_is_removed_and_one_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    with locked(tmp_path / "a"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


@pytest.mark.parametrize("name", ["file", "dangling", "file/below"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is no folder"), locked(tmp_path / name):
        pass


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / LOCK).symlink_to(tmp_path / "outside")
    with pytest.raises(ResourceError, match="can't be written"), locked(tmp_path / "bundle"):
        pass
    assert not (tmp_path / "outside").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to, not even root")
def test_a_read_only_folder_is_told_at_once() -> None:
    for folder in (Path("/proc/self/bundle"), Path("/proc/self")):
        with pytest.raises(ResourceError, match="can't be written"), locked(folder):
            pass


def test_many_writers_never_overlap(tmp_path: Path) -> None:
    """Holders remove their lock while others open it: whoever gets in must be alone."""
    folder, inside, overlaps, rounds = tmp_path / "bundle", set[int](), list[int](), 150
    entered = 0

    def write(number: int) -> None:
        nonlocal entered
        for _ in range(rounds):
            try:
                with locked(folder):
                    inside.add(number)
                    overlaps.extend(inside - {number})
                    entered += 1
                    inside.discard(number)
            except ResourceError as error:
                assert "another export" in error.message  # noqa: PT017 - any other is a defect

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert entered >= rounds
    assert list(tmp_path.rglob(LOCK)) == []
