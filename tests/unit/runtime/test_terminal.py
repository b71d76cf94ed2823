"""The table on a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from tests.support import RAN, gate, judgement, timing

from deploykit.artifact import RunConfig
from deploykit.errors import Hint
from deploykit.runtime.report import terminal
from deploykit.verdict import Clocks, GpuTiming, Judgement, Refusal, Report, Timing, Verdict

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
