"""Whether a machine had time for what was timed on it.

Ratios paired by round cancel out what slows all candidates alike and slowly. They don't help where others take the processor
for a part of the rounds, or where more threads are asked for than can run: then a number is printed that nobody can repeat.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from pathlib import Path
from typing import Final

from deploykit.verdict import Ratio, Timing

#: A median is unsure where its interval reaches further than this share of it. On quiet machines it reaches 1 to 3 %.
MOST_SPREAD: Final = 0.2
#: A median is unsure where it is this many times the fastest inference. On quiet machines it is 1.05 to 1.15 times that.
MOST_OVER_MINIMUM: Final = 2.0
BUSY: Final = "machine busy"
#: Samples of how many threads want to run, and seconds between them: a tenth of a second outlasts one turn of the scheduler.
_SAMPLES: Final = 20
_EVERY_SECONDS: Final = 0.005


def physical_cores() -> int:
    """Return how many cores this process may use: siblings of one core count once, a container's quota holds."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return _within_quota(len({_text(topology.format(cpu)) or str(cpu) for cpu in _usable()}))


def logical_cores() -> int:
    """Return how many threads can run at once: siblings of one core count each, a container's quota holds."""
    return _within_quota(len(_usable()))


def _usable() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _within_quota(cores: int) -> int:
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(cores, 1)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def others() -> int:
    """Return how many threads beside this one want to run now, on the whole machine: the median over a tenth of a second.

    The load average would not do: it still holds the minute before, in which this export itself computed. 0 where the system
    doesn't tell.
    """
    found = []
    for _ in range(_SAMPLES):
        found.append(_runnable(_text("/proc/loadavg")))
        time.sleep(_EVERY_SECONDS)
    return statistics.median_high(found)


def _runnable(text: str) -> int:
    """Return the threads that want to run, without the one that asks: of "0.52 0.58 0.59 3/467 12345", 2."""
    words = text.split()
    count = words[3].partition("/")[0] if len(words) > 3 else ""
    return max(int(count) - 1, 0) if count.isdecimal() else 0


def doubts(timing: Timing, waiting: int) -> tuple[str, ...]:
    """Return why a timing is unsure; () where nothing speaks against it.

    Args:
        timing: Its numbers.
        waiting: How many threads of others wanted to run beside it; see `others`.
    """
    found, signs = [], []
    threads, cores = timing.ran.threads or timing.run.threads or 0, logical_cores()
    if threads > cores:
        found.append(f"{threads} threads on {cores} {'core' if cores == 1 else 'cores'}")
    if threads and waiting and threads + waiting > (os.cpu_count() or 1):
        signs.append(f"{waiting} other {'thread wants' if waiting == 1 else 'threads want'} to run")
    if timing.median_ms > MOST_OVER_MINIMUM * timing.min_ms:
        signs.append(f"a median of {_figure(timing.median_ms)} ms beside a minimum of {_figure(timing.min_ms)}")
    elif _is_wide(timing.median_ms, timing.median_lower_ms, timing.median_upper_ms):
        signs.append(f"a median of {_figure(timing.median_lower_ms)} to {_figure(timing.median_upper_ms)} ms")
    return (*found, *([f"{BUSY}: {', '.join(signs)}"] if signs else []))


def ratio_doubts(ratio: Ratio, own: tuple[str, ...], base: tuple[str, ...]) -> tuple[str, ...]:
    """Return why a ratio is unsure: what speaks against its own timing, that of what it is compared with, or itself."""
    found = [*own, *(f"what it is compared with: {reason}" for reason in base if reason not in own)]
    if not found and _is_wide(ratio.median, ratio.lower, ratio.upper):
        found.append(f"{BUSY}: a ratio of {_figure(ratio.lower)} to {_figure(ratio.upper)}")
    return tuple(found)


def _figure(value: float) -> str:
    """Return three digits, all before the point where there are more."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _is_wide(median: float, lower: float, upper: float) -> bool:
    """Tell whether an interval reaches too far; one of too few rounds has no end, and says so by itself."""
    return math.isfinite(upper) and not median * (1 - MOST_SPREAD) <= lower <= upper <= median * (1 + MOST_SPREAD)
