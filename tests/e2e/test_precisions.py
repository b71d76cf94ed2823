"""`--fp16` and `--int8`: a user's way from flags to verdicts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploykit.bundle import Bundle
from deploykit.manifest import Manifest
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.pairs import excess_of
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
        (("--fp16", "--ort", "--openvino", "--eval-size", "1500"), {"fp16": 2}),
        (("--int8", "--ort", "--openvino", "--eval-size", "1200", "--calib-size", "100"), {"int8": 2}),
        (
            ("--int8-weights", "--ort", "--openvino", "--cell", "bf16:openvino"),
            {"int8-weights": 2, "bf16": 1},
        ),
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
        lacking = get_backend(judgement.run.backend).unavailable(judgement.run)
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


def test_repair_returns_what_costs_most_until_the_gates_pass_and_says_so(tmp_path: Path) -> None:
    words = ["export", "tiny-convnextv2", "--int8", "--ort", "--no-bench", "--out", str(tmp_path / "bundle")]
    words += ["--calib-size", "100"]
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


def test_a_calibration_table_replaces_images_and_belongs_to_one_graph(tmp_path: Path) -> None:
    table, words = tmp_path / "net.ranges", ("--int8", "--openvino", "--no-bench", "--no-verify", "--json")
    first, second = tmp_path / "first", tmp_path / "second"
    made = run(
        "export", "tiny-convnext", *words, "--calib-size", "64", "--save-calib-table", str(table), "--out", str(first)
    )
    assert made.code == 0, made.err
    again = run("export", "tiny-convnext", *words, "--calib-table", str(table), "--out", str(second))
    assert again.code == 0, again.err
    files = [[record.sha256 for record in Bundle.open(out).manifest.artifacts[0].files] for out in (first, second)]
    assert files[0] == files[1]
    other = run("export", "tiny-dinov2", *words, "--calib-table", str(table), "--out", str(tmp_path / "other"))
    assert other.code == 2
    assert "belongs to graph" in other.err


def test_tables_that_nothing_makes_use_of_or_that_are_not_there_are_refused(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "b"))
    missing = run("export", "tiny-dinov2", "--int8", "--calib-table", str(tmp_path / "none"), *out)
    assert (missing.code, "there is no such file" in missing.err) == (2, True)
    idle = run("export", "tiny-dinov2", "--fp32", "--save-calib-table", str(tmp_path / "t"), *out)
    assert (idle.code, "no precision here measures activations" in idle.err) == (2, True)
    (tmp_path / "garbage").write_bytes(b"no table")
    words = ("export", "tiny-dinov2", "--int8", "--no-verify", "--no-bench", "--calib-table", str(tmp_path / "garbage"))
    garbage = run(*words, *out)
    assert garbage.code == 7, garbage.err
    assert "is no safe .npz" in garbage.err
    assert "plan" not in garbage.err
    both = run(*words, "--calib", "rendered:calib", *out)
    assert (both.code, "exclude one another" in both.err) == (2, True)


def test_int8_for_classes_of_processors_is_named_after_them_and_told_in_the_plan(tmp_path: Path) -> None:
    words = [*("export", "tiny-mobilenetv3", "--int8", "--ort", "--no-bench", "--no-verify"), "--calib-size", "40"]
    words += ["--out", str(tmp_path / "b")]
    wrong = run(*words, "--for", "vnnii")
    assert wrong.code == 2
    assert "there are: amx, avx512-vnni, avx-vnni" in wrong.err
    made = run(*words, "--for", "vnni")
    assert made.code == 0, made.err
    assert "tiny-mobilenetv3.int8-vnni.ort: weights of the whole range, for amx, avx512-vnni, avx-vnni" in made.err
    assert "[int8-vnni: ort]" in made.err
    bundle = Bundle.open(tmp_path / "b")
    (artifact,) = bundle.manifest.artifacts
    assert artifact.main.path == "tiny-mobilenetv3.int8-vnni.onnx"
    assert artifact.processors == ("amx", "avx512-vnni", "avx-vnni")
    assert excess_of("onnxruntime", str(bundle.root / artifact.main.path)).over > 0
    assert run(*words).code == 0
    safe = Bundle.open(tmp_path / "b").manifest.artifacts[0]
    assert (safe.main.path, safe.processors) == ("tiny-mobilenetv3.int8.onnx", None)
    assert excess_of("onnxruntime", str(tmp_path / "b" / safe.main.path)).over == 0
