"""Timing that can be trusted: one process per candidate, bursts in turn, ratios paired by round.

Several engines in one process disturb one another up to threefold (thread pools, caches), so each candidate has a worker
of its own, asked in turn and idle otherwise. A round is one burst of every candidate; rounds come in pairs of a random order
and its reverse, so that slow drift of the machine and the influence of whoever came before cancel out. Each burst begins with
one inference that is not timed. Speed is compared within rounds and then summed up by the median, with a confidence interval
that assumes nothing about how times are distributed. The interval speaks of these processes: the next start of the very same
candidate lays out its memory otherwise and may differ by a few percent.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Final

import numpy as np

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import UnsupportedError, UsageError
from deploykit.runtime.backends.base import Nanoseconds, Tensor, get_backend
from deploykit.runtime.backends.clocks import clocks
from deploykit.runtime.load import doubts, others, physical_cores, ratio_doubts
from deploykit.runtime.worker import WorkerSession, open_in_worker
from deploykit.verdict import PHASES, Clocks, GateKind, GateResult, GpuTiming, Ratio, Timing, Verdict

Feeds = Mapping[str, Tensor]

LEAST_BURST: Final = 3
_PAUSE_SECONDS: Final = 0.01  # lets the threads of the candidate before stop spinning
_CONFIDENCE: Final = 0.95
#: Gates allow for this share beyond the interval of one start: of 25 pairs of identical candidates, 8 differed by more than
#: their interval says, mostly by 1 to 4 percent.
START_NOISE: Final = 0.05
_SEED: Final = 20_240_607


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        rounds: Bursts per candidate. Fewer than six can't bound a median with 95 % confidence.
        burst_ms: Milliseconds that a burst should last; it has at least three inferences.
        warmup_ms: Milliseconds of inferences before the first burst, per candidate.
        batch: Rows per inference; None takes as many as the feeds have.
        threads: For every candidate whose RunConfig leaves them open.
    """

    rounds: int = 20
    burst_ms: float = 50.0
    warmup_ms: float = 300.0
    batch: int | None = None
    threads: int = field(default_factory=physical_cores)

    def __post_init__(self) -> None:
        least = {"rounds": 1, "burst_ms": 0, "warmup_ms": 0, "batch": 1, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) is not None and not getattr(self, name) >= bound:
                raise UsageError(f"{name} must be at least {bound}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Candidate:
    """What is timed.

    Attributes:
        name: Artifact name, or "original" for the original.
        model: As for `Backend.open`.
        run: How it is run.
    """

    name: str
    model: str
    run: RunConfig


def random_feeds(inputs: tuple[TensorSpec, ...], batch: int) -> dict[str, Tensor]:
    """Make inputs for timing where no real ones are at hand.

    Returns:
        For floating inputs normal values from a fixed seed, else zeros. A dynamic first dimension is `batch`, others their
        `opt`.
    """
    draw = np.random.default_rng(_SEED)
    feeds: dict[str, Tensor] = {}
    for spec in inputs:
        sizes = [dim.opt if isinstance(dim, Axis) else dim for dim in spec.shape]
        if spec.shape and isinstance(spec.shape[0], Axis):
            sizes[0] = batch
        floating = spec.dtype.startswith("float")
        feeds[spec.name] = (draw.standard_normal(sizes) if floating else np.zeros(sizes)).astype(spec.dtype)
    return feeds


def measure(
    candidates: Sequence[Candidate],
    feeds_for: Callable[[tuple[TensorSpec, ...]], Feeds],
    options: BenchOptions,
    *,
    baseline: str | None = "original",
    progress: Callable[[int, int], None] | None = None,
    refused: Callable[[Candidate, UnsupportedError], None] | None = None,
) -> tuple[Timing, ...]:
    """Time the candidates side by side.

    Args:
        candidates: With distinct names, or one name in distinct RunConfigs.
        feeds_for: Inputs of a model to its feeds, with `options.batch` rows where that is set.
        options: How to measure.
        baseline: Name of the candidate that speed is compared with, on the same device where it is timed there; None compares
            nothing.
        progress: Called with (bursts done, bursts in all), warm-up counted as a burst.
        refused: Called with a candidate that its runtime refuses, which is then left out; None: that is an error.

    Returns:
        One timing per candidate, in their order.

    Raises:
        UsageError: No candidates, one of them twice, no such baseline, or feeds of another batch than `options.batch`.
        DeploykitError: Whatever opening or running a candidate raises.
    """
    names = [candidate.name for candidate in candidates]
    lanes_asked = [(candidate.name, candidate.run.label) for candidate in candidates]
    if not names or len(set(lanes_asked)) != len(names):
        raise UsageError(f"candidates need distinct names or RunConfigs, found {lanes_asked}")
    if baseline is not None and baseline not in names:
        raise UsageError(f"baseline {baseline!r} is none of the candidates {names}")
    tell = progress or (lambda _done, _total: None)
    total = len(names) * (options.rounds + 1)
    waiting = others()
    with ExitStack() as stack:
        lanes: list[_Lane] = []
        for candidate in candidates:
            try:
                lanes.append(_Lane.open(candidate, feeds_for, options, stack))
            except UnsupportedError as error:
                if refused is None:
                    raise
                refused(candidate, error)
            tell(len(lanes), total)
        for done, index in enumerate(_turns(len(lanes), options.rounds), start=len(lanes) + 1):
            time.sleep(_PAUSE_SECONDS)
            lanes[index].run_burst()
            tell(done, total)
    waiting = max(waiting, others())
    bases = [lane for lane in lanes if lane.name == baseline]
    return tuple(lane.timing(None if lane in bases else lane.base_among(bases), waiting) for lane in lanes)


def _turns(lanes: int, rounds: int) -> list[int]:
    """Return whose burst is next: per two rounds a random order, then its reverse."""
    draw = random.Random(_SEED)  # noqa: S311 - an order, no secret
    turns: list[int] = []
    order = list(range(lanes))
    for index in range(rounds):
        if index % 2 == 0:
            draw.shuffle(order)
        else:
            order.reverse()
        turns += order
    return turns


class _Lane:
    """One candidate: its worker, its feeds, the length of its bursts, and the times so far."""

    def __init__(self, candidate: Candidate, session: WorkerSession, feeds: Feeds) -> None:
        self._candidate = candidate
        self._session = session
        self._feeds = feeds
        self._burst = LEAST_BURST
        self._warmup = 0
        self._rounds: list[Nanoseconds] = []
        self._parts: list[Mapping[str, Nanoseconds]] = []
        self._clocks: Clocks | None = None

    @classmethod
    def open(
        cls,
        candidate: Candidate,
        feeds_for: Callable[[tuple[TensorSpec, ...]], Feeds],
        options: BenchOptions,
        stack: ExitStack,
    ) -> _Lane:
        """Start the worker, warm it up and find out how many inferences make a burst."""
        run = candidate.run
        if run.threads is None and get_backend(run.backend).threaded:
            run = replace(run, threads=options.threads)
        session = open_in_worker(candidate.model, run)
        stack.callback(session.close)
        feeds = feeds_for(session.inputs)
        rows = {array.shape[0] for array in feeds.values() if array.ndim}
        if options.batch is not None and options.batch not in rows:
            raise UsageError(
                f"asked to time {candidate.name} with batch {options.batch}; its feeds have {sorted(rows)} rows"
            )
        lane = cls(replace(candidate, run=run), session, feeds)
        lane._warm_up(options)
        return lane

    def _warm_up(self, options: BenchOptions) -> None:
        count, spent = 1, 0.0
        while True:
            taken = self._session.time(self._feeds, count) / 1e6
            self._warmup += count
            spent += float(taken.sum())
            if self._warmup >= LEAST_BURST and spent >= options.warmup_ms:
                break
            count *= 2
        each = max(float(np.median(taken)), 1e-3)
        self._burst = max(LEAST_BURST, round(options.burst_ms / each))

    def run_burst(self) -> None:
        """Time one burst; its first inference finds caches that others filled, and is left out.

        Where the session has parts, those of a few inferences more are timed apart, and the clocks are read.
        """
        self._rounds.append(self._session.time(self._feeds, self._burst + 1)[1:])
        if parts := self._session.phases(self._feeds, LEAST_BURST):
            self._parts.append(parts)
            self._clocks = clocks(self.device)

    @property
    def name(self) -> str:
        """The candidate's."""
        return self._candidate.name

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._candidate.run.device

    def base_among(self, bases: Sequence[_Lane]) -> _Lane | None:
        """Return what this one is compared with: the baseline on the same device, else the first one."""
        return next((base for base in bases if base.device == self.device), next(iter(bases), None))

    @property
    def rounds_ms(self) -> tuple[float, ...]:
        """Median of every round."""
        return tuple(float(np.median(taken)) / 1e6 for taken in self._rounds)

    def timing(self, base: _Lane | None, waiting: int) -> Timing:
        """Sum up.

        Args:
            base: The lane to compare with.
            waiting: How many threads of others wanted to run; see `load.others`.
        """
        found = self.sum_up()
        own = doubts(found, waiting)
        found = replace(found, doubts=own or None)
        if base is None:
            return found
        ratio = _ratio(base.rounds_ms, self.rounds_ms)
        unsure = ratio_doubts(ratio, own, doubts(base.sum_up(), waiting))
        return replace(found, speedup=replace(ratio, doubts=unsure or None))

    def sum_up(self) -> Timing:
        """Return the numbers by themselves, compared with nothing."""
        every = np.concatenate(self._rounds) / 1e6
        median, p90, p99 = (float(value) for value in np.percentile(every, [50, 90, 99]))
        lower, upper = median_interval(self.rounds_ms)
        return Timing(
            candidate=self._candidate.name,
            run=self._candidate.run,
            ran=self._session.ran,
            batch=max(array.shape[0] for array in self._feeds.values()),
            median_ms=median,
            median_lower_ms=lower,
            median_upper_ms=upper,
            p90_ms=p90,
            p99_ms=p99,
            min_ms=float(every.min()),
            n=every.size,
            rounds=len(self._rounds),
            warmup=self._warmup + 1,
            speedup=None,
            measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            gpu=self._gpu(),
        )

    def _gpu(self) -> GpuTiming | None:
        """Sum up the parts: medians over all rounds."""
        if not self._parts:
            return None
        joined = {name: np.concatenate([parts[name] for parts in self._parts]) / 1e6 for name in PHASES}
        medians = {f"{name}_ms": float(np.median(taken)) for name, taken in joined.items()}
        return GpuTiming(**medians, n=len(self._parts) * LEAST_BURST, clocks=self._clocks)


def _ratio(base_ms: Sequence[float], own_ms: Sequence[float]) -> Ratio:
    ratios = [base / own for base, own in zip(base_ms, own_ms, strict=True)]
    lower, upper = median_interval(ratios)
    return Ratio(float(np.median(ratios)), lower, upper, len(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval that holds the median of what `values` were drawn from, with at least 95 % confidence.

    Its ends are two of the values (order statistics): how many of n independent draws lie below the true median is
    binomial with p = 1/2, whatever the distribution.

    Args:
        values: Positive numbers.

    Returns:
        (lower, upper); of fewer than six values (0, inf), for they can bound nothing.
    """
    rank = _rank(len(values))
    if rank == 0:
        return 0.0, math.inf
    ordered = sorted(values)
    return ordered[rank - 1], ordered[-rank]


def _rank(n: int) -> int:
    """Return the largest r for which the r-th smallest and the r-th largest of `n` values still bound the median; 0: none."""
    tail, rank = 0, 0
    while rank < n:
        tail += math.comb(n, rank)
        if 2 * tail > (1 - _CONFIDENCE) * 2**n:
            break
        rank += 1
    return rank


def speed_gate(timing: Timing, min_speedup: float) -> GateResult:
    """Judge how much faster than the original a candidate is.

    Raises:
        UsageError: `timing` was compared with nothing.
    """
    ratio = timing.speedup
    if ratio is None:
        raise UsageError(f"{timing.candidate} was not timed beside an original, so its speedup is not known")
    interval = (ratio.lower, ratio.upper)
    found = _gate("speedup", timing, ratio.median, interval, min_speedup, higher_is_better=True)
    return _unsure(found, ratio.doubts or ())


def ceiling_gate(timing: Timing, max_ms: float) -> GateResult:
    """Judge whether a candidate's median latency stays below a ceiling in milliseconds.

    On a machine that had little time it may pass, for others only make it slower, but not fail.
    """
    interval = (timing.median_lower_ms, timing.median_upper_ms)
    found = _gate("latency_ms", timing, timing.median_ms, interval, max_ms, higher_is_better=False)
    return found if found.verdict is Verdict.PASS else _unsure(found, timing.doubts or ())


def _unsure(found: GateResult, reasons: tuple[str, ...]) -> GateResult:
    """Return a gate that neither passes nor fails where something speaks against its timing."""
    return replace(found, verdict=Verdict.INCONCLUSIVE, reason="; ".join(reasons)) if reasons else found


def _gate(
    metric: str, timing: Timing, value: float, interval: tuple[float, float], bound: float, *, higher_is_better: bool
) -> GateResult:
    """Judge by the interval of the rounds, widened by what another start of the same processes may bring."""
    lower, upper = interval[0] * (1 - START_NOISE), interval[1] * (1 + START_NOISE)
    verdict = Verdict.of_interval(lower, upper, bound, higher_is_better=higher_is_better)
    reason = ""
    if verdict is Verdict.INCONCLUSIVE:
        few = "fewer than 6 rounds bound no median" if not _rank(timing.rounds) else "the bound lies within the noise"
        reason = f"{timing.rounds} rounds leave both possible: {few}"
    return GateResult(
        kind=GateKind.LATENCY,
        metric=metric,
        reference=timing.candidate,
        value=value,
        lower=lower,
        upper=upper,
        bound=bound,
        higher_is_better=higher_is_better,
        n=timing.n,
        verdict=verdict,
        reason=reason,
    )
