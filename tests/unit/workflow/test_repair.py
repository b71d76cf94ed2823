"""Which layers go back: prices, floors and aims."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import gate

from deploykit.export.quantize.cost import Layer, relative_errors
from deploykit.verdict import GateResult, Verdict
from deploykit.workflow.repair import AIMS, MARGIN, Aim, Choice, Costed, aim_of, share_left

GOLDEN, ROWS = 2, 6


def costed(name: str, macs: int, *errors: float) -> Costed:
    return Costed(Layer(name, f"module.{name}", macs), np.resize(np.asarray(errors, np.float64), ROWS))


def failed(metric: str, value: float, bound: float) -> GateResult:
    return replace(gate(verdict=Verdict.FAIL), metric=metric, value=value, lower=value, upper=value, bound=bound)


costs = st.lists(
    st.tuples(st.integers(1, 10**6), st.lists(st.floats(0.0, 1.0), min_size=ROWS, max_size=ROWS)),
    min_size=1,
    max_size=8,
).map(lambda rows: [costed(f"n{number}", macs, *errors) for number, (macs, errors) in enumerate(rows)])
aims = st.builds(Aim, st.floats(0.0, 1.0), st.booleans())


@given(costs, aims, st.floats(0.0, 1.0), st.data())
def test_the_floor_holds_and_no_layer_goes_back_twice(
    entries: list[Costed], aim: Aim, floor: float, data: st.DataObject
) -> None:
    names = [entry.layer.node for entry in entries]
    returned = data.draw(st.lists(st.sampled_from(names), unique=True))
    chosen = Choice(entries, GOLDEN, floor).more(returned, [aim])
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(returned)
    macs = {entry.layer.node: entry.layer.macs for entry in entries}
    left = sum(macs[name] for name in names if name not in {*returned, *chosen}) / sum(macs.values())
    assert not chosen or left >= floor - 1e-9


@given(costs, aims)
def test_without_a_floor_what_remains_meets_the_aim_and_nothing_goes_back_once_it_does(
    entries: list[Costed], aim: Aim
) -> None:
    chosen = Choice(entries, GOLDEN, 0.0).more((), [aim])

    def error_without(names: tuple[str, ...]) -> float:
        rows = [entry.errors for entry in entries if entry.layer.node not in names]
        return aim.of(np.sum(rows, axis=0) if rows else np.zeros(ROWS), GOLDEN)

    limit = aim.remaining * error_without(())
    assert error_without(chosen) <= limit + 1e-9
    assert not chosen or error_without(chosen[:-1]) > limit - 1e-9


def test_the_layer_that_relieves_most_for_its_price_goes_first() -> None:
    entries = [costed("large", 900, 0.5), costed("small", 50, 0.4), costed("idle", 50, 0.0)]
    assert Choice(entries, GOLDEN, 0.0).more((), [Aim(0.6)]) == ("small",)


def test_an_aim_at_the_worst_golden_input_looks_at_no_other_row() -> None:
    elsewhere = Costed(Layer("elsewhere", "", 1), np.asarray([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    here = Costed(Layer("here", "", 1), np.asarray([0.3, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert Choice([elsewhere, here], GOLDEN, 0.0).more((), [Aim(0.5, worst=True)]) == ("here",)
    assert Choice([elsewhere, here], GOLDEN, 0.0).more((), [Aim(0.5)]) == ("elsewhere",)


def test_nothing_goes_back_where_the_floor_lets_only_idle_layers_go() -> None:
    entries = [costed("heavy", 950, 0.5), costed("idle", 50, 0.0)]
    assert Choice(entries, GOLDEN, 0.9).more((), [Aim(0.5)]) == ()


@given(entries=costs, aim=aims, floor=st.floats(0.0, 0.9), missing=st.floats(1e-6, 0.1))
def test_layers_after_whose_return_a_runtime_ran_too_little_in_8_bits_are_not_returned_again(
    entries: list[Costed], aim: Aim, floor: float, missing: float
) -> None:
    returned = Choice(entries, GOLDEN, floor).more((), [aim])
    left = share_left(entries, returned)
    assert returned or math.isclose(left, 1.0)
    again = Choice(entries, GOLDEN, left + missing).more((), [aim])
    assert not again or share_left(entries, again) >= left + missing
    assert not again or again != returned


@pytest.mark.parametrize(
    ("metric", "value", "bound", "remaining"),
    [("sqnr_db", 12.0, 15.0, 10**-0.3), ("cosine", 0.98, 0.99, 0.5), ("agreement", 0.9, 0.95, 0.25)],
)
def test_an_aim_follows_from_the_gate(metric: str, value: float, bound: float, remaining: float) -> None:
    aim = aim_of(failed(metric, value, bound))
    assert aim is not None
    assert math.isclose(aim.remaining, MARGIN * remaining, rel_tol=1e-12)


@pytest.mark.parametrize("metric", ["finite", "untied_flips", "unheard_of"])
def test_no_aim_for_what_a_smaller_error_does_not_cure(metric: str) -> None:
    assert aim_of(failed(metric, 0.0, 1.0)) is None


@pytest.mark.parametrize("metric", sorted(AIMS))
def test_no_aim_where_the_measurement_is_no_number(metric: str) -> None:
    assert aim_of(failed(metric, math.nan, 0.5)) is None


def test_relative_errors_end_at_one() -> None:
    expected = np.asarray([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
    found = np.asarray([[3.0, 4.5], [300.0, 4.0], [math.nan, 4.0], [1.0, 0.0]], np.float32)
    assert relative_errors(expected, found).tolist() == [0.01, 1.0, 1.0, 0.0]
