"""The table of what fewer bits cost: what keeps a bound, and what the page says of what doesn't."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import drift_table, pages, photographs, precisions
from benchmarks.drift_table import BOUNDS, Bounds, Row
from hypothesis import given
from hypothesis import strategies as st

from deploykit.artifact import RunConfig
from deploykit.data import rendered
from deploykit.models.source_tiny import tiny_names
from deploykit.runtime.drift import Classification
from deploykit.runtime.gate import accuracy_drop_gate, numeric_gate, paired_drop
from deploykit.verdict import Judgement, Ran, Verdict

RUN = RunConfig("onnxruntime", precision="f32")
COUNTS = Classification(
    n=10_000, correct_reference=9_000, correct_candidate=8_950, flips=120, untied_flips=120, lost=70, gained=20
)
METRICS = {
    "top1_reference": 0.9,
    "top1": 0.895,
    "accuracy_drop": 0.005,
    "agreement": 0.988,
    "sqnr_db": 21.26,
    "cosine": 0.99412,
    "int8_share": 1.0,
}


def row(metrics: Mapping[str, float], precision: str = "int8", network: str = "tiny-mobilenetv3") -> Row:
    gates = (
        numeric_gate("cosine", 0.994, 0.995, higher_is_better=True, reference="original", n=16),
        numeric_gate("cosine", 0.994, 0.995, higher_is_better=True, reference="hub", n=16),
        numeric_gate("sqnr_db", 21.26, 15.0, higher_is_better=True, reference="original", n=16),
        accuracy_drop_gate(COUNTS, 0.005),
    )
    ran = Ran("onnxruntime", "1.32.0", "cpu", "f32", 1)
    return Row(network, precision, Judgement("net", RUN, ran, gates, metrics, Verdict.FAIL, "", (), "now"), None)


def test_what_was_not_judged_on_images_misses_its_bound() -> None:
    found = row({"sqnr_db": 30.0, "cosine": 0.999})
    assert found.missed == ("not judged",)
    assert "| not judged |" in found.text


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, ()),
        ({"accuracy_drop": math.nextafter(0.005, 1)}, ("drop above 0.5 pp",)),
        ({"accuracy_drop": math.nan}, ("drop above 0.5 pp",)),
        ({"agreement": math.nextafter(0.95, 0)}, ("agreement below 95 %",)),
        ({"agreement": 0.95}, ()),
        ({"agreement": math.nan, "accuracy_drop": 1.0}, ("agreement below 95 %", "drop above 0.5 pp")),
    ],
)
def test_bounds_are_kept_or_missed_by_the_values_alone(change: dict[str, float], missed: tuple[str, ...]) -> None:
    assert row({**METRICS, **change}).missed == missed


def test_half_that_a_runtime_computes_in_bfloat16_has_no_bound() -> None:
    half = row({**METRICS, "agreement": 0.9}, "fp16")
    ran = half.judgement.ran
    assert ran is not None
    coarse = replace(half, judgement=replace(half.judgement, ran=replace(ran, precision="bf16")))
    assert half.missed == ("agreement below 99.5 %",)
    assert coarse.missed == ()
    assert f"| {drift_table.ABSENT} | fail" in coarse.text


def test_a_row_says_it_all() -> None:
    cells = [cell.strip() for cell in row(METRICS).text.strip("| ").split("|")]
    told = dict(zip(drift_table.COLUMNS, cells, strict=True))
    assert told["run as"] == "onnxruntime f32"
    low, high = paired_drop(COUNTS.lost, COUNTS.gained, COUNTS.n)
    assert told["drop, pp"] == f"0.50 ({100 * low:.2f} to {100 * high:.2f})"
    assert (told["SQNR, dB"], told["worst cosine"], told["int8, %"]) == ("21.3", "0.99412", "100.00")
    assert told["bounds"] == "kept"
    assert told["gates"] == "fail: cosine ≥ 0.995, accuracy_drop ≤ 0.005 not certain", (
        "each gate once, none that passed"
    )


def test_the_alignment_fits_the_columns() -> None:
    assert drift_table.ALIGNMENT.count("|") == len(drift_table.COLUMNS) + 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(0, 1))
def test_bounds_miss_just_what_lies_beyond(least: float, agreement: float, drop: float, most: float) -> None:
    missed = Bounds(least, most).missed({"agreement": agreement, "accuracy_drop": drop})
    assert len(missed) == (agreement < least) + (drop > most)


def test_every_network_that_ships_has_bounds() -> None:
    assert set(BOUNDS) == set(tiny_names())


@pytest.mark.parametrize(("agreement", "code"), [(0.96, 0), (0.94, 3)])
def test_the_page_is_written_and_a_missed_bound_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], agreement: float, code: int
) -> None:
    rows = [row(METRICS), row({**METRICS, "agreement": agreement})]
    text = drift_table.document("Title", "command", ["About."], rows)
    assert pages.publish(text, tmp_path / "page.md", rows) == code
    assert (tmp_path / "page.md").read_text(encoding="utf-8") + "\n" == capsys.readouterr().out
    assert f"{int(code != 0)} of 2 rows miss one" in text
    assert text.count("| tiny-mobilenetv3 | int8 |") == 2


@pytest.mark.parametrize(
    ("top1", "told"), [(0.75, "none"), (0.7499, "tiny-mobilenetv3 (75 %)"), (math.nan, "tiny-mobilenetv3 (75 %)")]
)
def test_a_network_that_was_trained_too_little_is_named(top1: float, told: str) -> None:
    lines = photographs.about([row({**METRICS, "top1_reference": top1})])
    assert lines[-1] == f"Trained too little for the accuracy that was aimed at: {told}."


def test_a_shipped_network_gets_a_row_for_each_way_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "CELLS", ("fp32:ort", "fp32:openvino"))
    found = precisions.measure("tiny-convnext", 24, bench=False)
    assert [(row.precision, row.judgement.run.label) for row in found] == [
        ("fp32", "onnxruntime cpu f32"),
        ("fp32", "openvino cpu f32"),
        ("fp32", "openvino cpu auto"),
    ]
    assert {row.judgement.metrics["images"] for row in found} == {24.0}
    assert found[0].judgement.metrics["top1_reference"] > 0.5 > 1 / len(rendered.CLASSES)
