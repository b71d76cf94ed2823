from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from deploykit.runtime import drift
from deploykit.runtime.drift import (
    TIE_MARGIN,
    Answers,
    Array,
    channels_sqnr_db,
    classify,
    cosine_min,
    is_finite,
    mean_answer,
    psnr_db,
    relative_max,
    rows_sqnr_db,
    sqnr_db,
)

METRICS = (relative_max, sqnr_db, psnr_db, cosine_min)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
NUMBERS = st.floats(-1e6, 1e6, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    shape = draw(SHAPES)
    array = hnp.arrays(np.float32, shape, elements=NUMBERS)
    return draw(array), draw(array)


@given(pairs())
def test_metrics_equal_their_formulas_in_exact_arithmetic(pair: tuple[Array, Array]) -> None:
    r, c = ([float(value) for value in array.ravel()] for array in pair)
    assume(any(r) and r != c)
    gaps = [a - b for a, b in zip(r, c, strict=True)]
    assert relative_max(*pair) == pytest.approx(max(map(abs, gaps)) / max(map(abs, r)), rel=1e-12)
    signal, noise = math.fsum(a * a for a in r), math.fsum(gap * gap for gap in gaps)
    assert sqnr_db(*pair) == pytest.approx(10 * math.log10(signal / noise), rel=1e-9, abs=1e-9)
    assert cosine_min(*pair) == pytest.approx(min(cosine(*rows) for rows in zip(*pair, strict=True)), abs=1e-12)


def cosine(r: Array, c: Array) -> float:
    a, b = ([float(value) for value in np.ravel(array)] for array in (r, c))
    if not any(a) and not any(b):
        return 1.0
    length = math.hypot(*a) * math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


@given(pairs())
def test_equal_outputs_have_no_drift_and_others_some(pair: tuple[Array, Array]) -> None:
    r, c = pair
    assert (relative_max(r, r), sqnr_db(r, r)) == (0.0, np.inf)
    assert cosine_min(r, r) == pytest.approx(1.0, abs=1e-12)
    assert (relative_max(r, c) == 0.0) == (sqnr_db(r, c) == np.inf) == np.array_equal(r, c)


@given(pairs(), st.integers(-40, 40))
def test_metrics_do_not_depend_on_the_unit(pair: tuple[Array, Array], power: int) -> None:
    """A power of two scales without rounding, so nothing may change but the last bit."""
    r, c = (array.astype(np.float64) for array in pair)
    for metric in METRICS:
        assert metric(r * 2.0**power, c * 2.0**power) == pytest.approx(metric(r, c), rel=1e-12, abs=1e-12)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(0.5, 9, width=32)), st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_cosine_does_not_see_a_scale(r: Array, scale: float) -> None:
    assert cosine_min(r, r * np.float32(scale)) == pytest.approx(1.0, abs=1e-12)
    assert cosine_min(r, -r) == pytest.approx(-1.0, abs=1e-12)


def test_the_peak_is_the_range_of_the_reference_and_not_its_largest_value() -> None:
    reference = np.asarray([[10.0, 11.0, 12.0]])
    assert psnr_db(reference, reference + 0.02) == pytest.approx(40.0)
    assert psnr_db(reference, reference) == math.inf
    assert psnr_db(np.ones((1, 3)), np.zeros((1, 3))) == -math.inf
    assert math.isnan(psnr_db(reference, np.full((1, 3), np.nan)))


@pytest.mark.parametrize("decibels", [0.0, 20.0, 46.0, 90.0])
def test_noise_of_known_power_is_measured(decibels: float) -> None:
    draw = np.random.default_rng(1)
    signal, noise = draw.standard_normal((8, 100)), draw.standard_normal((8, 100))
    noise *= np.linalg.norm(signal) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    assert sqnr_db(signal, signal + noise) == pytest.approx(decibels, abs=1e-6)


def test_the_worst_row_decides_the_cosine() -> None:
    r, c = np.eye(3), np.eye(3)
    c[1] = [1.0, 0.0, 0.0]
    assert cosine_min(r, c) == 0.0


def test_zeros_are_no_division() -> None:
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    assert (relative_max(zero, zero), sqnr_db(zero, zero), cosine_min(zero, zero)) == (0.0, np.inf, 1.0)
    assert (relative_max(zero, one), sqnr_db(zero, one), cosine_min(zero, one)) == (np.inf, -np.inf, 0.0)
    assert (relative_max(one, zero), sqnr_db(one, zero), cosine_min(one, zero)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reference", [0.0, 1.0])
def test_a_value_that_is_not_finite_reaches_no_bound(bad: float, reference: float) -> None:
    r = np.full((2, 3), reference, np.float32)
    c = r.copy()
    c[1, 1] = bad
    assert not is_finite(c)
    assert not relative_max(r, c) <= 1e30
    assert not sqnr_db(r, c) >= -1e30
    assert not cosine_min(r, c) >= -1.0
    assert not relative_max(c, r) <= 1e30
    assert not sqnr_db(c, c) >= -1e30
    assert not relative_max(c, c) <= 1e30


@pytest.mark.parametrize("metric", METRICS)
def test_other_shapes_and_nothing_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"shapes differ: reference \[2, 3\], candidate \[3, 2\]"):
        metric(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="shapes differ"):
        metric(np.zeros((2, 3)), np.zeros((1, 3)))
    for shape in ((0,), (0, 3), (2, 0)):
        with pytest.raises(ValueError, match="nothing to compare"):
            metric(np.zeros(shape), np.zeros(shape))


def test_narrow_types_do_not_overflow() -> None:
    r, c = np.full((1, 4), 6e4, np.float16), np.full((1, 4), -6e4, np.float16)
    assert relative_max(r, c) == 2.0
    assert relative_max(np.asarray([[-128]], np.int8), np.asarray([[127]], np.int8)) == 255 / 128
    assert sqnr_db(r, c) == pytest.approx(10 * math.log10(1 / 4))


LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-100, 100, width=32), unique=True
)


@given(LOGITS, st.data())
def test_counts_equal_those_of_a_loop(logits: Array, data: st.DataObject) -> None:
    n, classes = logits.shape
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    candidate = data.draw(hnp.arrays(np.float32, (n, classes), elements=st.sampled_from([0, 1, 2, 3, np.nan])))
    reference = Answers.of(logits, labels)
    counts = classify(reference, candidate)
    flips, untied, lost, gained = 0, 0, 0, 0
    for row in range(n):
        best, second = sorted(map(float, logits[row]), reverse=True)[:2]
        broken = not np.isfinite(candidate[row]).all()
        mine, theirs = int(np.argmax(logits[row])), -1 if broken else int(np.argmax(candidate[row]))
        flips += mine != theirs
        untied += bool(mine != theirs and (broken or np.float32(best - second) >= np.float32(TIE_MARGIN)))
        lost += bool(mine == labels[row] != theirs)
        gained += bool(mine != labels[row] == theirs)
    assert (counts.n, counts.flips, counts.untied_flips, counts.lost, counts.gained) == (n, flips, untied, lost, gained)
    assert counts.correct_candidate - counts.correct_reference == gained - lost
    assert counts.agreement == (n - flips) / n
    assert counts.accuracy_drop == (lost - gained) / n


@pytest.mark.parametrize(
    ("margin", "untied"), [(0.0, 0), (TIE_MARGIN * 0.99, 0), (TIE_MARGIN, 1), (TIE_MARGIN * 1.01, 1), (5.0, 1)]
)
def test_only_a_tied_reference_excuses_a_flip(margin: float, untied: int) -> None:
    reference = Answers.of(np.asarray([[margin, 0.0]]), np.asarray([0]))
    counts = classify(reference, np.asarray([[0.0, 1.0]], np.float32))
    assert (counts.flips, counts.untied_flips, counts.lost) == (1, untied, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_row_is_a_flip_though_the_reference_is_tied(bad: float) -> None:
    reference = Answers.of(np.zeros((2, 3)), np.asarray([0, 0]))
    counts = classify(reference, np.asarray([[5.0, bad, 0.0], [5.0, 0.0, 0.0]], np.float32))
    assert (counts.flips, counts.untied_flips, counts.correct_candidate, counts.lost) == (1, 1, 1, 1)


def test_one_class_is_never_tied() -> None:
    reference = Answers.of(np.zeros((2, 1)), np.zeros(2, np.int64))
    assert reference.margin.tolist() == [np.inf, np.inf]
    assert classify(reference, np.zeros((2, 1), np.float32)).flips == 0


def test_no_samples_agree_about_nothing() -> None:
    counts = classify(Answers.of(np.zeros((0, 3)), np.zeros(0, np.int64)), np.zeros((0, 3), np.float32))
    assert counts.n == 0
    assert math.isnan(counts.agreement)
    assert math.isnan(counts.accuracy_drop)


@pytest.mark.parametrize(("logits", "labels"), [((3,), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1)), ((3, 2, 1), (3,))])
def test_answers_refuse_shapes_that_do_not_fit(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="logits must be"):
        Answers.of(np.zeros(logits), np.zeros(labels, np.int64))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (4, 2), (3, 2, 1), (0, 2), (3, 0)])
def test_classify_refuses_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits must be \[3, |empty"):
        classify(Answers.of(np.zeros((3, 2)), np.zeros(3, np.int64)), np.zeros(shape, np.float32))


@given(pairs(), st.floats(-1e4, 1e4, width=32))
def test_about_the_mean_answer_what_rows_share_counts_for_nothing(pair: tuple[Array, Array], offset: float) -> None:
    r, c = (array.astype(np.float64) for array in pair)
    assume(len(r) > 1 and np.ptp(r, axis=0).max() > 1e-3)
    apart = np.abs(r - c).max()
    assume(apart == 0.0 or apart > 1e-6)  # less is lost in the rounding of what it is added to
    moved = r + offset, c + offset
    for metric in (relative_max, sqnr_db):
        expected = metric(r, c, mean_answer(r))
        assert metric(*moved, mean_answer(moved[0])) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_large_constant_hides_drift_from_raw_metrics_alone() -> None:
    varying = np.random.default_rng(0).standard_normal((16, 10))
    reference, candidate = 1000 + varying, 1000 + 1.05 * varying
    assert sqnr_db(reference, candidate) > 80
    assert sqnr_db(reference, candidate, mean_answer(reference)) == pytest.approx(26, abs=1)
    assert relative_max(reference, candidate) < 1e-3
    assert relative_max(reference, candidate, mean_answer(reference)) == pytest.approx(0.05, abs=0.01)


def test_one_row_varies_about_nothing() -> None:
    row = np.asarray([[3.0, 4.0]])
    assert np.array_equal(mean_answer(row), np.zeros((1, 2)))
    assert np.array_equal(mean_answer(np.empty((0, 2))), np.zeros((1, 2)))


@given(pairs())
def test_each_row_is_measured_as_if_it_were_alone(pair: tuple[Array, Array]) -> None:
    r, c = pair
    assert rows_sqnr_db(r, c).shape == (len(r),)
    assert rows_sqnr_db(r, c).tolist() == pytest.approx([sqnr_db(r[i : i + 1], c[i : i + 1]) for i in range(len(r))])


def boxes(rows: int = 8) -> Array:
    """Return boxes of four sides in pixels and a score, [rows, 20, 5]."""
    random = np.random.default_rng(0)
    sides, score = random.uniform(0, 640, (rows, 20, 4)), random.uniform(0, 1, (rows, 20, 1))
    return np.concatenate([sides, score], axis=2)


def test_a_lost_channel_of_small_scale_is_seen() -> None:
    reference = boxes()
    candidate = reference.copy()
    candidate[..., 4] = reference[..., 4].mean()
    about = mean_answer(reference)
    assert sqnr_db(reference, candidate, about) > 50
    found = channels_sqnr_db(reference, candidate, about)
    assert found is not None
    assert 5 < found < 8  # one of five channels is all noise: 10 log10(5)


def test_channels_of_one_scale_need_no_metric_of_their_own() -> None:
    reference = np.random.default_rng(0).standard_normal((8, 12))
    assert channels_sqnr_db(reference, reference + 0.01) is None
    assert channels_sqnr_db(np.zeros((4, 3)), np.ones((4, 3))) is None


def test_dead_channels_are_not_asked_for_precision() -> None:
    reference = boxes()
    reference[..., 4] *= 1e-6
    candidate = reference.copy()
    candidate[..., 4] += 1e-5
    assert channels_sqnr_db(reference, candidate, mean_answer(reference)) is None


def test_equal_channels_are_infinitely_near() -> None:
    assert channels_sqnr_db(boxes(), boxes()) == math.inf


@given(st.floats(1e-3, 1e3), st.integers(0, 4))
def test_the_scale_of_a_channel_does_not_matter_where_each_has_its_own(scale: float, channel: int) -> None:
    noise = np.random.default_rng(1).standard_normal((8, 20, 5)) * np.asarray([1, 1, 1, 1, 1e-3])
    reference, candidate = boxes(), boxes() + noise
    before = channels_sqnr_db(reference, candidate, mean_answer(reference))
    factors = np.ones(5)
    factors[channel] = scale if channel < 4 else min(scale, 50.0)
    after = channels_sqnr_db(reference * factors, candidate * factors, mean_answer(reference * factors))
    assert before is not None
    alive = np.abs(np.log10(np.asarray([185, 185, 185, 185, 0.29]) * factors / max(185 * factors.max(), 1))).max() < 2.9
    if after is not None and alive:
        assert after == pytest.approx(before, abs=0.5)


@pytest.mark.parametrize(("spread", "least"), [(0.1, 0.96), (0.3, 0.92), (0.5, 0.87)])
def test_the_lower_bound_of_the_sqnr_lies_below_what_all_inputs_have(spread: float, least: float) -> None:
    random = np.random.default_rng(11)
    sizes = np.exp(random.normal(0.0, spread, 8000))
    expected = random.standard_normal((8000, 20))
    found = expected + 1e-3 * sizes[:, None] * random.standard_normal((8000, 20))
    true = drift.sqnr_db(expected, found)
    bounds = [drift.sqnr_db_least(expected[at : at + 16], found[at : at + 16]) for at in range(0, 8000, 16)]
    assert least < np.mean([bound <= true for bound in bounds]) < 1.0


@given(st.integers(0, 2**31))
def test_the_lower_bound_of_the_sqnr_lies_between_its_worst_row_and_its_value(seed: int) -> None:
    random = np.random.default_rng(seed)
    expected = random.standard_normal((8, 5))
    found = expected + random.standard_normal((8, 5)) * 10.0 ** random.uniform(-4, 0, (8, 1))
    least = drift.sqnr_db_least(expected, found)
    assert drift.rows_sqnr_db(expected, found).min() - 1e-9 <= least <= drift.sqnr_db(expected, found) + 1e-9


def test_of_one_row_the_lower_bound_is_the_value_and_of_equal_ones_infinite() -> None:
    one = np.ones((1, 3))
    assert drift.sqnr_db_least(one, one * 1.1) == drift.sqnr_db(one, one * 1.1)
    many = np.arange(12.0).reshape(4, 3)
    assert drift.sqnr_db_least(many, many) == math.inf
    assert drift.sqnr_db_least(np.zeros((4, 3)), np.ones((4, 3))) == -math.inf
