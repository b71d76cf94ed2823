"""What is freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from deploykit import heap

#: Frees 200 MB in pieces that glibc keeps, since one behind them is still in use, and prints what the process holds, in MB.
KEPT = """
import ctypes
from pathlib import Path
from deploykit import heap

def held():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) // 1024

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
pieces = [ctypes.c_void_p(libc.malloc(100_000)) for _ in range(2001)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
full = held()
for piece in pieces[:-1]:
    libc.free(piece)
kept = held()
heap.trim()
print(full, kept, held())
"""


class Selfish:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_release_collects_what_refers_to_itself() -> None:
    gone = weakref.ref(Selfish())
    heap.release()
    assert gone() is None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads anonymous memory from /proc")
def test_freed_pieces_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    full, kept, left = map(int, done.stdout.split())
    assert kept > full - 50, "the C library gave it back by itself, so this proves nothing"
    assert left < full - 150


def test_elsewhere_nothing_is_asked_of_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", None)
    heap.trim()
