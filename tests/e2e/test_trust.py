"""Who hands over a file or a bundle doesn't choose what it is judged by."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import deploykit
from deploykit.artifact import FileRecord
from deploykit.manifest import FILE, Manifest
from deploykit.verdict import Budget, Report, Verdict
from tests.e2e.support import run

NET = "tiny-convnext"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle, not timed and not judged."""
    options = deploykit.ExportOptions(
        cells=("fp32:ort", "fp32:openvino", "int8-weights:ort", "fp16:openvino"),
        out=str(tmp_path_factory.mktemp("trust") / NET),
        eval_size=16,
        verify=False,
        bench=False,
    )
    return deploykit.export_model(NET, options).bundle.root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def forged(root: Path, change: Callable[[Manifest], Manifest], *names: str) -> Path:
    """Rewrite a bundle's manifest as somebody would who knows how its seal is made, with the artifacts of these names only."""
    manifest = deploykit.Bundle.open(root).manifest
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.name in names or not names)
    renewed = tuple(
        dataclasses.replace(one, files=tuple(FileRecord.of(root, record.path) for record in one.files)) for one in kept
    )
    manifest = change(dataclasses.replace(manifest, artifacts=renewed, judgements=(), timings=()))
    (root / FILE).write_bytes(manifest.sealed().to_bytes())
    return root


def unchanged(manifest: Manifest) -> Manifest:
    return manifest


def as_precision(precision: str) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        artifacts = tuple(dataclasses.replace(one, precision=precision) for one in manifest.artifacts)
        return dataclasses.replace(manifest, artifacts=artifacts)

    return change


def scaled(source: Path, to: Path, factor: float) -> Path:
    """Write an ONNX file in which one convolution's weights are `factor` times what they were."""
    model = onnx.load(str(source))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and "stages.1" in node.input[1])
    array = numpy_helper.to_array(weights[conv.input[1]]) * np.float32(factor)
    weights[conv.input[1]].CopyFrom(numpy_helper.from_array(array, conv.input[1]))
    onnx.save(model, str(to))
    return to


def say(path: Path, key: str, value: str) -> Path:
    """Change what an ONNX file says of itself."""
    model = onnx.load(str(path))
    props = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**props, f"deploykit.{key}": value})
    onnx.save(model, str(path))
    return path


def bare(path: Path, **options: Any) -> Report:
    return deploykit.verify(path, deploykit.VerifyOptions(reference=NET, eval_size=16, **options))


def test_a_file_that_calls_itself_coarse_is_judged_by_what_it_holds(made: Path, tmp_path: Path) -> None:
    path = scaled(made / f"{NET}.fp32.onnx", tmp_path / "m.onnx", 1.1)
    say(path, "precision", "int8-weights")
    report = bare(path)
    assert report.exit_code(strict=False) == 3
    failed = {
        gate.metric for judgement in report.judgements for gate in judgement.gates if gate.verdict is Verdict.FAIL
    }
    assert "sqnr_db" in failed


def test_a_file_in_fewer_bits_needs_not_say_so(made: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(made / f"{NET}.int8-weights.onnx", tmp_path / "m.onnx"))
    say(path, "precision", "fp32")
    bounds = {gate.bound for gate in bare(path).judgements[0].gates if gate.metric == "sqnr_db"}
    family = deploykit.Bundle.open(made).manifest.budgets
    assert bounds == {family["int8-weights"].sqnr_db}


def test_who_judges_may_say_what_a_file_is_judged_as(made: Path) -> None:
    path = made / f"{NET}.int8-weights.onnx"
    assert bare(path, precision="fp32").exit_code(strict=False) == 3
    outcome = run("verify", str(path), "--reference", NET, "--precision", "int3")
    assert outcome.code == 2
    assert "--precision int3: there are fp32, fp16, int8" in outcome.err
    outcome = run("verify", str(made), "--precision", "int8")
    assert outcome.code == 2
    assert "--precision int8 is for a bare file" in outcome.err


@pytest.mark.parametrize("name", ["fp32.ort", "fp32.openvino"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_float32_is_not_sold_as_less(copy: Path, name: str, precision: str) -> None:
    report = deploykit.verify(forged(copy, as_precision(precision), f"{NET}.{name}"))
    assert report.exit_code(strict=False) in {3, 8}, "8 where int8 runs too little in 8 bits"
    for judgement in report.judgements:
        assert judgement.verdict is Verdict.FAIL
        assert f"its manifest calls it {precision}; its weights are f32" in judgement.reason


def test_what_is_called_what_it_is_passes(copy: Path) -> None:
    report = deploykit.verify(forged(copy, unchanged))
    assert [judgement.reason for judgement in report.judgements] == [""] * len(report.judgements)
    assert report.exit_code(strict=False) == 0


def test_swapped_class_names_in_a_file_are_told(copy: Path) -> None:
    labels = list(deploykit.Bundle.open(copy).manifest.labels)
    say(copy / f"{NET}.fp32.onnx", "labels", json.dumps([labels[1], labels[0], *labels[2:]]))
    forged(copy, unchanged, f"{NET}.fp32.ort")
    outcome = run("verify", str(copy))
    assert outcome.code == 3
    told = " ".join(outcome.out.split())
    assert (
        f"class 0 is {labels[1]!r} in the file, {labels[0]!r} in its manifest (2 of {len(labels)} names differ)" in told
    )
    report = bare(copy / f"{NET}.fp32.onnx")
    assert report.exit_code(strict=False) == 3
    assert f"{labels[0]!r} in the original" in report.judgements[0].reason


@pytest.mark.parametrize(
    "change", [{"mean": [0.0] * 3, "std": [1.0] * 3}, {"interpolation": "nearest"}], ids=["normalization", "nearest"]
)
def test_other_preprocessing_in_an_ir_is_told(copy: Path, change: dict[str, object]) -> None:
    path = copy / f"{NET}.fp32.openvino.xml"
    text = path.read_text(encoding="utf-8")
    start = text.index("value=", text.index("<preprocess ")) + len("value=") + 1
    end = text.index(text[start - 1], start)
    recipe = json.loads(text[start:end].replace("&quot;", '"'))
    changed = json.dumps({**recipe, **change}).replace('"', "&quot;")
    path.write_text(text[:start] + changed + text[end:], encoding="utf-8")
    report = deploykit.verify(forged(copy, unchanged, f"{NET}.fp32.openvino"))
    assert report.exit_code(strict=False) == 3
    for name in change:
        assert all(f"preprocess: {name} is " in judgement.reason for judgement in report.judgements)


def with_budget(**changes: float | None) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        own = dataclasses.replace(manifest.budgets["f32"], **changes) if changes else Budget()  # type: ignore[arg-type]
        return dataclasses.replace(manifest, budgets={"f32": own})

    return change


def test_an_empty_budget_passes_nothing(copy: Path) -> None:
    scaled(copy / f"{NET}.fp32.onnx", copy / f"{NET}.fp32.onnx", 1.1)
    report = deploykit.verify(forged(copy, with_budget(), f"{NET}.fp32.ort"))
    (judgement,) = report.judgements
    assert (judgement.verdict, report.exit_code(strict=False)) == (Verdict.INCONCLUSIVE, 6)
    assert "nothing bounds its drift: the budget for f32 is empty" in judgement.reason
    assert "its manifest asks for less than the family convnext" in judgement.reason


def test_a_looser_budget_is_told_and_passes_nothing_that_the_family_fails(copy: Path) -> None:
    loose = with_budget(sqnr_db=1.0, relative_max=1.0, cosine=0.1, untied_flips=None, agreement=0.1, accuracy_drop=0.5)
    forged(copy, loose, f"{NET}.fp32.ort")
    (judgement,) = deploykit.verify(copy).judgements
    assert judgement.verdict is Verdict.PASS
    assert "its manifest asks for less than the family convnext: " in judgement.reason
    scaled(copy / f"{NET}.fp32.onnx", copy / f"{NET}.fp32.onnx", 1.1)
    outcome = run("verify", str(forged(copy, loose)))
    assert outcome.code == 6
    assert "by the family's budget it fails" in " ".join(outcome.out.split())


def test_where_nothing_could_run_nothing_passed(made: Path) -> None:
    for words in ((), ("--allow-not-run",)):
        outcome = run("verify", str(made), "--device", "cuda:7", *words)
        assert outcome.code == 6
        assert outcome.out.strip().splitlines()[-1].startswith("0 passed")


def test_the_same_pixels_under_another_name_have_that_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    for name in ("one.npy", "two.npy"):
        np.save(tmp_path / name, pixels)
        options = deploykit.ExportOptions(
            out=str(tmp_path / name.partition(".")[0]), golden=str(tmp_path / name), verify=False, bench=False
        )
        manifest = deploykit.export_model(NET, options).bundle.manifest
        assert (manifest.golden.images, manifest.golden.count) == (str(tmp_path / name), 16)
        assert str(tmp_path) not in json.dumps(
            [dict(stage.facts) for stage in manifest.stages if stage.node == "golden"]
        )
    assert {stage.node: stage.cached for stage in manifest.stages}["golden"], "or there was nothing to mix up"
