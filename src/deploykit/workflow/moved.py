"""Moved: what is told of a bundle that is judged, or may be run, on another class of processors than its record is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from deploykit import texts
from deploykit.artifact import RunConfig
from deploykit.manifest import Manifest
from deploykit.runtime import pairs, processors
from deploykit.runtime.backends.base import CPU, get_backend
from deploykit.runtime.choice import Grounds
from deploykit.verdict import Judgement, Timing, Verdict

#: What a verdict was, and what it is.
_WAS: Final = {Verdict.PASS: "passed", Verdict.FAIL: "failed", Verdict.INCONCLUSIVE: "was inconclusive"}
_IS: Final = {Verdict.PASS: "passes", Verdict.FAIL: "fails", Verdict.INCONCLUSIVE: "is inconclusive"}


def class_on_record(judgement: Judgement, manifest: Manifest) -> str:
    """Return the class of processors that a recorded verdict holds for; "" where it ran on none.

    Judgements of before classes were recorded belong to the machine on which the bundle was made.
    """
    if judgement.processor is not None:
        return texts.one_line(judgement.processor)
    ran_here = judgement.ran is not None and judgement.run.device == CPU
    return processors.class_of(manifest.machine).name if ran_here else ""


def grounds(
    manifest: Manifest,
    *,
    judgements: Sequence[Judgement] | None = None,
    timings: Sequence[Timing] | None = None,
) -> Grounds:
    """Return what a choice between a bundle's artifacts rests on.

    Args:
        manifest: With the record.
        judgements: Found now, on this machine; None takes those on record.
        timings: Measured now, on this machine; None takes those on record.
    """
    artifacts = {artifact.name for artifact in manifest.artifacts}
    found = manifest.judgements if judgements is None else judgements
    verdicts = [one for one in found if one.artifact in artifacts]
    classes = dict.fromkeys(filter(None, (class_on_record(one, manifest) for one in verdicts)))
    here = processors.here().name
    made = processors.class_of(manifest.machine).name
    return Grounds(
        judgements=verdicts,
        timings=manifest.timings if timings is None else timings,
        processor=here,
        judged_on=tuple(classes),
        timed_on=made if timings is None else here,
    )


def saturating(jobs: Sequence[tuple[str, RunConfig, Path]]) -> tuple[str, ...]:
    """Return what is told, on any machine, of a file whose weights may saturate on some class of processors; () of others.

    Reading a file takes the runtime that it is made for: where that isn't here, nothing is told, nor judged.

    Args:
        jobs: The artifact's name, how it is run and its main file, for each way to run it.
    """
    present = [job for job in jobs if get_backend(job[1].backend).component.version() is not None]
    if not present:
        return ()
    name, _, path = present[0]
    told = pairs.note(name, tuple(dict.fromkeys(run.backend for _, run, _ in present)), str(path))
    return (told,) if told else ()


def notes(manifest: Manifest, found: Sequence[Judgement]) -> Iterator[str]:
    """Yield a line for each other class that a bundle's record is of, with the verdicts that differ now.

    Args:
        manifest: With the record.
        found: Judged now.
    """
    known = {(one.artifact, one.run.label): (one, class_on_record(one, manifest)) for one in manifest.judgements}
    moved: dict[tuple[str, str, str], list[str]] = {}
    for after in found:
        before, there = known.get((after.artifact, after.run.label), (after, ""))
        if not there or not after.processor or there == after.processor:
            continue
        here = "here" if after.site is None else f"at site {after.site}"
        differing = moved.setdefault((there, after.processor, here), [])
        if after.verdict is not before.verdict and before.verdict in _WAS and after.verdict in _IS:
            name = f"{after.artifact} ({texts.one_line(after.run.label)})"
            differing.append(f"{name} {_WAS[before.verdict]} there and {_IS[after.verdict]} {here}")
    for (there, processor, here), differing in moved.items():
        told = "; ".join(differing) or "the verdicts are the same"
        yield f"judged on {there} before, on {processor} {here}: {told}"
