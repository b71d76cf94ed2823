"""A bundle's budgets beside its family's."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from tests.support import gate, judgement

from deploykit.models.family import get_family
from deploykit.runtime.report import terminal
from deploykit.verdict import Budget, Judgement, Report, Verdict
from deploykit.workflow.strictness import MOST, beside_family, looser

FAMILY = "convnext"
OWN = get_family(FAMILY).budgets["f32"]
assert OWN.sqnr_db is not None
METRICS = {"sqnr_db": OWN.sqnr_db + 1, "relative_max": 0.0, "cosine": 1.0}


def judged(budget: Budget, *, verdict: Verdict = Verdict.PASS, family: str = FAMILY, **metrics: float) -> Judgement:
    found = dataclasses.replace(judgement(verdict, gate()), metrics={**METRICS, **metrics})
    return beside_family(found, {"f32": budget}, family, "fp32")


def test_the_familys_own_budget_is_no_matter() -> None:
    found = judged(OWN)
    assert (found.verdict, found.reason, found.not_run) == (Verdict.PASS, "", ())


def test_a_looser_budget_is_told_and_passes_only_what_the_family_passes_too() -> None:
    loose = dataclasses.replace(OWN, sqnr_db=1.0)
    found = judged(loose)
    assert found.verdict is Verdict.PASS
    text = (
        f"its manifest asks for less than the family {FAMILY}: sqnr_db at least 1 in place of at least {OWN.sqnr_db:g}"
    )
    assert found.reason == text
    lucky = judged(loose, sqnr_db=20.0)
    assert (lucky.verdict, lucky.reason) == (
        Verdict.INCONCLUSIVE,
        f"{text}; by the family's budget it fails sqnr_db",
    )
    assert Report("b", (lucky,)).exit_code(strict=False) == 6
    assert [line for line in terminal.complaints(Report("b", (found,))) if line.startswith("? ")]
    assert judged(loose, verdict=Verdict.FAIL, sqnr_db=20.0).verdict is Verdict.FAIL


def test_a_graph_that_rounds_to_8_bits_itself_is_asked_for_no_more_than_8_bits_can() -> None:
    int8 = dataclasses.replace(get_family(FAMILY).budgets["int8"], int8_share=None)
    found = dataclasses.replace(judgement(Verdict.PASS, gate()), metrics={**METRICS, "sqnr_db": 40.0, "cosine": 0.9999})
    as_it_is = beside_family(found, {"f32": int8}, FAMILY, "fp32", "int8")
    assert as_it_is.verdict is Verdict.PASS
    assert "sqnr_db" not in as_it_is.reason
    sold_as = beside_family(found, {"f32": int8}, FAMILY, "fp32", "f32")
    assert (sold_as.verdict, "sqnr_db" in sold_as.reason) == (Verdict.INCONCLUSIVE, True)


def test_a_bound_that_is_missing_is_a_looser_one() -> None:
    found = judged(Budget(), sqnr_db=20.0)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert f"sqnr_db unbounded in place of at least {OWN.sqnr_db:g}" in found.reason


def test_a_nan_never_keeps_within_a_family() -> None:
    assert judged(Budget(sqnr_db=1.0), sqnr_db=float("nan")).verdict is Verdict.INCONCLUSIVE


def test_a_stricter_budget_is_no_matter() -> None:
    assert judged(dataclasses.replace(OWN, sqnr_db=OWN.sqnr_db + 0.5 if OWN.sqnr_db else None)).reason == ""


def test_a_family_that_is_not_here_is_told() -> None:
    found = judged(OWN, family="somebody-elses")
    assert found.not_run == ("budgets: the family 'somebody-elses' that they could be compared with is not here",)
    assert Report("b", (found,)).exit_code(strict=True) == 6


def bounded(name: str, bound: float) -> Budget:
    return Budget(**{name: bound})  # type: ignore[arg-type]


FIELDS = [field.name for field in dataclasses.fields(Budget)]


@given(st.sampled_from(FIELDS), st.floats(0, 100), st.floats(0, 100))
def test_looser_is_on_the_side_that_lets_more_pass(name: str, own: float, family: float) -> None:
    ours, theirs = bounded(name, own), bounded(name, family)
    found = list(looser(ours, theirs))
    assert bool(found) == (own > family if name in MOST else own < family)
    assert list(looser(ours, Budget())) == []
    assert [gap.metric for gap in looser(Budget(), theirs)] == [name]
