"""Would the gates have noticed? What counts as caught, what is told, and what can't be read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.bundle import save_tensors
from deploykit.errors import BadInputError
from deploykit.runtime import power
from deploykit.runtime.power import SCALED, SHIFTED, InjectedFault
from deploykit.verdict import Budget, Verdict

BUDGET = Budget(relative_max=1e-2, sqnr_db=40.0, cosine=0.999)
HARMLESS = InjectedFault(SCALED, "w", 1e-3, 50.0, 0.9999)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (HARMLESS, False),
        (InjectedFault(SCALED, "w", 2e-2, 50.0, 0.9999), True),
        (InjectedFault(SCALED, "w", 1e-3, 39.9, 0.9999), True),
        (InjectedFault(SCALED, "w", 1e-3, 50.0, 0.99), True),
        (InjectedFault(SCALED, "w", math.nan, math.nan, math.nan), True),
        (InjectedFault(SCALED, "w", 0.0, math.inf, 1.0), False),
    ],
)
def test_a_fault_is_caught_where_one_of_the_gates_fails_on_it(fault: InjectedFault, *, caught: bool) -> None:
    assert fault.exceeds(BUDGET) is caught


def test_what_is_no_number_is_caught_even_where_nothing_is_gated() -> None:
    assert InjectedFault(SCALED, "w", math.nan, math.nan, math.nan).exceeds(Budget())
    assert not HARMLESS.exceeds(Budget())


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_the_share_is_that_of_the_caught(caught: list[bool]) -> None:
    faults = [InjectedFault(SCALED, "w", 1.0 if one else 0.0, math.inf, 1.0) for one in caught]
    assert power.detected(faults, BUDGET) == pytest.approx(np.mean(caught))


def blind(kind: str, count: int = 12) -> list[InjectedFault]:
    return [InjectedFault(kind, f"w{index}", 1e-9, 150.0, 1.0) for index in range(count)]


def plain(kind: str, count: int = 12) -> list[InjectedFault]:
    return [InjectedFault(kind, f"w{index}", 1.0, 0.0, 0.1) for index in range(count)]


def test_inputs_that_show_no_fault_make_the_verdict_inconclusive() -> None:
    inputs, budget = power.power_gates(blind(SCALED) + plain(SHIFTED), BUDGET)
    assert (inputs.verdict, inputs.value, inputs.n) == (Verdict.INCONCLUSIVE, 0.0, 12)
    assert "--golden" in inputs.reason
    assert budget.verdict is Verdict.PASS


def test_a_budget_that_catches_nothing_makes_the_verdict_inconclusive() -> None:
    inputs, budget = power.power_gates(plain(SCALED) + blind(SHIFTED), Budget())
    assert inputs.verdict is Verdict.PASS
    assert (budget.verdict, budget.value) == (Verdict.INCONCLUSIVE, 0.0)
    assert "lets every one" in budget.reason


def test_kinds_that_nobody_knows_are_not_told() -> None:
    assert power.shares(plain("another kind"), BUDGET) == {}


def test_no_faults_at_all_prove_nothing() -> None:
    assert {gate.verdict for gate in power.power_gates([], BUDGET)} == {Verdict.INCONCLUSIVE}


def test_half_of_the_faults_and_one_of_the_misplaced_suffice() -> None:
    faults = plain(SCALED, 6) + blind(SCALED, 6) + plain(SHIFTED, 1) + blind(SHIFTED, 11)
    assert {gate.verdict for gate in power.power_gates(faults, BUDGET)} == {Verdict.PASS}
    shares = power.shares(faults, BUDGET)
    assert shares == {"detected_scaled": 0.5, "detected_misplaced": pytest.approx(1 / 12)}


def test_faults_are_read_as_they_were_written(tmp_path: Path) -> None:
    faults = (HARMLESS, InjectedFault(SHIFTED, "a/b.weight:0", math.nan, -math.inf, -1.0))
    power.save_faults(tmp_path / "f.npz", faults)
    assert repr(power.load_faults(tmp_path / "f.npz")) == repr(faults)
    power.save_faults(tmp_path / "none.npz", ())
    assert power.load_faults(tmp_path / "none.npz") == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": None},
        {"sqnr_db": np.zeros(3)},
        {"cosine": np.zeros((2, 2))},
        {"tensor": np.zeros(2)},
        {"relative_max": np.asarray(["a", "b"])},
    ],
)
def test_another_record_is_refused(tmp_path: Path, changed: dict[str, np.ndarray | None]) -> None:
    columns = {"kind": np.asarray(["k", "k"]), "tensor": np.asarray(["a", "b"])}
    columns |= {name: np.zeros(2) for name in ("relative_max", "sqnr_db", "cosine")}
    kept = {name: array for name, array in {**columns, **changed}.items() if array is not None}
    save_tensors(tmp_path / "f.npz", kept)
    with pytest.raises(BadInputError, match="no record of faults"):
        power.load_faults(tmp_path / "f.npz")
