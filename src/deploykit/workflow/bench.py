"""Bench: time a bundle's artifacts on this machine, beside the original where PyTorch is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit import optional
from deploykit.artifact import RunConfig
from deploykit.bundle import load_tensors
from deploykit.errors import DeploykitError, Hint, MissingComponentError, UnsupportedError
from deploykit.manifest import Manifest
from deploykit.models.original import FORMS, Original, SourceOptions
from deploykit.runtime import choice
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.golden import ORIGINAL, Golden, feeds_of
from deploykit.runtime.latency import BenchOptions, Candidate, ceiling_gate, measure, speed_gate
from deploykit.verdict import Report, Timing
from deploykit.workflow import moved
from deploykit.workflow.devices import runs_on
from deploykit.workflow.opened import open_bundle, original_of


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
    *,
    reference: str | None = None,
    source: SourceOptions | None = None,
) -> Report:
    """Time every artifact of a bundle in every RunConfig that this machine has; of the others the report says why not.

    Args:
        bundle: The bundle's folder.
        options: Rounds, bursts, warm-up, threads.
        budget: Gates.
        progress: Called with rounds done and rounds in all.
        device: Where everything runs, such as "cuda:0"; None: where its RunConfigs say.
        reference: Source of the original, where it isn't one that ships with the package.
        source: How that is opened.

    Returns:
        A report with timings and latency gates.

    Raises:
        BadInputError: A file is damaged or was changed.
        UsageError: `reference` is another original, or a speed-up is asked for and no original may be opened.
        MissingComponentError: None of the runtimes is here, or a speed-up is asked for without PyTorch.
    """
    options, budget = options or BenchOptions(), budget or LatencyBudget()
    opened = open_bundle(Path(bundle))
    manifest = opened.manifest
    golden = Golden(load_tensors(opened.root / manifest.golden.inputs.path), {})
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
    original, refused = _original_of(manifest, reference, source)
    if refused is not None and budget.min_speedup is not None:
        raise refused
    timings = time_beside_original(
        original,
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
        if timing.candidate != ORIGINAL
        for gate in (
            speed_gate(timing, budget.min_speedup) if budget.min_speedup is not None else None,
            ceiling_gate(timing, budget.max_ms) if budget.max_ms is not None else None,
        )
        if gate is not None
    ]
    reason = refused.message if refused is not None else _lacking(original)
    without = [f"{ORIGINAL}: not timed: {reason}"] if reason else []
    return Report(
        str(opened.root),
        timings=timings,
        latency=tuple(gates),
        untimed=(*untimed(asked), *refusals, *without),
        recommendation=choice.recommend(moved.grounds(manifest, timings=timings)),
    )


def _original_of(
    manifest: Manifest, reference: str | None, source: SourceOptions | None
) -> tuple[Original | None, DeploykitError | None]:
    """Return the original, or why artifacts are timed without it; who named one is told at once."""
    try:
        return original_of(manifest, reference, source), None
    except DeploykitError as error:
        if reference is not None or (source is not None and source.given):
            raise
        return None, error


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
    original: Original | None,
    candidates: list[Candidate],
    golden: Golden,
    options: BenchOptions,
    progress: Callable[[int, int], None] | None,
    refused: Callable[[Candidate, UnsupportedError], None] | None = None,
) -> tuple[Timing, ...]:
    """Time candidates, and the original with them where what runs it is installed: on each of their devices that it takes."""
    baselines = _baselines(*original.usual, candidates) if original is not None and not _lacking(original) else []
    return measure(
        [*baselines, *candidates],
        lambda specs: feeds_of(specs, golden, options.batch or 1),
        options,
        baseline=ORIGINAL if baselines else None,
        progress=progress,
        refused=refused,
    )


def _lacking(original: Original | None) -> str:
    """Return which libraries an original needs that are not installed; "" where none is missing."""
    libraries = FORMS[original.form].libraries if original is not None else ()
    missing = [name for name in libraries if name not in optional.installed(libraries)]
    return f"needs {', '.join(optional.COMPONENTS[name].title for name in missing)}" if missing else ""


def _baselines(model: str, run: RunConfig, candidates: list[Candidate]) -> list[Candidate]:
    devices = dict.fromkeys(candidate.run.device for candidate in candidates)
    found = [Candidate(ORIGINAL, model, run.on(device)) for device in devices if is_timed(run.on(device))]
    return found or [Candidate(ORIGINAL, model, run)]
