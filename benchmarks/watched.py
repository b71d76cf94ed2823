"""Processes whose memory is looked at while they run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PERIOD_S: Final = 0.05


@dataclass(frozen=True)
class Ran:
    """A process that ended: seconds, and the most anonymous memory that its tree held, bytes."""

    code: int
    seconds: float
    peak: int


def anonymous(pid: int) -> int:
    """Return the bytes of a process that no file stands behind."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def watched(words: Sequence[str], cache: Path) -> Ran:
    """Run a process to its end and look at its tree's memory."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(words, env={**os.environ, "DEPLOYKIT_CACHE": str(cache)})
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            break
        peak = max(peak, sum(map(anonymous, tree)))
        time.sleep(PERIOD_S)
    return Ran(process.wait(), time.perf_counter() - started, peak)
