"""`--fp16` and `--int8`: a user's way from flags to verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploykit.bundle import Bundle
from deploykit.manifest import Manifest
from deploykit.runtime.backends.base import get_backend
from deploykit.verdict import Verdict, grade_of
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


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("--fp16", "--ort", "--openvino"), {"fp16": 2}),
        (("--int8", "--ort", "--openvino"), {"int8": 2}),
        (("--int8-weights", "--ort", "--openvino", "--cell", "bf16:openvino"), {"int8-weights": 2, "bf16": 1}),
    ],
    ids=["fp16", "int8", "int8-weights-and-bf16"],
)
def test_what_takes_a_precision_passes_and_verify_says_the_same(
    words: tuple[str, ...], made: Mapping[str, int], tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    outcome = run("export", "tiny-dinov2", *words, "--no-bench", "--json", "--out", str(out))
    assert outcome.code == 0, outcome.err
    manifest = Bundle.open(out).manifest
    assert Counter(artifact.precision for artifact in manifest.artifacts) == made
    _check_judgements(manifest)
    _check_sizes(manifest)
    again = run("verify", str(out), "--allow-not-run")
    assert again.code == 0, again.err


def _check_judgements(manifest: Manifest) -> None:
    """Every artifact has passed, held to the bounds of its grade, but where the processor lacks its precision."""
    precisions = {artifact.name: artifact.precision for artifact in manifest.artifacts}
    for judgement in manifest.judgements:
        lacking = get_backend(judgement.run.backend).lacks(judgement.run)
        assert judgement.not_run == ((lacking,) if lacking else ())
        if judgement.ran is not None:
            grade = grade_of(precisions[judgement.artifact], judgement.ran.precision)
            bounds = {gate.bound for gate in judgement.gates if gate.metric == "sqnr_db"}
            assert judgement.verdict is Verdict.PASS
            assert bounds == {manifest.budgets[grade].sqnr_db}, judgement.artifact
            assert grade != "int8" or judgement.metrics["int8_share"] >= 0.8


def _check_sizes(manifest: Manifest) -> None:
    """Bytes per parameter; the XML of an IR adds 0.2 to 0.3."""
    most = {"fp16": 2.4, "bf16": 2.4, "int8-weights": 1.4, "int8": 1.6}
    for artifact in manifest.artifacts:
        assert artifact.bytes < most[artifact.precision] * manifest.source.parameters, artifact.name
