"""What says that a machine had no time for what was timed on it, on numbers that are made up: nothing here is timed."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import timing as usual

from deploykit.runtime import load
from deploykit.runtime.latency import ceiling_gate, median_interval, speed_gate
from deploykit.runtime.load import MOST_SPREAD, doubts, others, ratio_doubts
from deploykit.verdict import Ran, Ratio, Timing, Verdict

CORES = load.logical_cores()
RATIO = Ratio(2.0, 1.9, 2.1, 20)


def timed(rounds_ms: list[float], *, minimum: float | None = None, threads: int | None = 1) -> Timing:
    """Return the timing of these rounds."""
    lower, upper = median_interval(rounds_ms)
    return replace(
        usual(),
        ran=Ran("onnxruntime", "1", "cpu", "f32", threads),
        run=replace(usual().run, threads=threads),
        median_ms=float(np.median(rounds_ms)),
        median_lower_ms=lower,
        median_upper_ms=upper,
        min_ms=min(rounds_ms) if minimum is None else minimum,
        rounds=len(rounds_ms),
    )


@given(st.lists(st.floats(0.9, 1.1), min_size=1, max_size=40), st.floats(1e-3, 1e4))
def test_nothing_speaks_against_rounds_that_agree(rounds: list[float], scale: float) -> None:
    assert doubts(timed([scale * each for each in rounds]), 0) == ()


@given(st.lists(st.floats(1, 1.1), min_size=6, max_size=40), st.floats(2.3, 1000))
def test_a_median_far_above_the_fastest_is_unsure(rounds: list[float], times: float) -> None:
    (reason,) = doubts(timed(rounds, minimum=1.0 / times), 0)
    assert reason.startswith("machine busy: a median of ")


def test_what_was_seen_is_told_with_its_numbers() -> None:
    found = doubts(timed([262.0] * 20, minimum=16.0), 0)
    assert found == ("machine busy: a median of 262 ms beside a minimum of 16",)


@given(st.integers(3, 20), st.floats(1.51, 2.9))
def test_rounds_of_two_speeds_are_unsure(half: int, slow: float) -> None:
    (found,) = doubts(timed([1.0, slow] * half), 0)
    assert found == f"machine busy: a median of 1 to {slow:.3g} ms"


def test_too_few_rounds_are_no_sign_of_a_busy_machine() -> None:
    assert doubts(timed([1.0, 1.5, 1.2]), 0) == ()
    assert ratio_doubts(Ratio(2.0, 0.0, math.inf, 3), (), ()) == ()


@given(st.integers(1, 4 * CORES), st.integers(0, 4))
def test_more_threads_than_cores_are_told(threads: int, waiting: int) -> None:
    found = doubts(timed([1.0] * 20, threads=threads), waiting)
    assert any(reason == f"{threads} threads on {CORES} core{'s' * (CORES > 1)}" for reason in found) == (
        threads > CORES
    )
    everywhere = os.cpu_count() or 1
    assert any("want" in reason for reason in found) == (waiting > 0 and threads + waiting > everywhere)


def test_who_has_no_threads_asks_for_none() -> None:
    assert doubts(timed([1.0] * 20, threads=None), 1000) == ()


@given(st.floats(0.01, 100), st.floats(0, 3), st.floats(0, 3))
def test_a_ratio_is_as_sure_as_its_timings_and_itself(median: float, below: float, above: float) -> None:
    ratio = Ratio(median, median / (1 + below), median * (1 + above), 20)
    wide = ratio.lower < median * (1 - MOST_SPREAD) or ratio.upper > median * (1 + MOST_SPREAD)
    assert bool(ratio_doubts(ratio, (), ())) == wide
    assert ratio_doubts(ratio, ("a", "b"), ("b", "c")) == ("a", "b", "what it is compared with: c")


@given(st.sampled_from([RATIO, Ratio(0.5, 0.4, 0.6, 20), Ratio(100.0, 99.0, 101.0, 20)]), st.floats(0.01, 200))
def test_an_unsure_speedup_neither_passes_nor_fails(ratio: Ratio, bound: float) -> None:
    unsure = replace(timed([1.0] * 20), speedup=replace(ratio, doubts=("8 threads on 2 cores", "machine busy: x")))
    result = speed_gate(unsure, bound)
    assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "8 threads on 2 cores; machine busy: x")


def test_an_unsure_median_may_pass_a_ceiling_and_never_fails_it() -> None:
    unsure = replace(timed([1.0] * 20), doubts=("machine busy: x",))
    assert ceiling_gate(unsure, 1.2).verdict is Verdict.PASS
    assert ceiling_gate(timed([1.0] * 20), 0.5).verdict is Verdict.FAIL
    result = ceiling_gate(unsure, 0.5)
    assert (result.verdict, result.reason) == (Verdict.INCONCLUSIVE, "machine busy: x")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0.52 0.58 0.59 3/467 12345", 2),
        ("0.00 0.00 0.00 1/80 9", 0),
        ("0.00 0.00 0.00 0/0 0", 0),
        ("", 0),
        ("1 2 3", 0),
        ("1 2 3 x/y 4", 0),
    ],
)
def test_threads_that_want_to_run(text: str, count: int) -> None:
    assert load._runnable(text) == count


def test_this_machine_tells_of_itself() -> None:
    assert others() >= 0
    assert 1 <= load.physical_cores() <= CORES
