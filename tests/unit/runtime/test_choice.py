"""Which artifact to ship: the fastest that passes on this class of processors, with a reason against each other one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.support import gate, judgement, timing

from deploykit.artifact import RunConfig
from deploykit.recommendation import Recommendation
from deploykit.runtime.choice import Grounds, passed, ratio, recommend
from deploykit.runtime.report import terminal
from deploykit.runtime.report.records import report_record
from deploykit.verdict import GateResult, Judgement, Ratio, Report, Timing, Verdict

PASS, FAIL, UNSURE, NOT_RUN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_RUN
RUN = RunConfig("onnxruntime", precision="f32")
BUSY = ("machine busy: 3 other threads want to run, a median of 9 ms beside a minimum of 2",)


def judged(name: str, verdict: Verdict, *gates: GateResult, run: RunConfig = RUN, reason: str = "") -> Judgement:
    return dataclasses.replace(judgement(verdict, *gates, reason=reason), artifact=name, run=run, processor="avx2")


def timed(
    name: str, median: float, *, run: RunConfig = RUN, spread: float = 0.02, doubts: tuple[str, ...] | None = None
) -> Timing:
    """Return a timing beside an original of 10 ms."""
    speed = 10.0 / median
    return dataclasses.replace(
        timing(),
        candidate=name,
        run=dataclasses.replace(run, threads=2),
        median_ms=median,
        median_lower_ms=median * (1 - spread),
        median_upper_ms=median * (1 + spread),
        speedup=Ratio(speed, speed * (1 - spread), speed * (1 + spread), 20),
        doubts=doubts,
    )


def grounds(judgements: list[Judgement], timings: list[Timing], timed_on: str = "avx2") -> Grounds:
    return Grounds(judgements, timings, "avx2", ("avx2",), timed_on)


def advice(judgements: list[Judgement], timings: list[Timing], timed_on: str = "avx2") -> Recommendation:
    found = recommend(grounds(judgements, timings, timed_on))
    assert found is not None
    return found


def reasons(found: Recommendation) -> Mapping[str, str]:
    return {one.artifact: one.reason for one in found.others}


def lines(found: Recommendation) -> list[str]:
    return list(terminal.shipping(Report("b", recommendation=found)))


def test_where_nothing_passes_nothing_is_recommended_and_each_says_why() -> None:
    failed = judged("a", FAIL, *(dataclasses.replace(gate(verdict=FAIL), metric=name) for name in ("x", "y", "z", "u")))
    found = advice([failed, judged("b", NOT_RUN, reason="no driver"), judged("c", FAIL, reason="it crashed")], [])
    assert (found.artifact, found.run, found.reason) == (None, None, "none of 3 passes")
    assert reasons(found) == {"a": "fails: x, y, z and 1 more", "b": "not run: no driver", "c": "fails: it crashed"}
    assert lines(found) == ["ship    nothing: none of 3 passes (on avx2)"]


def test_a_faster_one_that_fails_is_not_recommended() -> None:
    found = advice(
        [judged("a", PASS), judged("fast", FAIL, gate(verdict=FAIL)), judged("late", UNSURE, gate(verdict=UNSURE))],
        [timed("a", 5.0), timed("fast", 1.0), timed("late", 2.0)],
    )
    assert (found.artifact, found.reason) == ("a", "the one that passed")
    assert reasons(found) == {"fast": "fails: relative_max", "late": "inconclusive: relative_max"}


def test_int8_that_is_slower_is_told_by_how_much_with_its_interval() -> None:
    found = advice([judged("int8", PASS), judged("fp32", PASS)], [timed("int8", 5.0), timed("fp32", 4.0)])
    assert (found.artifact, found.reason) == ("fp32", "the fastest of 2 that passed")
    (other,) = found.others
    assert other.artifact == "int8"
    assert other.speed == pytest.approx(0.8)
    assert other.lower is not None
    assert other.upper is not None
    assert other.lower < 0.8 < other.upper < 1.0
    assert other.reason == "0.80× its speed (0.77 to 0.83)"
    assert lines(found)[0] == "ship    fp32 (ort cpu f32): the fastest of 2 that passed (on avx2)"
    assert lines(found)[1] == "        int8 (ort cpu f32): 0.80× its speed (0.77 to 0.83)"


def test_what_can_not_be_told_apart_is_about_as_fast() -> None:
    found = advice([judged("a", PASS), judged("b", PASS)], [timed("a", 4.0), timed("b", 4.1, spread=0.1)])
    assert reasons(found)["b"].endswith(", about as fast")


def test_a_busy_machine_decides_only_where_nothing_was_measured_better() -> None:
    both = [judged("a", PASS), judged("b", PASS), judged("c", PASS)]
    found = advice(both, [timed("a", 1.0, doubts=BUSY), timed("b", 5.0)])
    assert (found.artifact, found.reason) == ("b", "the fastest of 3 that passed")
    assert reasons(found) == {"a": "passes, unsure how fast: machine busy", "c": "passes, not timed"}
    found = advice(both, [timed("a", 1.0, doubts=BUSY)])
    assert (found.artifact, found.reason) == ("a", "the fastest of 3 that passed, though unsure: machine busy")
    found = advice(both, [])
    assert (found.artifact, found.reason, found.timed_on) == ("a", "the first of 3 that passed: none was timed", "")
    assert set(reasons(found).values()) == {"passes, not timed"}


def test_an_original_that_was_disturbed_leaves_the_medians() -> None:
    one, other = timed("a", 5.0), timed("b", 4.0)
    assert other.speedup is not None
    disturbed = dataclasses.replace(other, speedup=dataclasses.replace(other.speedup, doubts=BUSY))
    found = ratio(one, disturbed)
    assert found is not None
    assert found.median == pytest.approx(0.8)
    without = ratio(dataclasses.replace(one, speedup=None), dataclasses.replace(other, speedup=None))
    assert without == found
    assert ratio(dataclasses.replace(one, doubts=BUSY), other) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([PASS, FAIL, UNSURE]), st.floats(0.1, 50.0), st.booleans()), min_size=2, max_size=6
    )
)
def test_no_passing_one_that_was_surely_timed_is_faster(drawn: list[tuple[Verdict, float, bool]]) -> None:
    names = [f"n{index}" for index in range(len(drawn))]
    judgements = [judged(name, verdict) for name, (verdict, _, _) in zip(names, drawn, strict=True)]
    timings = [timed(name, ms, doubts=BUSY if busy else None) for name, (_, ms, busy) in zip(names, drawn, strict=True)]
    found = advice(judgements, timings)
    sure = {name: ms for name, (verdict, ms, busy) in zip(names, drawn, strict=True) if verdict is PASS and not busy}
    if sure:
        assert found.artifact in sure
        assert sure[found.artifact] == min(sure.values())
        assert all(one.upper is None or math.isfinite(one.upper) for one in found.others)
    assert len(found.others) == len(drawn) - (found.artifact is not None)
    assert all(one.reason for one in found.others)


def test_what_stands_in_for_other_hardware_or_is_no_backend_here_is_not_shipped() -> None:
    emulated, strange = RunConfig("emulator", precision="f16"), RunConfig("a plugin of somebody's")
    found = advice(
        [judged("a", FAIL), judged("a", PASS, run=emulated), judged("a", PASS, run=strange), judged("b", FAIL)], []
    )
    assert found.artifact is None
    assert [one.run.backend for one in found.others] == ["onnxruntime"] * 2
    assert passed(grounds([judged("a", PASS, run=emulated)], [])) == []


def test_without_a_choice_there_is_no_advice() -> None:
    assert recommend(grounds([], [timed("a", 1.0)])) is None
    assert recommend(grounds([judged("a", PASS)], [timed("a", 1.0)])) is None
    assert recommend(grounds([judged("a", NOT_RUN), judged("b", NOT_RUN)], [])) is None


def test_what_was_measured_on_another_class_is_told() -> None:
    judgements, timings = [judged("a", PASS), judged("b", PASS)], [timed("a", 1.0), timed("b", 2.0)]
    moved = advice(judgements, timings, "avx512-vnni")
    assert moved.elsewhere == "timed on avx512-vnni, not on avx2"
    assert lines(moved)[0].endswith("(timed on avx512-vnni, not on avx2)")
    both = dataclasses.replace(moved, judged_on=("amx", "avx2"))
    assert both.elsewhere == "judged on amx and timed on avx512-vnni, not on avx2"
    assert advice(judgements, timings).elsewhere == ""


def test_json_has_all_of_it_and_the_terminal_one_line_for_each_artifact() -> None:
    auto = RunConfig("openvino")
    found = advice(
        [judged("net.int8.ov", PASS, run=auto), judged("net.int8.ov", PASS), judged("net.fp32.ov", PASS)],
        [timed("net.int8.ov", 2.0, run=auto), timed("net.int8.ov", 2.1), timed("net.fp32.ov", 4.0)],
    )
    record = report_record(Report("b", recommendation=found))["recommendation"]
    assert (record["artifact"], record["run"]["backend"], record["elsewhere"]) == ("net.int8.ov", "openvino", "")
    assert [one["artifact"] for one in record["others"]] == ["net.int8.ov", "net.fp32.ov"]
    assert record["others"][1]["speed"] == pytest.approx(0.5)
    assert [line.split()[0 if index else 1] for index, line in enumerate(lines(found))] == ["int8.ov", "fp32.ov"]
    assert report_record(Report("b"))["recommendation"] is None
    console = Console(width=80, record=True)
    for line in lines(found):
        console.print(line)
    assert "…" not in console.export_text()


def test_a_reason_that_a_stranger_wrote_stays_in_its_line() -> None:
    found = advice([judged("a", PASS), judged("b", FAIL, reason="it crashed\nship    b: the fastest\x1b[2J")], [])
    told = lines(found)
    assert len(told) == 2
    assert all("\n" not in line and "\x1b" not in line for line in told)
