"""Emulated: artifacts judged on processors that aren't here, by the real runtimes' kernels for them.

The judge runs here and asks a worker in the emulator, so that numbers, bounds and reasons are those of any verdict. Golden
inputs alone are asked; nothing is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from deploykit import texts
from deploykit.artifact import RunConfig
from deploykit.errors import CrashError, TimeLimitError, UnsupportedError
from deploykit.runtime import judge, processors
from deploykit.runtime.arithmetic import Place, judge_file
from deploykit.runtime.backends.base import CPU, Session, get_backend
from deploykit.runtime.sites.guest import Guest, GuestSession, guest_of
from deploykit.runtime.sites.table import get_sites
from deploykit.verdict import Judgement

Progress = Callable[[str, int, int], None]
#: An artifact's name, how it is run, and its main file.
Job = tuple[str, RunConfig, Path]

NOTE: Final = "on emulated processors golden inputs alone are judged: neither labelled images nor latency"


def guests_of(names: Iterable[str]) -> tuple[Guest, ...]:
    """Return the sites of these names as they can run here.

    Raises:
        UsageError: No such site.
        MissingComponentError: One is not ready; the hints make it so.
    """
    return tuple(map(guest_of, get_sites(names)))


def judgements(
    jobs: Iterable[Job],
    brief: judge.Brief,
    guests: Iterable[Guest],
    limit_s: float,
    progress: Progress | None,
    *,
    made_for: Sequence[str] = (),
) -> Iterator[Judgement]:
    """Judge each job on each guest, in this order. What computes as another machine would is left out.

    Args:
        jobs: What to judge.
        brief: What to judge by.
        guests: Where.
        limit_s: Seconds for each job on each guest, its start among them.
        progress: Called with the name of what is judged, golden inputs done and golden inputs in all.
        made_for: Classes of processors that the artifact was made for; () for all.

    Raises:
        BadInputError: A file can't be read.
    """
    guests = tuple(guests)
    for name, run, path in jobs:
        if not get_backend(run.backend).stands_in:
            for guest in guests:
                yield _On(guest, brief, limit_s, progress or (lambda *_: None), made_for).judged(name, run, path)


@dataclass
class _On:
    """One guest, and what to judge by there."""

    guest: Guest
    brief: judge.Brief
    limit_s: float
    progress: Progress
    made_for: Sequence[str]
    opened: list[GuestSession] = field(default_factory=list)

    def judged(self, name: str, run: RunConfig, path: Path) -> Judgement:
        """Judge a file. What can't be run there, or not within its time, is not run."""
        found = judge.not_run(name, run, self._lacking(run))
        late = f"over {self.limit_s:g} s on {self.guest.site.name}"
        if not found.reason:
            try:
                found = self._measured(name, run, path)
            except TimeLimitError:
                found = judge.not_run(name, run, late)
            except (UnsupportedError, CrashError) as error:
                found = judge.not_run(name, run, error.message)
        if any(session.overdue for session in self.opened):  # in the midst of a check, which may tell it otherwise
            found = judge.not_run(name, run, late)
        computed = found.ran is not None
        return replace(found, site=self.guest.site.name, processor=self.guest.site.processor if computed else None)

    def _measured(self, name: str, run: RunConfig, path: Path) -> Judgement:
        title = f"{name} on {self.guest.site.name}"
        total = len(next(iter(self.brief.golden.inputs.values()), ()))
        self.progress(title, 0, total)

        def opened(path: Path, run: RunConfig) -> Session:
            def tell(rows: int) -> None:
                self.progress(title, min(rows, total), total)

            session = self.guest.open(path, run, self.limit_s, tell)
            self.opened.append(session)
            return session

        return judge_file(name, path, run, self.brief, place=Place(self.guest.processor, opened))

    def _lacking(self, run: RunConfig) -> str:
        """Return why a run is none for this emulated processor; "" where it is one."""
        if run.device != CPU:
            return f"it runs on {run.device}, and sites are processors alone"
        return texts.one_line(processors.excluded(self.made_for, run.backend, self.guest.processor))
