"""`--fp16` and `--int8`: a user's way from flags to verdicts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from deploykit.bundle import Bundle
from deploykit.verdict import grade_of
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


def test_bfloat16_is_refused_for_onnx_runtime_with_the_cell_that_takes_it(tmp_path: Path) -> None:
    outcome = run("export", "tiny-dinov2", "--fp32", "--bf16", "--ort", "--openvino", "--out", str(tmp_path / "b"))
    assert outcome.code == 8
    assert "no bf16 for ONNX Runtime: its processor kernels convolve in float32 alone" in outcome.err
    assert "--cell bf16:openvino" in outcome.err
    assert "plan" not in outcome.err, "nothing has begun"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every precision below float32, in every runtime that takes it."""
    out = tmp_path_factory.mktemp("precisions") / "bundle"
    precisions = ("--fp16", "--int8", "--int8-weights")
    outcome = run(
        "export",
        "tiny-dinov2",
        *precisions,
        "--ort",
        "--openvino",
        *("--cell", "bf16:openvino"),
        "--no-bench",
        "--json",
        *("--out", str(out)),
    )
    assert outcome.code == 0, outcome.err
    assert {entry["verdict"] for entry in json.loads(outcome.out)["artifacts"]} == {"pass"}
    return out


def test_every_artifact_is_held_to_the_bounds_of_its_grade(made: Path) -> None:
    manifest = Bundle.open(made).manifest
    precisions = {artifact.name: artifact.precision for artifact in manifest.artifacts}
    assert Counter(precisions.values()) == {"fp16": 2, "int8": 2, "int8-weights": 2, "bf16": 1}
    for judgement in manifest.judgements:
        if judgement.ran is None:
            assert judgement.not_run, "where the processor has no bfloat16"
            continue
        grade = grade_of(precisions[judgement.artifact], judgement.ran.precision)
        bounds = {gate.bound for gate in judgement.gates if gate.metric == "sqnr_db"}
        assert bounds == {manifest.budgets[grade].sqnr_db}, judgement.artifact
        if grade == "int8":
            assert judgement.metrics["int8_share"] >= 0.8


def test_files_are_as_small_as_their_weights(made: Path) -> None:
    """Of 1.07 million parameters; an IR adds its XML, 0.2 MB."""
    sizes = {
        artifact.name.partition(".")[2]: artifact.bytes / 1.07e6 for artifact in Bundle.open(made).manifest.artifacts
    }
    assert sizes["int8-weights.ort"] < 1.2
    assert sizes["int8-weights.openvino"] < 1.4
    assert sizes["bf16.openvino"] < 2.4


def test_verify_says_the_same(made: Path) -> None:
    again = run("verify", str(made), "--allow-not-run")
    assert again.code == 0, again.err
