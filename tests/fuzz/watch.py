"""Watches a process that loads damaged files: ends it where it hangs, starts another where it crashed, counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, cast

from tests.fuzz.child import Outcome, case
from tests.fuzz.loaders import Loader
from tests.fuzz.seeds import written

ROOT: Final = Path(__file__).parents[2]
#: Seconds of processor time that a case may take; where the machine is busy these are fewer than those on the clock.
HANG: Final = 10.0
#: Seconds on the clock, for what waits without computing, and for the start.
STUCK, START = 60.0, 300.0
#: Where failing inputs are kept.
FAILURES: Final = ROOT / "build" / "fuzz"
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Tally:
    """What became of a loader's cases.

    Attributes:
        loader: Its name.
        kinds: How often what happened.
        faults: Errors that are none of ours, by what they say, each with the cases where they came.
    """

    loader: str
    kinds: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.kinds.total()

    @property
    def failed(self) -> bool:
        """Whether any case ended in what no case may end in."""
        return bool(self.faults)

    def add(self, number: str, outcome: Outcome) -> None:
        """Count a case."""
        self.kinds[outcome.kind] += 1
        if outcome.kind not in {"works", "refused"}:
            self.faults.setdefault(_signature(outcome), []).append(number)

    def text(self) -> str:
        """The line of this loader, and one for each fault."""
        kinds = ("works", "refused", "traceback", "crash", "hang", "memory")
        words = ("work", "refused", "tracebacks", "crashes", "hangs", "over memory")
        told = ", ".join(f"{self.kinds[kind]} {word}" for kind, word in zip(kinds, words, strict=True))
        lines = [f"{self.loader:<14} {self.cases:>6} cases: {told}"]
        lines += [f"    {len(cases)} x {what} (cases {', '.join(cases[:3])})" for what, cases in self.faults.items()]
        return "\n".join(lines)


def _signature(outcome: Outcome) -> str:
    """Return what tells one fault from another: what was raised, and where in the toolkit."""
    places = re.findall(r'File "\S*?src/(deploykit/\S+?)", line (\d+)', outcome.trace)
    where = f" at {places[-1][0]}:{places[-1][1]}" if places else ""
    told = re.sub(r"\S*/\S*|0x[0-9a-f]+|\d+|'[^']*'", "*", outcome.told.splitlines()[0]) if outcome.told else ""
    return f"{outcome.kind}: {told[:120]}{where}"


class Watched:
    """A process that loads files, started where there is none.

    Args:
        module: Where its loaders are.
        hang: Seconds of processor time that a case may take.
    """

    def __init__(self, module: str = "tests.fuzz.loaders", hang: float = HANG) -> None:
        self._module = module
        self._hang = hang
        self._process: subprocess.Popen[bytes] | None = None
        self._warm: set[str] = set()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def ask(self, loader: Loader, number: str) -> Outcome:
        """Have one case loaded."""
        process = self._started()
        cast("IO[bytes]", process.stdin).write(f"{loader.name} {number}\n".encode())
        cast("IO[bytes]", process.stdin).flush()
        limits = (self._hang, STUCK) if loader.name in self._warm else (START, START)
        line, why = self._line(process, *limits)
        if line == b"{}\n":  # its libraries are here; now the case begins
            self._warm.add(loader.name)
            line, why = self._line(process, self._hang, STUCK)
        outcome = Outcome(**json.loads(line)) if line else Outcome(*why, self._tail())
        if outcome.spent or not line:
            self._end()
        return outcome

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._errors.seek(0)
            self._errors.truncate()
            pythonpath = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.child", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": pythonpath},
                start_new_session=True,
                bufsize=0,  # what a reader holds back, `select` doesn't see
            )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], limit: float, stuck: float) -> tuple[bytes, tuple[str, str]]:
        """Return the next line; where none comes within a time computed and one on the clock, what happened."""
        source = cast("IO[bytes]", process.stdout)
        began, computed = time.monotonic(), _computed(process.pid)
        while True:
            if select.select([source], [], [], 0.5)[0]:
                line = source.readline()
                if line:
                    return line, ("", "")
                code = process.wait()
                return b"", ("crash", signal.Signals(-code).name if code < 0 else f"ended with {code}")
            if _computed(process.pid) - computed > limit or time.monotonic() - began > stuck:
                return b"", ("hang", f"over {limit:.0f} s")

    def _tail(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-4000:].decode("utf-8", "replace")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    cast("IO[bytes]", pipe).close()
            self._process = None
            self._warm.clear()


def _computed(pid: int) -> float:
    """Return the processor time that a process has taken, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def run(loader: Loader, numbers: Iterable[str], watched: Watched, keep: Path | None = FAILURES) -> Tally:
    """Have a loader's cases loaded and count them; keep the files of those that failed."""
    tally = Tally(loader.name)
    for number in numbers:
        outcome = watched.ask(loader, number)
        tally.add(number, outcome)
        if keep is not None and outcome.kind not in {"works", "refused"} and "/" not in number:
            place = keep / loader.name / number
            written(place, case(loader, number))
            (place / "why.txt").write_text(f"{outcome.kind}: {outcome.told}\n{outcome.trace}\n", encoding="utf-8")
    return tally


def until(deadline: float, most: int, start: int = 0) -> Iterator[str]:
    """Yield numbers of cases, up to `most` and while there is time."""
    for number in range(start, start + most):
        if time.monotonic() > deadline:
            return
        yield str(number)
