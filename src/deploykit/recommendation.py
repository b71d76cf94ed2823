"""Recommendation: which artifact to ship to machines of one class of processors, and why none of the others."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.artifact import RunConfig


@dataclass(frozen=True)
class PassedOver:
    """A way to run an artifact that is not recommended.

    Attributes:
        artifact: Its name.
        run: How it would run.
        reason: Why not, in a few words.
        speed: Its speed over that of what is recommended; None where that isn't known.
        lower: Lower end of its 95 % confidence interval.
        upper: Upper end.
    """

    artifact: str
    run: RunConfig
    reason: str
    speed: float | None = None
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """What to ship.

    Attributes:
        artifact: Name of the artifact; None where none passes.
        run: How to run it.
        processor: Class of the processor here.
        judged_on: Classes that the verdicts were found on.
        timed_on: Class that the latencies were measured on; "" where nothing was timed.
        reason: Why this one.
        others: Every other way that was judged, those that pass first.
    """

    artifact: str | None
    run: RunConfig | None
    processor: str
    judged_on: tuple[str, ...]
    timed_on: str
    reason: str
    others: tuple[PassedOver, ...]

    @property
    def elsewhere(self) -> str:
        """What was found on another class of processors than this one; "" where all was found on it."""
        judged = " and ".join(one for one in self.judged_on if one != self.processor)
        timed = self.timed_on if self.timed_on != self.processor else ""
        words = [f"judged on {judged}"] if judged else []
        words += [f"timed on {timed}"] if timed else []
        return f"{' and '.join(words)}, not on {self.processor}" if words else ""
