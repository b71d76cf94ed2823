"""Numeric gates: drift is told from what answers share, and from what float32 rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.runtime.golden import HUB, ORIGINAL
from deploykit.runtime.numeric import Subject, measured_rounding, numeric_gates, rounding_of
from deploykit.verdict import Budget, GateResult, Verdict

BUDGET = Budget(relative_max=1e-4, sqnr_db=80.0, cosine=0.999999)
VARYING: NDArray[np.float64] = np.random.default_rng(0).standard_normal((16, 10))
FLAT = (1000 + VARYING).astype(np.float32)
SUBJECT = Subject(ORIGINAL, "logits")


def judged(
    expected: NDArray[np.generic], found: NDArray[np.generic], subject: Subject = SUBJECT, budget: Budget = BUDGET
) -> tuple[dict[str, GateResult], dict[str, float]]:
    metrics: dict[str, float] = {}
    gates = {gate.metric: gate for gate in numeric_gates(expected, found, budget, subject, metrics)}
    return gates, metrics


def test_a_fault_behind_a_large_constant_fails_and_the_raw_figure_is_told() -> None:
    gates, metrics = judged(FLAT, (1000 + 1.05 * VARYING).astype(np.float32))
    assert metrics["sqnr_db_raw"] > 80 > 30 > metrics["sqnr_db"]
    assert metrics["relative_max_raw"] < 1e-3 < metrics["relative_max"]
    assert gates["sqnr_db"].verdict is gates["relative_max"].verdict is Verdict.FAIL
    assert "what all of them share" in gates["sqnr_db"].reason


def test_what_float32_rounds_is_inconclusive_and_never_a_pass() -> None:
    found = np.nextafter(np.nextafter(FLAT, np.float32(np.inf)), np.float32(np.inf))
    gates, metrics = judged(FLAT, found)
    assert metrics["sqnr_db"] < 80
    assert gates["sqnr_db"].verdict is Verdict.INCONCLUSIVE
    assert "--golden" in gates["sqnr_db"].reason
    assert Verdict.worst(gate.verdict for gate in gates.values()) is Verdict.INCONCLUSIVE


@given(st.floats(1e-3, 1.0))
def test_what_exceeds_rounding_fails(size: float) -> None:
    gates, _ = judged(FLAT, FLAT + np.float32(size) * VARYING.astype(np.float32))
    assert gates["sqnr_db"].verdict is Verdict.FAIL


def test_measured_rounding_excuses_more_than_the_distance_of_numbers() -> None:
    noise = np.random.default_rng(1).standard_normal(FLAT.shape) * 1e-3
    found = (FLAT + noise).astype(np.float32)
    assert judged(FLAT, found)[0]["sqnr_db"].verdict is Verdict.FAIL
    known = Subject(ORIGINAL, "logits", rounding=1e-6)
    assert judged(FLAT, found, known)[0]["sqnr_db"].verdict is Verdict.INCONCLUSIVE


def test_rounding_excuses_no_nan() -> None:
    found = FLAT.copy()
    found[3, 3] = np.nan
    gates, _ = judged(FLAT, found, Subject(ORIGINAL, "logits", rounding=math.inf))
    assert {gate.verdict for gate in gates.values()} == {Verdict.FAIL}


def test_fewer_bits_that_keep_what_they_can_prove_nothing_where_answers_hardly_vary() -> None:
    int8, coarse = Budget(sqnr_db=15.0), Subject(ORIGINAL, "logits", is_coarse=True)
    noise = np.random.default_rng(1).standard_normal(FLAT.shape)
    kept, lost = (FLAT + size * noise for size in (5.0, 100.0))
    gate = judged(FLAT, kept, coarse, int8)[0]["sqnr_db"]
    assert (gate.verdict, gate.value < 0) == (Verdict.INCONCLUSIVE, True)
    assert "47 dB" in gate.reason
    assert judged(FLAT, lost, coarse, int8)[0]["sqnr_db"].verdict is Verdict.FAIL
    assert judged(FLAT, kept, SUBJECT, int8)[0]["sqnr_db"].verdict is Verdict.FAIL


def test_equal_answers_pass_however_little_they_vary() -> None:
    gates, _ = judged(FLAT, FLAT.copy())
    assert {gate.verdict for gate in gates.values()} == {Verdict.PASS}


def test_answers_of_nothing_but_noughts_are_equal_or_not() -> None:
    nought = np.zeros((4, 3), np.float32)
    assert {gate.verdict for gate in judged(nought, nought.copy())[0].values()} == {Verdict.PASS}
    assert judged(nought, nought + np.float32(1e-9))[0]["sqnr_db"].verdict is Verdict.FAIL


def test_a_lost_score_beside_boxes_in_pixels_fails() -> None:
    random = np.random.default_rng(2)
    boxes = np.concatenate([random.uniform(0, 640, (16, 20, 4)), random.uniform(0, 1, (16, 20, 1))], axis=2)
    found = boxes.copy()
    found[..., 4] = 0.5
    gates, _ = judged(boxes, found, budget=Budget(sqnr_db=45.0))
    assert gates["sqnr_db"].verdict is Verdict.PASS
    assert gates["channels_sqnr_db"].verdict is Verdict.FAIL


def test_the_median_and_the_worst_row_stand_beside_the_aggregate() -> None:
    found = VARYING.copy()
    found[5] *= 1.5
    _, metrics = judged(VARYING, found)
    assert metrics["sqnr_db_median"] == math.inf
    assert metrics["sqnr_db_worst"] == pytest.approx(6, abs=1)
    _, from_hub = judged(VARYING, found, Subject(HUB, "logits"))
    assert not any("median" in name or "raw" in name for name in from_hub)


def test_two_float32_computations_tell_what_rounding_does() -> None:
    near, wrong = np.nextafter(FLAT, np.float32(0)), (FLAT * np.float32(1.01))
    assert rounding_of({ORIGINAL: {"logits": FLAT}, HUB: {"logits": near}}, {})["logits"] > 0
    assert rounding_of({ORIGINAL: {"logits": FLAT}, HUB: {"logits": wrong}}, {}) == {}
    assert rounding_of({ORIGINAL: {"logits": FLAT}}, {"logits": 2.0}) == {"logits": 2.0}
    assert rounding_of({ORIGINAL: {"logits": FLAT}, HUB: {"logits": near[:3]}}, {}) == {}


def test_an_original_of_pytorch_is_compared_with_itself_in_float64() -> None:
    original = sources.resolve("tiny-convnext", SourceOptions())
    inputs = {original.input_name: np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)}
    with sources.open_original(original) as session:
        before = session.infer(inputs)
        rounding = measured_rounding(session, inputs, 2)
        after = session.infer(inputs)
    ((name, value),) = rounding.items()
    assert 0 < value < 1e-9
    assert np.array_equal(before[name], after[name]), "the weights are what they were"


def rows_of_noise(sizes: list[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Answers of which each row is off by a size of its own."""
    expected = np.random.default_rng(5).standard_normal((len(sizes), 50)).astype(np.float32)
    expected -= expected.mean(axis=0)
    signs = np.where(np.arange(50) % 2, 1, -1)
    return expected, (expected + np.asarray(sizes)[:, None] * signs).astype(np.float32)


def test_a_pass_that_hangs_on_which_inputs_were_drawn_is_inconclusive() -> None:
    expected, found = rows_of_noise([1e-5] * 12 + [3e-4] * 4)
    near = Budget(sqnr_db=75.5)
    gates, metrics = judged(expected, found, budget=near)
    judged_value = gates["sqnr_db"]
    assert 75.5 < metrics["sqnr_db"] == judged_value.value == judged_value.upper
    assert judged_value.lower < 75.5
    assert judged_value.verdict is Verdict.INCONCLUSIVE
    assert "16 golden inputs" in judged_value.reason
    assert "--golden-size" in judged_value.reason
    assert judged(expected, found, budget=Budget(sqnr_db=70.0))[0]["sqnr_db"].verdict is Verdict.PASS
    assert judged(expected, found, budget=Budget(sqnr_db=80.0))[0]["sqnr_db"].verdict is Verdict.FAIL


def test_rows_that_are_all_off_alike_leave_nothing_open() -> None:
    signs = np.where(np.arange(16) % 2, 1.0, -1.0).astype(np.float32)
    expected = signs[:, None] * np.asarray([1.0, 2.0, 3.0], np.float32)
    gates, _ = judged(expected, expected * np.float32(1 + 1e-4), budget=Budget(sqnr_db=79.0))
    assert gates["sqnr_db"].verdict is Verdict.PASS
    assert gates["sqnr_db"].lower == pytest.approx(gates["sqnr_db"].value, abs=1e-6)
