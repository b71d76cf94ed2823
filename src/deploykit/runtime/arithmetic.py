"""Tells arithmetic from quantization: does a file drift by what stands in it, or by how this processor's kernels add?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from deploykit.artifact import EXACT, RunConfig
from deploykit.errors import DeploykitError
from deploykit.runtime import judge, processors
from deploykit.runtime.backends.base import CPU, Session, get_backend
from deploykit.runtime.pairs import REMEDIES
from deploykit.runtime.processors import Processor
from deploykit.verdict import GateKind, Judgement, Verdict

#: Decibels by which kernels must lie farther from the original than the graph does to be told: a fifth of the error.
LEAST: Final = 1.0


@dataclass(frozen=True)
class Place:
    """Where files are judged.

    Attributes:
        processor: Class of the processor there.
        open: Opens a file there as a RunConfig says. Raises what `Backend.open` does.
    """

    processor: Processor
    open: Callable[[Path, RunConfig], Session]


def _open(path: Path, run: RunConfig) -> Session:
    return get_backend(run.backend).open(str(path), run)


def judge_file(
    name: str,
    path: Path,
    run: RunConfig,
    brief: judge.Brief,
    progress: Callable[[int, int], None] | None = None,
    *,
    place: Place | None = None,
) -> Judgement:
    """Judge a file as it runs; where it drifts by the processor's arithmetic and not by its own, the reason says so.

    Args:
        name: Of the artifact.
        path: Its main file.
        run: How it is run.
        brief: What to judge by.
        progress: Called with images done and images in all.
        place: Where it is run; None is this machine. What its graph says is computed here.

    Raises:
        BadInputError: The file can't be read.
        UnsupportedError: The runtime refuses the model.
    """
    place = place or Place(processors.here(), _open)
    found = judge.judge(name, run, lambda: place.open(path, run), brief, progress)
    drifts = [gate for gate in found.gates if gate.kind is GateKind.DRIFT and gate.verdict is Verdict.FAIL]
    has_other = EXACT in get_backend(run.backend).arithmetics and run.arithmetic is None and run.device == CPU
    if not drifts or found.reason or not has_other:
        return found
    by_itself = replace(brief, evaluation=None, without_evaluation="", axes={})
    by_graph = replace(run, arithmetic=EXACT)
    try:
        exact = judge.judge(name, by_graph, lambda: _open(path, by_graph), by_itself, None)
    except DeploykitError:
        return found
    return replace(found, reason=_reason(found, exact, place.processor))


def _reason(found: Judgement, exact: Judgement, processor: Processor) -> str:
    """Return what the graph makes and what this processor makes of it, where that is less; else ""."""
    own, here = (judge.least_sqnr(one.metrics) for one in (exact, found))
    if not own - here >= LEAST:
        return ""
    saturates = processor.sums_in(found.run.backend) is not processors.Sums.EXACT
    why = f" (pairs of products saturate in 16 bits on {processor.name})" if saturates else ""
    graph = f"quantization {own:.1f} dB" if math.isfinite(own) else "the graph itself loses nothing"
    told = f"{graph}, this processor's kernels {here:.1f} dB{why}"
    passes = all(gate.verdict is Verdict.PASS for gate in exact.gates if gate.kind is GateKind.DRIFT)
    remedy = REMEDIES[found.run.backend] if saturates else "another processor or another artifact computes it"
    return f"{told}: {remedy}" if passes else f"{told}: neither passes"
