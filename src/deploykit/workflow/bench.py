"""Bench: time a bundle's artifacts on this machine, beside the original where PyTorch is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit import optional
from deploykit.artifact import RunConfig
from deploykit.bundle import Bundle, load_tensors
from deploykit.errors import Hint, MissingComponentError, UnsupportedError
from deploykit.models import sources
from deploykit.models.original import FORMS
from deploykit.runtime import judge
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.latency import BenchOptions, Candidate, ceiling_gate, measure, speed_gate
from deploykit.verdict import Report, Timing
from deploykit.workflow.devices import runs_on


@dataclass(frozen=True, kw_only=True)
class LatencyBudget:
    """What the timings are held to; None: not gated.

    Attributes:
        max_ms: Most milliseconds per inference, of the median.
        min_speedup: Least ratio of the original's time to the artifact's.
    """

    max_ms: float | None = None
    min_speedup: float | None = None


def bench(
    bundle: str | Path,
    options: BenchOptions | None = None,
    budget: LatencyBudget | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
) -> Report:
    """Time every artifact of a bundle in every RunConfig that this machine has; of the others the report says why not.

    Args:
        bundle: The bundle's folder.
        options: Rounds, bursts, warm-up, threads.
        budget: Gates.
        progress: Called with rounds done and rounds in all.
        device: Where everything runs, such as "cuda:0"; None: where its RunConfigs say.

    Returns:
        A report with timings and latency gates.

    Raises:
        BadInputError: A file is damaged or was changed.
        MissingComponentError: None of the runtimes is here, or a speed-up is asked for without PyTorch.
    """
    options, budget = options or BenchOptions(), budget or LatencyBudget()
    opened = Bundle.open(Path(bundle))
    opened.check()
    manifest = opened.manifest
    golden = judge.Golden(load_tensors(opened.root / manifest.golden.inputs.path), {})
    asked = [
        Candidate(artifact.name, str(opened.root / artifact.main.path), run)
        for artifact in manifest.artifacts
        for run in runs_on(artifact, device)
        if not get_backend(run.backend).stands_in
    ]
    candidates = [candidate for candidate in asked if is_timed(candidate.run)]
    if not candidates:
        raise MissingComponentError(
            "nothing of this bundle can be timed here",
            *(Hint(text) for text in untimed(asked)),
            Hint("deploykit doctor"),
        )
    static = {dim for artifact in manifest.artifacts for dim in artifact.inputs[0].shape[:1] if isinstance(dim, int)}
    if options.batch is None and len(static) == 1:
        options = replace(options, batch=static.pop())
    refusals: list[str] = []
    timings = time_beside_original(
        manifest.source.locator,
        candidates,
        golden,
        options,
        progress,
        # A device that the user names for all may refuse some.
        None if device is None else lambda one, error: refusals.append(_untimed(one, error.message)),
    )
    if budget.min_speedup is not None and all(timing.speedup is None for timing in timings):
        raise MissingComponentError(
            "a speed-up needs the original beside it, and what runs it is not installed",
            Hint("pip install 'deploykit[export]'"),
        )
    gates = [
        gate
        for timing in timings
        if timing.candidate != judge.ORIGINAL
        for gate in (
            speed_gate(timing, budget.min_speedup) if budget.min_speedup is not None else None,
            ceiling_gate(timing, budget.max_ms) if budget.max_ms is not None else None,
        )
        if gate is not None
    ]
    return Report(str(opened.root), timings=timings, latency=tuple(gates), untimed=(*untimed(asked), *refusals))


def untimed(candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """Return those that can't be timed on this machine, each with its reason."""
    reasons = ((one, get_backend(one.run.backend).unavailable(one.run)) for one in candidates)
    return tuple(_untimed(one, reason) for one, reason in reasons if reason)


def _untimed(one: Candidate, reason: str) -> str:
    return f"{one.name} ({one.run.label}): not timed: {reason}"


def is_timed(run: RunConfig) -> bool:
    """Tell whether this machine can run something so, and as itself."""
    backend = get_backend(run.backend)
    return not backend.stands_in and not backend.unavailable(run)


def time_beside_original(
    locator: str,
    candidates: list[Candidate],
    golden: judge.Golden,
    options: BenchOptions,
    progress: Callable[[int, int], None] | None,
    refused: Callable[[Candidate, UnsupportedError], None] | None = None,
) -> tuple[Timing, ...]:
    """Time candidates, and the original with them where what runs it is installed: on each of their devices that it takes."""
    original = sources.located(locator)
    libraries = FORMS[original.form].libraries
    is_here = len(optional.installed(libraries)) == len(libraries)
    baselines = _baselines(*original.reference, candidates) if is_here else []
    return measure(
        [*baselines, *candidates],
        lambda specs: judge.feeds_of(specs, golden, options.batch or 1),
        options,
        baseline=judge.ORIGINAL,
        progress=progress,
        refused=refused,
    )


def _baselines(model: str, run: RunConfig, candidates: list[Candidate]) -> list[Candidate]:
    devices = dict.fromkeys(candidate.run.device for candidate in candidates)
    found = [Candidate(judge.ORIGINAL, model, run.on(device)) for device in devices if is_timed(run.on(device))]
    return found or [Candidate(judge.ORIGINAL, model, run)]
