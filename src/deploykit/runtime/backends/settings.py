"""What a RunConfig may say to a runtime: settings that are known to choose how it computes, and to lead to no file.

Runtimes take settings by name, as texts, and among them are names of files to write, of caches to read and of libraries to
load. A RunConfig may come with a bundle, so nothing is passed on but what stands in a backend's list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from deploykit.artifact import RunConfig

#: Values as regular expressions: a switch, a count.
SWITCH: Final = "[01]"
COUNT: Final = r"\d{1,9}"
#: Most threads that anybody means.
MOST_THREADS: Final = 1024
_DEVICE: Final = re.compile(r"[a-z]{1,16}(:\d{1,3})?")
_PRECISION: Final = re.compile(r"[a-z]{1,8}\d{0,3}")
#: Characters of a text that a message shows.
SHOWN: Final = 80


def fault(title: str, config: RunConfig, known: Mapping[str, str], *, threaded: bool) -> str:
    """Return what a RunConfig says that a runtime is not told, or "".

    Args:
        title: Of the runtime.
        config: To be passed on.
        known: Settings that there are, and a regular expression for the values of each.
        threaded: It takes a number of threads.
    """
    if not _DEVICE.fullmatch(config.device):
        return f"{config.device[:SHOWN]!r} is no device: write cpu, cuda or cuda:1"
    if not _PRECISION.fullmatch(config.precision):
        return f"{config.precision[:SHOWN]!r} is no precision: write auto, f32, f16 or bf16"
    threads, least = config.threads, "at least 1" if (config.threads or 0) < 1 else f"at most {MOST_THREADS}"
    if threads is not None and not threaded:
        return f"{title} has no threads to choose, found threads={threads}"
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        return f"threads must be {least}, not {threads}"
    return next(filter(None, (_hint_fault(title, key, value, known) for key, value in config.hints.items())), "")


def _hint_fault(title: str, key: str, value: str, known: Mapping[str, str]) -> str:
    if key not in known:
        told = f"it takes {', '.join(known)}" if known else "it takes none"
        return f"{title} takes no hint {key[:SHOWN]!r}: {told}"
    fits = re.fullmatch(known[key], value)
    return "" if fits else f"{title}'s hint {key} can't be {value[:SHOWN]!r}: it matches {known[key]}"
