"""A budget and a measurement make a verdict.

Metrics of the golden inputs have no sampling error: the inputs are fixed and the runtime is deterministic, so they pass or
fail. Metrics of labelled images are samples of the images to come: their bounds carry one-sided 99 % confidence, and a bound
that straddles the budget is inconclusive. Zero samples and NaN fail.
"""

from __future__ import annotations

import math

from deploykit.optional import require
from deploykit.runtime.drift import Classification
from deploykit.verdict import GateKind, GateResult, Verdict

CONFIDENCE = 0.99


def numeric_gate(
    metric: str, value: float, bound: float, *, higher_is_better: bool, reference: str, n: int
) -> GateResult:
    """Judge a value without sampling error.

    Args:
        metric: Its name.
        value: What was measured over `n` golden inputs.
        bound: Most, or least where `higher_is_better`.
        higher_is_better: Which side of `bound` passes.
        reference: What was compared with: "pytorch" or "hub".
        n: Inputs behind `value`; with none the gate fails.
    """
    reached = value >= bound if higher_is_better else value <= bound
    return GateResult(
        kind=GateKind.DRIFT,
        metric=metric,
        reference=reference,
        value=value,
        lower=value,
        upper=value,
        bound=bound,
        higher_is_better=higher_is_better,
        n=n,
        verdict=Verdict.PASS if reached and n > 0 else Verdict.FAIL,
        reason="" if n > 0 else "zero samples",
    )


def agreement_gate(counts: Classification, least: float) -> GateResult:
    """Judge the share of equal top-1 answers by its Wilson score interval (Wilson 1927, JASA 22:209).

    Raises:
        MissingComponent: SciPy is not installed.
    """
    lower, upper = wilson(counts.n - counts.flips, counts.n)
    return _sampled("agreement", counts, counts.agreement, (lower, upper), least, higher_is_better=True)


def accuracy_drop_gate(counts: Classification, most: float) -> GateResult:
    """Judge the loss of top-1 accuracy on the same images by its paired interval.

    Raises:
        MissingComponent: SciPy is not installed.
    """
    interval = paired_drop(counts.lost, counts.gained, counts.n)
    return _sampled("accuracy_drop", counts, counts.accuracy_drop, interval, most, higher_is_better=False)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return both one-sided 99 % bounds of a share; (0, 1) of no samples."""
    if n == 0:
        return 0.0, 1.0
    require("scipy")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=2 * CONFIDENCE - 1, method="wilson")
    return float(interval.low), float(interval.high)


def paired_drop(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return both one-sided 99 % bounds of (lost - gained) / n.

    The adjusted Wald interval for a difference of paired proportions (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479):
    one pseudo-sample on each discordant side, which keeps coverage where there are few or no discordant pairs.

    Args:
        lost: Samples that only the reference answers rightly.
        gained: Samples that only the candidate answers rightly.
        n: All samples; with none the bounds are (-1, 1).
    """
    if n == 0:
        return -1.0, 1.0
    require("scipy")
    from scipy.stats import norm

    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    drop = p_lost - p_gained
    error = float(norm.ppf(CONFIDENCE)) * math.sqrt((p_lost + p_gained - drop**2) / (n + 2))
    return max(-1.0, drop - error), min(1.0, drop + error)


def _sampled(
    metric: str,
    counts: Classification,
    value: float,
    interval: tuple[float, float],
    bound: float,
    *,
    higher_is_better: bool,
) -> GateResult:
    lower, upper = interval
    surely = lower >= bound if higher_is_better else upper <= bound
    surely_not = upper < bound if higher_is_better else lower > bound
    reason = ""
    if counts.n == 0:
        verdict, reason = Verdict.FAIL, "zero samples"
    elif surely:
        verdict = Verdict.PASS
    elif surely_not:
        verdict = Verdict.FAIL
    else:
        verdict, reason = (
            Verdict.INCONCLUSIVE,
            f"{counts.n:,} images can't tell at {CONFIDENCE:.0%} confidence: use more",
        )
    return GateResult(
        kind=GateKind.DRIFT,
        metric=metric,
        reference="pytorch",
        value=value,
        lower=lower,
        upper=upper,
        bound=bound,
        higher_is_better=higher_is_better,
        n=counts.n,
        verdict=verdict,
        reason=reason,
    )
