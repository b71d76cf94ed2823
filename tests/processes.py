"""What tests ask of processes."""

from __future__ import annotations

import time

import psutil


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Tell whether a process ends within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
