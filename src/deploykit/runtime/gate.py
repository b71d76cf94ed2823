"""A budget and a measurement make a verdict.

Golden inputs are few, and other inputs meet an artifact that fails on them. What holds for them on the whole, such as the
SQNR, carries a lower bound (`drift.sqnr_db_least`): a value that reaches its budget while the bound does not is
inconclusive. Metrics of labelled images carry one-sided 99 % bounds on either side. Extremes of single inputs have no bound:
they pass or fail. Zero samples and NaN fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from deploykit.optional import require
from deploykit.runtime.drift import Classification
from deploykit.verdict import EIGHT_BITS, Budget, Executed, GateKind, GateResult, Verdict, int8_share

CONFIDENCE = 0.99
#: Least share of equal values of an output that counts or names, such as an index, where a budget asks for no agreement: of
#: a map of 512 x 512 classes a few pixels are tied.
LEAST_EQUAL = 0.9999
#: Halvings after which a bound is exact to float64.
BISECTIONS = 60
#: How many layers a reason names.
NAMED = 3


def is_counted(values: NDArray[Any]) -> bool:
    """Tell whether an output holds indices, counts or truths: values that are equal or wrong, never near."""
    return values.dtype.kind in "biu"


def least_equal(budget: Budget) -> float:
    """Return the least share of equal values of an output that counts or names."""
    return LEAST_EQUAL if budget.agreement is None else budget.agreement


def numeric_gate(
    metric: str,
    value: float,
    bound: float,
    *,
    higher_is_better: bool,
    reference: str,
    n: int,
    output: str | None = None,
    least: float | None = None,
) -> GateResult:
    """Judge a value of the golden inputs.

    Args:
        metric: Its name.
        value: What was measured over `n` golden inputs.
        bound: Most, or least where `higher_is_better`.
        higher_is_better: Which side of `bound` passes.
        reference: What was compared with: "original" or "hub".
        n: Inputs behind `value`; with none the gate fails.
        output: Which output, where there are several.
        least: Lower confidence bound of a value that is better when higher; None where it has no sampling error.
    """
    reached = value >= bound if higher_is_better else value <= bound
    verdict, reason = (Verdict.PASS if reached else Verdict.FAIL), ""
    if n == 0:
        verdict, reason = Verdict.FAIL, "zero samples"
    elif reached and least is not None and not least >= bound:
        verdict = Verdict.INCONCLUSIVE
        reason = f"of {n} golden inputs it may as well be {least:.1f}: more tell, --golden-size, or a larger margin"
    return GateResult(
        kind=GateKind.DRIFT,
        metric=metric,
        reference=reference,
        value=float(value),
        lower=float(value if least is None else least),
        upper=float(value),
        bound=float(bound),
        higher_is_better=higher_is_better,
        n=n,
        verdict=verdict,
        reason=reason,
        output=output,
    )


def share_gate(layers: Sequence[Executed], least: float) -> GateResult:
    """Judge the share of the multiply-adds that ran in 8 bits; with no layers the gate fails."""
    result = numeric_gate(
        "int8_share", int8_share(layers), least, higher_is_better=True, reference="itself", n=len(layers)
    )
    reason = result.reason
    if layers and result.verdict is Verdict.FAIL:
        rest = sorted((layer for layer in layers if layer.precision not in EIGHT_BITS), key=lambda layer: -layer.macs)
        reason = f"too little runs in 8 bits; of the rest the largest are {', '.join(r.name for r in rest[:NAMED])}"
    return replace(result, kind=GateKind.EXECUTION, reason=reason)


def agreement_gate(counts: Classification, least: float) -> GateResult:
    """Judge the share of equal top-1 answers by its exact interval (Clopper and Pearson 1934, Biometrika 26:404).

    Raises:
        MissingComponentError: SciPy is not installed.
    """
    lower, upper = share_bounds(counts.n - counts.flips, counts.n)
    return _sampled("agreement", counts, counts.agreement, (lower, upper), least, higher_is_better=True)


def accuracy_drop_gate(counts: Classification, most: float) -> GateResult:
    """Judge the loss of top-1 accuracy on the same images by its paired interval.

    Raises:
        MissingComponentError: SciPy is not installed.
    """
    interval = paired_drop(counts.lost, counts.gained, counts.n)
    return _sampled("accuracy_drop", counts, counts.accuracy_drop, interval, most, higher_is_better=False)


def share_bounds(successes: int, n: int) -> tuple[float, float]:
    """Return both one-sided 99 % bounds of a share; (0, 1) of no samples."""
    if n == 0:
        return 0.0, 1.0
    require("scipy")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=2 * CONFIDENCE - 1, method="exact")
    return float(interval.low), float(interval.high)


def paired_drop(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return both one-sided 99 % bounds of (lost - gained) / n.

    The wider side of two intervals, since each covers too rarely where discordant pairs are few and all on one side: the
    adjusted Wald interval (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479) on the side of those pairs, the score
    interval (Tango 1998, Stat. Med. 17:891) on the other.

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
    z = float(norm.ppf(CONFIDENCE))
    error = z * math.sqrt((p_lost + p_gained - drop**2) / (n + 2))
    lower, upper = (_score_bound(lost, gained, n, z, end) for end in (-1.0, 1.0))
    return max(-1.0, min(lower, drop - error)), min(1.0, max(upper, drop + error))


def _score_bound(lost: int, gained: int, n: int, z: float, end: float) -> float:
    """Return the drop between the measured one and `end` at which Tango's score statistic reaches `z`, by bisection."""
    inside, outside = (lost - gained) / n, end
    for _ in range(BISECTIONS):
        drop = (inside + outside) / 2
        linear, spread = (2 * n - lost + gained) * drop - lost - gained, drop * (1 - drop)
        root = math.sqrt(max(0.0, linear**2 + 8 * n * gained * spread))
        p_gained = (root - linear) / (4 * n)  # the likeliest for this drop
        if abs(lost - gained - n * drop) <= z * math.sqrt(max(0.0, n * (2 * p_gained + spread))):
            inside = drop
        else:
            outside = drop
    return inside


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
    verdict = Verdict.of_interval(lower, upper, bound, higher_is_better=higher_is_better)
    reason = ""
    if counts.n == 0:
        verdict, reason = Verdict.FAIL, "zero samples"
    elif verdict is Verdict.INCONCLUSIVE:
        reason = f"{counts.n:,} images can't tell at {CONFIDENCE:.0%} confidence: use more"
    return GateResult(
        kind=GateKind.DRIFT,
        metric=metric,
        reference="original",
        value=value,
        lower=lower,
        upper=upper,
        bound=bound,
        higher_is_better=higher_is_better,
        n=counts.n,
        verdict=verdict,
        reason=reason,
    )
