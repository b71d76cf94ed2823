from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, multinomial

from deploykit.runtime import gate
from deploykit.runtime.drift import Classification
from deploykit.verdict import GateKind, Verdict

PASS, FAIL, UNSURE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
NAN = float("nan")
#: The bounds promise 99 % on each side. They are approximations: the share of misses may be half as much again, no more.
LEAST_COVERAGE = 0.985


def counts(n: int, flips: int = 0, lost: int = 0, gained: int = 0) -> Classification:
    return Classification(n, n // 2 + lost - gained, n // 2, flips, flips, lost, gained)


@pytest.mark.parametrize(
    ("value", "bound", "higher", "n", "verdict"),
    [
        (0.5, 1.0, False, 1, PASS),
        (1.0, 1.0, False, 1, PASS),
        (np.nextafter(1.0, 2), 1.0, False, 1, FAIL),
        (2.0, 1.0, True, 1, PASS),
        (1.0, 1.0, True, 1, PASS),
        (np.nextafter(1.0, 0), 1.0, True, 1, FAIL),
        (0.0, 0, False, 5, PASS),
        (1, 0, False, 5, FAIL),
        (NAN, 1.0, False, 5, FAIL),
        (NAN, 1.0, True, 5, FAIL),
        (0.0, NAN, False, 5, FAIL),
        (math.inf, 1.0, True, 5, PASS),
        (math.inf, 1.0, False, 5, FAIL),
        (-math.inf, 1.0, True, 5, FAIL),
        (0.5, 1.0, False, 0, FAIL),
        (NAN, NAN, False, 0, FAIL),
    ],
)
def test_a_number_passes_or_fails(value: float, bound: float, higher: bool, n: int, verdict: Verdict) -> None:
    found = gate.numeric_gate("m", value, bound, higher_is_better=higher, reference="hub", n=n)
    assert (found.verdict, found.kind, found.reference, found.n) == (verdict, GateKind.DRIFT, "hub", n)
    assert found.reason == ("zero samples" if n == 0 else "")


@pytest.mark.parametrize(
    ("n", "flips", "least", "verdict"),
    [
        (10_000, 10, 0.98, PASS),
        (10_000, 1_000, 0.98, FAIL),
        (10_000, 200, 0.98, UNSURE),
        (10, 0, 0.98, UNSURE),
        (10, 10, 0.98, FAIL),
        (1, 1, 0.0, PASS),
        (1, 0, 1.0, UNSURE),
        (0, 0, 0.0, FAIL),
        (0, 0, 0.98, FAIL),
        (10_000, 0, NAN, UNSURE),
    ],
)
def test_agreement_has_three_endings(n: int, flips: int, least: float, verdict: Verdict) -> None:
    found = gate.agreement_gate(counts(n, flips), least)
    assert (found.verdict, found.metric, found.n) == (verdict, "agreement", n)
    assert bool(found.reason) == (verdict is UNSURE or n == 0)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "most", "verdict"),
    [
        (10_000, 10, 10, 0.01, PASS),
        (10_000, 300, 10, 0.01, FAIL),
        (10_000, 150, 50, 0.01, UNSURE),
        (10_000, 0, 300, 0.01, PASS),
        (20, 0, 0, 0.01, UNSURE),
        (20, 20, 0, 0.01, FAIL),
        (0, 0, 0, 0.01, FAIL),
        (0, 0, 0, 1.0, FAIL),
        (10_000, 0, 0, NAN, UNSURE),
    ],
)
def test_accuracy_drop_has_three_endings(n: int, lost: int, gained: int, most: float, verdict: Verdict) -> None:
    found = gate.accuracy_drop_gate(counts(n, lost + gained, lost, gained), most)
    assert (found.verdict, found.metric, found.n) == (verdict, "accuracy_drop", n)


def test_the_reason_tells_how_many_images_were_too_few() -> None:
    assert gate.agreement_gate(counts(1_234, 20), 0.98).reason == "1,234 images can't tell at 99% confidence: use more"


@pytest.mark.parametrize("n", [7, 500])
def test_a_bound_equal_to_the_budget_reaches_it(n: int) -> None:
    lower, upper = gate.share_bounds(n - 3, n)
    measured = counts(n, 3, 3, 0)
    assert gate.agreement_gate(measured, lower).verdict is PASS
    assert gate.agreement_gate(measured, np.nextafter(lower, 1)).verdict is UNSURE
    assert gate.agreement_gate(measured, upper).verdict is UNSURE
    assert gate.agreement_gate(measured, np.nextafter(upper, 2)).verdict is FAIL
    least, most = gate.paired_drop(3, 0, n)
    assert gate.accuracy_drop_gate(measured, most).verdict is PASS
    assert gate.accuracy_drop_gate(measured, np.nextafter(most, -1)).verdict is UNSURE
    assert gate.accuracy_drop_gate(measured, least).verdict is UNSURE
    assert gate.accuracy_drop_gate(measured, np.nextafter(least, -2)).verdict is FAIL


@given(st.integers(1, 3000), st.data())
def test_bounds_enclose_what_was_measured(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    lower, upper = gate.share_bounds(successes, n)
    assert 0.0 <= lower <= successes / n + 1e-12
    assert successes / n - 1e-12 <= upper <= 1.0
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = gate.paired_drop(lost, gained, n)
    assert -1.0 <= low < high <= 1.0
    other_low, other_high = gate.paired_drop(gained, lost, n)
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-9)


def test_no_samples_bound_nothing() -> None:
    assert gate.share_bounds(0, 0) == (0.0, 1.0)
    assert gate.paired_drop(0, 0, 0) == (-1.0, 1.0)


@settings(max_examples=30)
@given(st.integers(10, 400), st.integers(0, 10))
def test_more_of_the_same_images_narrow_the_bounds(n: int, errors: int) -> None:
    def width(times: int) -> float:
        low, high = gate.share_bounds(times * (n - errors), times * n)
        return high - low

    assert width(4) < width(1)
    low, high = gate.paired_drop(errors, errors, 2 * n)
    narrow, wide = gate.paired_drop(4 * errors, 4 * errors, 8 * n)
    assert wide - narrow < high - low


#: Expected number of rare events, from next to none to many.
RARE = (0.05, 0.14, 0.5, 1.0, 2.0, 3.3, 4.7, 5.3, 8.0, 15.0)


@pytest.mark.parametrize("n", [20, 137, 300])
def test_each_bound_of_a_share_holds_as_often_as_it_promises(n: int) -> None:
    """Exact: every possible count, weighed by its probability; no random numbers."""
    successes = np.arange(n + 1)
    bounds = np.asarray([gate.share_bounds(int(k), n) for k in successes])
    shares = {1 - rare / n for rare in RARE if rare < n} | {0.5, 0.8, 0.9, 0.99}
    for share in sorted(shares):
        weights: NDArray[np.float64] = np.asarray(binom.pmf(successes, n, share))
        assert weights[bounds[:, 0] <= share].sum() >= LEAST_COVERAGE, (share, "a lucky pass")
        assert weights[bounds[:, 1] >= share].sum() >= LEAST_COVERAGE, (share, "an unlucky fail")


def discordant(n: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return every (lost, gained) up to `most` each, and the bounds that follow."""
    pairs = np.asarray([pair for pair in itertools.product(range(most), repeat=2) if sum(pair) <= n])
    return pairs, np.asarray([gate.paired_drop(int(lost), int(gained), n) for lost, gained in pairs])


@pytest.mark.parametrize("n", [30, 1000])
def test_each_bound_of_a_drop_holds_as_often_as_it_promises(n: int) -> None:
    pairs, bounds = discordant(n, 24)
    table = np.column_stack([pairs, n - pairs.sum(axis=1)])
    for lost, gained in itertools.product((0.0, 0.5, 1.0, 3.3, 5.1), repeat=2):
        if lost + gained == 0.0:
            continue
        drop = (lost - gained) / n
        shares = [lost / n, gained / n, 1 - (lost + gained) / n]
        weights: NDArray[np.float64] = np.asarray(multinomial.pmf(table, n, shares))
        unseen = 1 - weights.sum()
        assert unseen < 1e-6
        assert weights[bounds[:, 1] >= drop - 1e-12].sum() >= LEAST_COVERAGE, (lost, gained, "a lucky pass")
        assert weights[bounds[:, 0] <= drop + 1e-12].sum() >= LEAST_COVERAGE, (lost, gained, "an unlucky fail")


@pytest.mark.parametrize(("n", "lost", "gained"), [(400, 0.02, 0.0), (400, 0.0, 0.02), (500, 0.03, 0.02)])
def test_coverage_is_what_a_simulation_finds(n: int, lost: float, gained: float) -> None:
    """4,000 draws: at 99 % coverage the standard error is 0.16 %, so three of them below 98.5 % would be chance."""
    draws = np.random.default_rng(11).multinomial(n, [lost, gained, 1 - lost - gained], 4000)
    kinds, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    bounds = np.asarray([gate.paired_drop(int(a), int(b), n) for a, b in kinds])
    allowed = LEAST_COVERAGE - 3 * math.sqrt(0.99 * 0.01 / 4000)
    assert times[bounds[:, 1] >= lost - gained].sum() / 4000 >= allowed
    assert times[bounds[:, 0] <= lost - gained].sum() / 4000 >= allowed
