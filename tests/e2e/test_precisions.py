"""`--fp16` and `--int8`: a user's way from flags to verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.bundle import Bundle
from tests.e2e.support import run


def test_int8_without_images_says_which_are_needed(tmp_path: Path) -> None:
    outcome = run("export", "resnet18", "--random-weights", "--int8", "--out", str(tmp_path / "b"))
    assert outcome.code == 2
    assert "--calib DIR" in outcome.err


def test_int8_with_an_open_batch_is_refused_for_openvino(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--int8", "--openvino", "--dynamic", "batch", "--out", str(tmp_path / "b"))
    assert outcome.code == 8
    assert "OpenVINO computes int8 wrongly where an axis is open" in outcome.err


def test_images_that_no_cell_calibrates_on_are_refused(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--fp32", "--calib", "rendered:calib", "--out", str(tmp_path / "b"))
    assert outcome.code == 2
    assert "nothing to calibrate in fp32" in outcome.err


def test_too_few_images_are_refused_before_anything_runs(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--int8", "--calib-size", "8", "--out", str(tmp_path / "b"))
    assert outcome.code == 2
    assert "8" in outcome.err
    assert "--calib-few" in outcome.err


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_both_runtimes_pass_and_verify_says_the_same(precision: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    made = run(
        "export", "tiny-dinov2", f"--{precision}", "--ort", "--openvino", "--no-bench", "--json", "--out", str(out)
    )
    assert made.code == 0, made.err
    assert {entry["verdict"] for entry in json.loads(made.out)["artifacts"]} == {"pass"}
    manifest = Bundle.open(out).manifest
    assert {artifact.precision for artifact in manifest.artifacts} == {precision}
    again = run("verify", str(out))
    assert again.code == 0, again.err
    if precision == "int8":
        assert all(judgement.metrics["int8_share"] >= 0.8 for judgement in manifest.judgements)


def test_repair_returns_what_costs_most_until_the_gates_pass_and_says_so(tmp_path: Path) -> None:
    words = ("export", "tiny-convnextv2", "--int8", "--ort", "--no-bench", "--out", str(tmp_path / "bundle"))
    kept = run(*words, "--no-repair", "--json")
    assert kept.code == 3, kept.err
    assert json.loads(kept.out)["repairs"] == []
    repaired = run(*words)
    assert repaired.code == 0, repaired.err
    assert "returned to float" in repaired.out
    (repair,) = Bundle.open(tmp_path / "bundle").manifest.repairs or ()
    (judgement,) = Bundle.open(tmp_path / "bundle").manifest.judgements
    assert repair.rounds >= 1
    assert not repair.given_up
    assert all(entry.module for entry in repair.returned)
    assert judgement.metrics["sqnr_db"] > repair.before[judgement.run.label]["sqnr_db"]
    returned = sum(entry.macs_share for entry in repair.returned)
    assert judgement.metrics["int8_share"] == pytest.approx(1 - returned, abs=1e-3)
