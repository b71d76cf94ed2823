"""Choice: the fastest artifact that passes, and what speaks against each other one.

Fewer bits aren't always faster: without VNNI int8 may be slower than float32. So what is fastest is measured, per class of
processors, and a timing that something speaks against decides only where there is no better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from deploykit.artifact import RunConfig
from deploykit.recommendation import PassedOver, Recommendation
from deploykit.runtime.backends.base import backend_names, get_backend
from deploykit.verdict import Judgement, Ratio, Timing, Verdict

#: Metrics of failed gates that a reason names.
_NAMED: Final = 3


@dataclass(frozen=True)
class Grounds:
    """What a choice rests on.

    Attributes:
        judgements: The verdicts.
        timings: The latencies, as far as there are any.
        processor: Class of the processor here.
        judged_on: Classes that the verdicts were found on.
        timed_on: Class that the latencies were measured on.
    """

    judgements: Sequence[Judgement]
    timings: Sequence[Timing]
    processor: str
    judged_on: tuple[str, ...] = ()
    timed_on: str = ""


@dataclass(frozen=True)
class Option:
    """A way to run an artifact that passed.

    Attributes:
        artifact: Its name.
        run: How it is run.
        timing: Its latency; None where it was not timed.
    """

    artifact: str
    run: RunConfig
    timing: Timing | None

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: timed surely, by the median, then unsurely, then not at all."""
        if self.timing is None:
            return 2, math.inf
        return int(bool(self.timing.doubts)), self.timing.median_ms

    @property
    def doubt(self) -> str:
        """What speaks against its timing, in a few words, such as "machine busy"; "" where nothing does."""
        found = self.timing.doubts if self.timing is not None else None
        return found[0].partition(":")[0] if found else ""


def passed(grounds: Grounds, usable: Callable[[RunConfig], bool] = lambda _: True) -> list[Option]:
    """Return the ways to run artifacts that passed: the fastest first, then those timed unsurely, then the others in order.

    Args:
        grounds: What there is.
        usable: Whether something can be run so.
    """
    timings = {(one.candidate, _label(one.run)): one for one in grounds.timings}
    found = [
        Option(one.artifact, one.run, timings.get((one.artifact, _label(one.run))))
        for one in _applied(grounds.judgements)
        if one.verdict is Verdict.PASS and usable(one.run)
    ]
    return sorted(found, key=lambda option: option.rank)


def recommend(grounds: Grounds) -> Recommendation | None:
    """Return what to ship; None where there is no choice between ways to run something, or nothing was judged."""
    judged = _applied(grounds.judgements)
    if len(judged) < 2 or all(one.verdict is Verdict.NOT_RUN for one in judged):
        return None
    options = passed(grounds)
    best = options[0] if options else None
    known = {(option.artifact, option.run.label): option for option in options}
    ranked = sorted(
        judged, key=lambda one: known[one.artifact, one.run.label].rank if one.verdict is Verdict.PASS else (3, 0.0)
    )
    others = tuple(
        _passed_over(one, known.get((one.artifact, one.run.label)), best)
        for one in ranked
        if best is None or (one.artifact, one.run) != (best.artifact, best.run)
    )
    return Recommendation(
        artifact=best.artifact if best else None,
        run=best.run if best else None,
        processor=grounds.processor,
        judged_on=grounds.judged_on,
        timed_on=grounds.timed_on if any(option.timing for option in options) else "",
        reason=reason_of(options, len(judged)),
        others=others,
    )


def reason_of(options: Sequence[Option], judged: int = 0) -> str:
    """Return why the first of several options is taken, in a few words.

    Args:
        options: As `passed` returns them.
        judged: How many ways were judged, where that is told.
    """
    if not options:
        return f"none of {judged} passes"
    best, among = options[0], f"of {len(options)} that passed"
    if len(options) == 1:
        return "the one that passed"
    if best.timing is None:
        return f"the first {among}: none was timed"
    return f"the fastest {among}" + (f", though unsure: {best.doubt}" if best.doubt else "")


def ratio(one: Timing, other: Timing) -> Ratio | None:
    """Return the speed of one over that of another with its interval; None where either is unsure.

    Where both were timed beside the same original, in the same rounds, those ratios are the better ones; else the medians
    tell. The interval is as wide as both together allow.
    """
    if one.doubts or other.doubts:
        return None
    mine, theirs = (timing.speedup if timing.speedup and not timing.speedup.doubts else None for timing in (one, other))
    if mine is not None and theirs is not None and one.run.device == other.run.device:
        rounds = min(mine.rounds, theirs.rounds)
        return Ratio(mine.median / theirs.median, mine.lower / theirs.upper, mine.upper / theirs.lower, rounds)
    lower, upper = other.median_lower_ms / one.median_upper_ms, other.median_upper_ms / one.median_lower_ms
    return Ratio(other.median_ms / one.median_ms, lower, upper, min(one.rounds, other.rounds))


def _applied(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Return those of ways that an application runs in, by backends that are known."""
    known = {name for name in backend_names() if not get_backend(name).stands_in}
    return [one for one in judgements if one.run.backend in known]


def _passed_over(judgement: Judgement, option: Option | None, best: Option | None) -> PassedOver:
    name, run = judgement.artifact, judgement.run
    if option is None or best is None:
        return PassedOver(name, run, _verdict_text(judgement))
    if option.timing is None or best.timing is None:
        return PassedOver(name, run, "passes, not timed")
    speed = ratio(option.timing, best.timing)
    if speed is None:
        return PassedOver(name, run, f"passes, unsure how fast: {option.doubt or best.doubt}")
    told = f"{speed.median:.2f}× its speed ({speed.lower:.2f} to {speed.upper:.2f})"
    close = ", about as fast" if speed.upper >= 1.0 else ""
    return PassedOver(name, run, told + close, speed.median, speed.lower, speed.upper)


def _verdict_text(judgement: Judgement) -> str:
    """Return why a judgement is no pass."""
    if judgement.verdict is Verdict.NOT_RUN:
        return f"not run: {judgement.reason}" if judgement.reason else "not run"
    word = {Verdict.FAIL: "fails", Verdict.INCONCLUSIVE: "inconclusive"}[judgement.verdict]
    metrics = list(dict.fromkeys(gate.metric for gate in judgement.gates if gate.verdict is judgement.verdict))
    more = f" and {len(metrics) - _NAMED} more" if len(metrics) > _NAMED else ""
    return f"{word}: {', '.join(metrics[:_NAMED])}{more}" if metrics else f"{word}: {judgement.reason}"


def _label(run: RunConfig) -> str:
    return replace(run, threads=None).label
