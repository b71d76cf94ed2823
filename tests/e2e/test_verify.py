"""`deploykit verify`: what it notices, and what it ends with."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest

import deploykit
from tests.e2e.support import run
from tests.support import EVAL_SIZE


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to break."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_an_untouched_copy_passes(copy: Path) -> None:
    outcome = run("verify", str(copy))
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.strip().splitlines()[-1] == "3 passed, 0 not run"


def test_one_flipped_byte_in_any_file_is_exit_7(copy: Path) -> None:
    rng = random.Random(7)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for position in {0, len(original) - 1, *(rng.randrange(len(original)) for _ in range(20))}:
            changed = bytearray(original)
            changed[position] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(deploykit.DeploykitError) as caught:
                deploykit.verify(copy)
            assert caught.value.exit_code == 7, f"{path.name} byte {position}: {caught.value}"
        path.write_bytes(original)
    deploykit.Bundle.open(copy).check()


def test_a_flipped_byte_ends_the_command_line_with_7(copy: Path) -> None:
    path = copy / "tiny-convnext.fp32.openvino.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    outcome = run("verify", str(copy))
    assert outcome.code == 7
    assert "tiny-convnext.fp32.openvino.bin has SHA-256" in outcome.err


def test_a_missing_file_is_exit_7(copy: Path) -> None:
    (copy / "golden/original.npz").unlink()
    outcome = run("verify", str(copy))
    assert outcome.code == 7
    assert "golden/original.npz is missing" in outcome.err


def test_one_convolution_times_1_05_is_drift(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "tiny-convnext.fp32.onnx"))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    conv = next(node for node in model.graph.node if node.op_type == "Conv" and "stages.1" in node.input[1])
    scaled = onnx.numpy_helper.to_array(weights[conv.input[1]]) * 1.05
    weights[conv.input[1]].CopyFrom(onnx.numpy_helper.from_array(scaled.astype("float32"), conv.input[1]))
    path = tmp_path / "scaled.onnx"
    onnx.save(model, str(path))
    outcome = run("verify", str(path), "--reference", "tiny-convnext", "--eval-size", "64", "--json")
    assert outcome.code == 3, outcome.err
    found = json.loads(outcome.out)
    assert found["verdict"] == "fail"
    failed = {gate["metric"] for gate in found["judgements"][0]["gates"] if gate["verdict"] == "fail"}
    assert {"relative_max", "sqnr_db"} <= failed


def test_a_bare_artifact_passes_against_its_original(bundle: Path) -> None:
    options = deploykit.VerifyOptions(reference="tiny-convnext", eval_size=EVAL_SIZE)
    for name in ("tiny-convnext.fp32.onnx", "tiny-convnext.fp32.openvino.xml"):
        report = deploykit.verify(bundle / name, options)
        assert report.verdict is deploykit.Verdict.PASS


def test_a_bare_artifact_without_reference_is_a_usage_error(bundle: Path, tmp_path: Path) -> None:
    alone = shutil.copy(bundle / "tiny-convnext.fp32.onnx", tmp_path)
    outcome = run("verify", str(alone))
    assert outcome.code == 2
    assert "--reference MODEL" in outcome.err


def test_a_folder_that_is_no_bundle_is_exit_7(tmp_path: Path) -> None:
    outcome = run("verify", str(tmp_path))
    assert outcome.code == 7
    assert "is no bundle" in outcome.err


def test_a_missing_path_is_exit_2(tmp_path: Path) -> None:
    assert run("verify", str(tmp_path / "nothing")).code == 2


def test_too_few_images_are_inconclusive_not_a_lucky_pass(tmp_path: Path) -> None:
    options = deploykit.ExportOptions(cells=("fp32:openvino",), out=str(tmp_path / "b"), eval_size=20, bench=False)
    exported = deploykit.export_model("tiny-convnext", options)
    by_run = {judgement.run.precision: judgement for judgement in exported.report.judgements}
    auto = by_run["auto"]
    if auto.ran is not None and auto.ran.precision == "f32":
        pytest.skip("this processor has no bfloat16: the runtime's own choice is f32")
    assert auto.verdict is deploykit.Verdict.INCONCLUSIVE
    assert exported.report.exit_code(strict=False) == 6


def test_labelled_images_of_the_user_are_judged(copy: Path, tmp_path: Path) -> None:
    from PIL import Image

    from deploykit.data import rendered

    for index in range(24):
        pixels, label = rendered.render("calib", index)
        folder = tmp_path / "val" / rendered.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    report = deploykit.verify(copy, deploykit.VerifyOptions(data=str(tmp_path / "val")))
    assert {judgement.metrics["images"] for judgement in report.judgements} == {24.0}


def test_a_folder_with_a_class_that_the_model_does_not_know_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "val" / "giraffe").mkdir(parents=True)
    outcome = run("verify", str(copy), "--data", str(tmp_path / "val"))
    assert outcome.code == 2
    assert "'giraffe' is no class of this model" in outcome.err
