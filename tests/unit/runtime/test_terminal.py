"""The table on a terminal of 80 columns."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.support import RAN, gate, judgement, timing

from deploykit.artifact import RunConfig
from deploykit.errors import Hint
from deploykit.runtime.report import terminal
from deploykit.verdict import Clocks, GpuTiming, Judgement, Ratio, Refusal, Report, Timing, Verdict

METRICS = {"sqnr_db": 123.4, "images": 2000.0, "agreement": 0.9985, "flips": 3.0}
RUNS = {"ort": RunConfig("onnxruntime", precision="f32"), "openvino": RunConfig("openvino")}


def judged(precision: str, target: str) -> Judgement:
    ran = replace(RAN, precision="bf16") if target == "openvino" else RAN
    made = judgement(Verdict.PASS, gate())
    return replace(made, artifact=f"net.{precision}.{target}", run=RUNS[target], ran=ran, metrics=METRICS)


def timed(of: Judgement) -> Timing:
    return replace(timing(), candidate=of.artifact, run=of.run, median_ms=12.34)


def lines(report: Report, width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(
        terminal.table(report, {one.artifact: 12_345_678 for one in report.judgements})
    )
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    "precisions", [("fp32",), ("fp32", "fp16", "bf16", "int8", "int8-weights")], ids=["one", "all"]
)
def test_nothing_is_cut_off_at_80_columns(precisions: tuple[str, ...]) -> None:
    found = tuple(judged(precision, target) for precision in precisions for target in RUNS)
    original = replace(timing(), candidate="original", run=RunConfig("torch", precision="f32"), speedup=None)
    report = Report("bundle", found, (original, *(timed(one) for one in found)))
    shown = lines(report, 80)
    assert not any("…" in line for line in shown)
    for words in ("123 dB", "99.85 %", "12.34", "12.3 MB", "✔ pass", "ov cpu auto=bf16"):
        assert sum(words in line for line in shown) >= len(precisions), words


def test_rows_of_sites_name_them_and_fit_80_columns_without_times() -> None:
    found = tuple(
        replace(judged(precision, target), site="arm64-a72", processor="neon")
        for precision in ("fp32", "int8-weights")
        for target in RUNS
    )
    shown = lines(Report("bundle", found), 80)
    assert not any("…" in line for line in shown)
    assert sum("ov arm64-a72 auto=bf16" in line for line in shown) == 2
    assert not any("ms (" in line for line in shown)


def test_runtimes_have_short_names_only_where_they_must() -> None:
    few = lines(Report("bundle", (judged("int8", "openvino"),)), 120)
    assert any(line.startswith("int8.openvino ") for line in few)
    more = lines(Report("bundle", (judged("int8", "openvino"), judged("int8-weights", "openvino"))), 120)
    assert [line.split()[0] for line in more if ".ov " in line] == ["int8.ov", "int8-weights.ov"]


def test_the_parts_on_a_gpu_are_told_with_clocks_and_with_what_limits_them() -> None:
    run = RunConfig("onnxruntime", device="cuda:0")
    parts = GpuTiming(upload_ms=0.1, compute_ms=1.0, download_ms=0.2, enqueue_ms=0.3, n=60, clocks=None)
    bound = replace(parts, enqueue_ms=0.95, clocks=Clocks(1980, 3201, ("power cap",)))
    timings = tuple(
        replace(timing(), candidate=f"net.{name}.ort", run=run, gpu=gpu)
        for name, gpu in {"fp32": parts, "fp16": bound, "int8": None}.items()
    )
    text = io.StringIO()
    Console(file=text, width=100).print(terminal.gpu_table(Report("bundle", timings=timings)))
    shown = text.getvalue().splitlines()
    assert any("fp32.ort" in line and "1.000" in line and "not told" in line for line in shown)
    assert any("1980" in line and "the GPU waits for the host; slowed by power cap" in line for line in shown)
    assert not any("int8" in line for line in shown)


def test_latents_stand_where_there_are_no_answers_to_agree_on() -> None:
    found = replace(judged("fp16", "ort"), metrics={"sqnr_db": 61.2, "latent_psnr_db": 84.4})
    shown = lines(Report("bundle", (found,)), 80)
    assert any("61 dB" in line and "latents 84 dB" in line for line in shown)
    assert not any("…" in line for line in shown)


def test_what_is_refused_has_a_row_and_its_whole_reason() -> None:
    reason = "OpenVINO refuses the graph: 2 nodes\nConv-20\nMul-20"
    refusal = Refusal("net.int8.openvino", "int8", "openvino", reason, (Hint("--ort", "takes it"),))
    report = Report("bundle", (judged("fp32", "ort"),), refused=(refusal,))
    (row,) = (line for line in lines(report, 80) if line.startswith("int8.openvino"))
    assert row.split() == ["int8.openvino", "✘", "refused"]
    told = "\n".join(terminal.complaints(report)).splitlines()
    assert told[0].startswith("✘ net.int8.openvino: OpenVINO refuses the graph: 2 nodes")
    assert [line.strip() for line in told[1:]] == ["Conv-20", "Mul-20", "use --ort   takes it"]
    assert terminal.summary(report) == "1 passed, 1 refused, 0 not run"


def test_a_busy_machine_has_no_ratio_in_any_table_and_says_why() -> None:
    original = replace(timing(), candidate="original", run=RunConfig("torch", precision="f32"), speedup=None)
    ratio = replace(timing().speedup or Ratio(1, 1, 1, 1), median=253.1, doubts=("machine busy: a median of 262 ms",))
    busy = replace(timing(), speedup=ratio)
    found = judged("fp32", "ort")
    for doubted in (replace(original, doubts=("machine busy: x",)), original):
        report = Report("bundle", (found,), (doubted, replace(busy, candidate=found.artifact, run=found.run)))
        shown = lines(report, 80)
        text = io.StringIO()
        Console(file=text, width=120).print(terminal.timing_table(report))
        assert not any("253" in line for line in [*shown, *text.getvalue().splitlines()])
        assert sum("unsure" in line for line in shown) == 1 + (doubted.doubts is not None)
        assert "unsure" in text.getvalue()
        told = [line for line in terminal.complaints(report) if "timing is unsure" in line]
        assert len(told) == 1 + (doubted.doubts is not None)
        assert told[-1].endswith("timing is unsure: machine busy: a median of 262 ms")


def test_a_gate_shows_enough_digits_to_tell_its_value_from_its_bound() -> None:
    missed = replace(gate(verdict=Verdict.FAIL), metric="cosine", higher_is_better=True, bound=1.0)
    missed = replace(missed, value=0.9999996, lower=0.9999996, upper=0.9999996)
    assert "cosine 0.9999996 from original" in terminal.gate_text(missed)
    close = replace(missed, metric="agreement", value=0.97, lower=0.9699996, upper=0.9800001, bound=0.97)
    assert "97 % (96.99996 % to 98.00001 %)" in terminal.gate_text(close)
    assert "at least 97 %" in terminal.gate_text(close)


def test_the_same_numbers_from_two_references_are_one_line_and_a_reason_is_told_once() -> None:
    missed = replace(
        gate(verdict=Verdict.INCONCLUSIVE, reason="they vary too little"), value=2e-4, lower=2e-4, upper=2e-4
    )
    gates = [
        missed,
        replace(missed, reference="hub"),
        replace(missed, metric="cosine"),
        replace(missed, metric="cosine", reference="hub", value=3e-4),
        replace(missed, metric="finite", verdict=Verdict.FAIL, reason=""),
        replace(missed, metric="equal", verdict=Verdict.PASS),
    ]
    told = list(terminal.complaints(Report("b", (judgement(Verdict.FAIL, *gates),))))
    assert [line.partition(": ")[2].partition(";")[0] for line in told] == [
        "relative_max 0.0002 from original and hub, n=4",
        "cosine 0.0002 from original, n=4",
        "cosine 0.0003 from hub, n=4",
        "finite 0.0002 from original, n=4",
    ]
    assert [line.endswith("they vary too little") for line in told] == [False, False, True, False]
    assert [line[0] for line in told] == ["?", "?", "?", "✘"]


FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(FLOATS, FLOATS, FLOATS, FLOATS, st.sampled_from(["cosine", "sqnr_db", "relative_max", "latency_ms"]))
def test_no_two_different_numbers_look_alike(
    value: float, lower: float, upper: float, bound: float, metric: str
) -> None:
    result = replace(gate(), metric=metric, value=value, lower=lower, upper=upper, bound=bound)
    shown = terminal.value_text(result, bound)
    for number in (value, lower, upper):
        assert (terminal.value_text(result, number) == shown) == (number == bound or str(number) == str(bound) == "nan")


def test_median_and_worst_are_told_where_few_inputs_weigh_most() -> None:
    metrics = {"sqnr_db": 1.2, "sqnr_db_median": 20.4, "sqnr_db_worst": -3.1}
    few = replace(judged("int8", "ort"), metrics=metrics)
    assert list(terminal.spreads(Report("b", (few,)))) == [
        "inputs  net.int8.ort (ort cpu f32): 1 dB over all of them, median 20 dB, worst -3 dB"
    ]
    alike = replace(few, metrics={**metrics, "sqnr_db_median": 2.0})
    untold = replace(few, metrics={"sqnr_db": 1.2})
    close = replace(few, metrics={"sqnr_db": 125.0, "sqnr_db_median": 131.0, "sqnr_db_worst": 117.0})
    assert not list(terminal.spreads(Report("b", (alike, untold, close))))
    assert terminal.spread_text(alike) == "median 2 dB, worst -3 dB"
    assert not terminal.spread_text(untold)


def test_of_several_outputs_the_spread_is_that_of_the_one_that_drifts_most() -> None:
    metrics = {"sqnr_db": 90.0, "sqnr_db_median": 91.0, "sqnr_db_worst": 80.0}
    metrics |= {"sqnr_db:map": 5.0, "sqnr_db_median:map": 30.0, "sqnr_db_worst:map": 1.0}
    several = replace(judged("int8", "ort"), metrics=metrics)
    assert terminal.drift_text(several) == "5 dB"
    assert terminal.spread_text(several) == "median 30 dB, worst 1 dB"
    equal = replace(several, metrics={"sqnr_db": 40.0, "sqnr_db_median": math.inf, "sqnr_db_worst": 20.0})
    assert "median equal, worst 20 dB" in "".join(terminal.spreads(Report("b", (equal,))))


def test_the_class_that_verdicts_hold_for_is_named() -> None:
    found = [replace(judged("int8", target), processor="avx512-vnni") for target in RUNS]
    assert terminal.conditions(Report("bundle", tuple(found))).endswith(" · on avx512-vnni")
    moved = replace(found[0], processor="avx2\x1b[2J\n")
    told = terminal.conditions(Report("bundle", (*found, moved)))
    assert " · on avx512-vnni and avx2" in told
    assert "\n" not in told
    assert "\x1b" not in told
    assert " on " not in terminal.conditions(Report("bundle", (judged("int8", "ort"),)))
