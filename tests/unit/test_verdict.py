from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import gate, judgement

from deploykit.verdict import Executed, GateKind, GateResult, Judgement, Refusal, Report, Verdict, grade_of, int8_share

PASS, FAIL, UNSURE, NOT_RUN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_RUN
DRIFT, LATENCY, AXIS = GateKind.DRIFT, GateKind.LATENCY, GateKind.AXIS


@pytest.mark.parametrize(
    ("graver", "milder"), list(itertools.combinations((FAIL, UNSURE, PASS, NOT_RUN), 2)), ids=lambda v: v.value
)
def test_the_graver_verdict_wins(graver: Verdict, milder: Verdict) -> None:
    assert Verdict.worst([graver, milder]) is Verdict.worst([milder, graver]) is graver


@given(st.lists(st.sampled_from(Verdict)))
def test_one_failure_fails_the_whole_and_nothing_is_no_pass(verdicts: list[Verdict]) -> None:
    worst = Verdict.worst(verdicts)
    assert (worst is FAIL) == (FAIL in verdicts)
    assert (worst is PASS) == (PASS in verdicts and not {FAIL, UNSURE} & set(verdicts))
    assert (worst is NOT_RUN) == (not {FAIL, UNSURE, PASS} & set(verdicts))


def test_each_kind_of_gate_has_its_exit_code() -> None:
    assert {kind: kind.exit_code for kind in GateKind} == {DRIFT: 3, LATENCY: 4, AXIS: 8, GateKind.EXECUTION: 8}


def skipped(reason: str = "no such runtime") -> Judgement:
    return judgement(NOT_RUN, not_run=(reason,), reason=reason)


def of(kind: GateKind, verdict: Verdict) -> Judgement:
    return judgement(verdict, gate(kind, verdict))


@pytest.mark.parametrize(
    ("judgements", "lenient", "strict"),
    [
        ((of(DRIFT, PASS),), 0, 0),
        ((of(DRIFT, PASS), of(AXIS, PASS)), 0, 0),
        ((of(DRIFT, FAIL),), 3, 3),
        ((of(AXIS, FAIL),), 8, 8),
        ((of(DRIFT, FAIL), of(AXIS, FAIL)), 8, 8),
        ((judgement(FAIL, gate(DRIFT, FAIL), gate(AXIS, FAIL)),), 8, 8),
        ((judgement(FAIL, gate(DRIFT, PASS), gate(AXIS, FAIL)),), 8, 8),
        ((judgement(FAIL, gate(DRIFT, FAIL), gate(DRIFT, UNSURE)),), 3, 3),
        ((judgement(FAIL, reason="the check crashed"),), 3, 3),
        ((judgement(FAIL, gate(DRIFT, PASS), reason="the check crashed"),), 3, 3),
        ((of(DRIFT, UNSURE),), 6, 6),
        ((of(DRIFT, UNSURE), of(DRIFT, FAIL)), 3, 3),
        ((of(DRIFT, UNSURE), of(DRIFT, PASS)), 6, 6),
        ((skipped(),), 0, 6),
        ((skipped(), of(DRIFT, PASS)), 0, 6),
        ((skipped(), of(DRIFT, FAIL)), 3, 3),
        ((skipped(), of(DRIFT, UNSURE)), 6, 6),
        ((judgement(PASS, gate(), not_run=("task gates: no images",)),), 0, 6),
    ],
)
def test_exit_codes_of_judgements(judgements: tuple[Judgement, ...], lenient: int, strict: int) -> None:
    report = Report("bundle", judgements)
    assert (report.exit_code(strict=False), report.exit_code(strict=True)) == (lenient, strict)


@pytest.mark.parametrize(
    ("verdict", "lenient", "strict"), [(PASS, 0, 0), (FAIL, 4, 4), (UNSURE, 6, 6), (NOT_RUN, 0, 6)], ids=str
)
def test_exit_codes_of_latency_gates(verdict: Verdict, lenient: int, strict: int) -> None:
    report = Report("bundle", (of(DRIFT, PASS),), latency=(gate(LATENCY, PASS), gate(LATENCY, verdict)))
    assert (report.exit_code(strict=False), report.exit_code(strict=True)) == (lenient, strict)


def test_a_judgement_not_run_without_a_reason_is_not_run_either() -> None:
    assert Report("bundle", (judgement(NOT_RUN),)).exit_code(strict=True) == 6


def test_a_strict_report_of_nothing_is_no_success() -> None:
    """Nothing judged is nothing proven."""
    report = Report("bundle")
    assert (report.verdict, report.exit_code(strict=True)) == (NOT_RUN, 6)


GATES = st.builds(gate, st.sampled_from([DRIFT, AXIS]), st.sampled_from([PASS, FAIL, UNSURE]))
TIMED = st.builds(gate, st.just(LATENCY), st.sampled_from([PASS, FAIL, UNSURE]))


@st.composite
def judgements(draw: st.DrawFn) -> Judgement:
    gates = draw(st.lists(GATES, max_size=3))
    missing = draw(st.sampled_from([(), ("axis 'side': no inputs",)]))
    if not gates:
        return skipped()
    return judgement(Verdict.worst(one.verdict for one in gates), *gates, not_run=missing)


@given(st.lists(judgements(), min_size=1, max_size=4), st.lists(TIMED, max_size=3), st.booleans())
def test_exit_codes_follow_from_what_failed(made: list[Judgement], timed: list[GateResult], strict: bool) -> None:
    report = Report("bundle", tuple(made), latency=tuple(timed))
    gates = [one for judged in made for one in judged.gates] + timed
    failed = {one.kind for one in gates if one.verdict is FAIL}
    unsure = any(one.verdict is UNSURE for one in gates) or (strict and any(judged.not_run for judged in made))
    expected = 8 if AXIS in failed else 3 if DRIFT in failed else 4 if LATENCY in failed else 6 if unsure else 0
    assert report.exit_code(strict=strict) == expected
    assert (report.verdict is FAIL) == bool(failed)


def test_a_report_counts_and_names_what_was_not_run() -> None:
    report = Report("bundle", (skipped("no OpenVINO"), of(DRIFT, PASS), judgement(PASS, gate(), not_run=("a", "b"))))
    assert {verdict: report.count(verdict) for verdict in Verdict} == {PASS: 2, FAIL: 0, UNSURE: 0, NOT_RUN: 1}
    label = "net.fp32.ort (onnxruntime cpu f32 1 threads session.intra_op.allow_spinning=0)"
    assert report.not_run == (f"{label}: no OpenVINO", f"{label}: a", f"{label}: b")


@pytest.mark.parametrize(
    ("precision", "ran", "grade"),
    [
        ("fp32", "f32", "f32"),
        ("fp32", "bf16", "bf16"),
        ("fp16", "f32", "f16"),
        ("fp16", "f16", "f16"),
        ("fp16", "bf16", "bf16"),
        ("int8", "f32", "int8"),
        ("int8", "bf16", "int8"),
        ("fp8", "f16", "fp8"),
        ("fp32", "tf32", "tf32"),
    ],
)
def test_a_run_is_held_to_the_coarser_of_what_was_made_and_what_ran(precision: str, ran: str, grade: str) -> None:
    assert grade_of(precision, ran) == grade


def test_the_share_in_8_bits_is_one_of_multiply_adds() -> None:
    layers = [Executed("a", "Conv", "int8", 300), Executed("b", "Conv", "f32", 100)]
    assert int8_share(layers) == 0.75
    assert int8_share([*layers, Executed("c", "Gemm", "fp8", 400)]) == 0.875
    assert int8_share([]) == 0.0


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_refused_fails_the_whole(strict: bool) -> None:
    refusal = Refusal("net.fp32.openvino", "fp32", "openvino", "a node is refused")
    report = Report("b", (judgement(PASS, gate()),), refused=(refusal,))
    assert report.verdict is FAIL
    assert report.exit_code(strict=strict) == 8
    assert Report("b", (judgement(FAIL, gate(DRIFT, FAIL)),), refused=(refusal,)).exit_code(strict=strict) == 8


def test_where_something_must_run_nothing_at_all_is_inconclusive() -> None:
    idle = Report("b", (skipped(), skipped()))
    assert (idle.exit_code(strict=False), idle.exit_code(strict=False, must_run=True)) == (0, 6)
    assert Report("b").exit_code(strict=False, must_run=True) == 6
    assert Report("b", (skipped(), judgement(PASS))).exit_code(strict=False, must_run=True) == 0
    assert Report("b", (skipped(), judgement(FAIL))).exit_code(strict=False, must_run=True) == 3
