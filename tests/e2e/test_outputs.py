"""Outputs as users bring them: no batch axis, no axes at all, several, other names; and originals that are no reference."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch

from deploykit.bundle import Bundle
from deploykit.verdict import Verdict
from tests.cases import files, nets
from tests.e2e.support import Outcome, run

CASES = str(Path(files.__file__).parent)
MAKE = ("--image-size", "32", "--ort", "--no-bench")


def command(*words: str | Path, cache: Path) -> Outcome:
    path = os.pathsep.join(filter(None, (CASES, os.environ.get("PYTHONPATH", ""))))
    return run(*map(str, words), env={"PYTHONPATH": path, "DEPLOYKIT_CACHE": str(cache)})


def renamed(path: Path, names: dict[str, str]) -> Path:
    """Write boxes.onnx with other names of its inputs and outputs."""
    model = onnx.load(files.write_boxes(path))
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    onnx.save(model, path)
    return path


def test_a_detector_s_output_is_compared_whole(tmp_path: Path) -> None:
    right = files.write_boxes(tmp_path / "boxes.onnx")
    wrong = files.ONNX["boxes_wrong.onnx"](tmp_path / "boxes_wrong.onnx")
    found = command("verify", wrong, "--reference", right, cache=tmp_path)
    assert (found.code, "relative_max 0." in found.out) == (3, True), found
    assert command("verify", right, "--reference", right, cache=tmp_path).code == 0


def test_an_output_without_axes_is_exported_and_verified(tmp_path: Path) -> None:
    model = files.ONNX["scalar.onnx"](tmp_path / "scalar.onnx")
    found = command("export", model, "--ort", "--no-bench", "--out", tmp_path / "out", cache=tmp_path)
    assert found.code == 0, found
    assert command("verify", tmp_path / "out", cache=tmp_path).code == 0


def test_names_of_one_input_and_one_output_are_matched_by_place_and_said(tmp_path: Path) -> None:
    right = files.write_boxes(tmp_path / "boxes.onnx")
    other = renamed(tmp_path / "other.onnx", {"x": "images", "boxes": "output0"})
    found = command("verify", other, "--reference", right, cache=tmp_path)
    assert found.code == 0, found
    assert "its one input 'images' is taken for 'x' of boxes" in found.out
    assert "its one output 'output0' is taken for 'boxes' of boxes" in found.out
    several = files.ONNX["scalar.onnx"](tmp_path / "scalar.onnx")
    found = command("verify", several, "--reference", right, cache=tmp_path)
    assert found.code == 2
    assert "outputs can't be matched by name: boxes has boxes, the artifact has boxes, top" in found.err


def test_several_outputs_are_exported_each_by_its_name(tmp_path: Path) -> None:
    made = tmp_path / "out"
    found = command("export", "py:nets:two", *MAKE, "--openvino", "--dynamic", "batch", "--out", made, cache=tmp_path)
    assert found.code == 0, found
    model = onnx.load(made / "two.fp32.onnx")
    assert [value.name for value in model.graph.output] == ["map", "logits", "score"]


def test_rows_that_influence_one_another_are_judged_at_the_traced_batch(tmp_path: Path) -> None:
    made = tmp_path / "out"
    found = command("export", "py:nets:batch_statistics", *MAKE, "--batch", "3", "--out", made, cache=tmp_path)
    assert found.code == 0, found
    assert "depends on the other rows of its batch" in found.out
    assert "it is judged at batch 3" in found.out
    found = command("export", "py:nets:batch_statistics", *MAKE, "--dynamic", "batch", "--out", made, cache=tmp_path)
    assert (found.code, "axis 'batch' can't stay open" in found.err) == (8, True), found


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("dropout_left_on", 7, "answers differently each time: asked again for the same inputs, by "),
        ("noise", 7, "it draws random numbers: randn_like in its own forward"),
        ("answers_nan", 7, "the original answers NaN for 16 of 16 golden inputs"),
        ("counter", 0, ""),
    ],
)
def test_an_original_that_is_no_reference_is_told_in_one_line(tmp_path: Path, name: str, code: int, words: str) -> None:
    found = command("export", f"py:nets:{name}", *MAKE, "--out", tmp_path / "out", cache=tmp_path)
    assert (found.code, words in found.err) == (code, True), found
    assert "Traceback" not in found.err


def test_a_mask_of_minus_infinity_is_no_fault_in_any_precision(tmp_path: Path) -> None:
    weights, images = tmp_path / "masked.pth", files.write_shades(tmp_path / "images")
    torch.save(nets.masked().state_dict(), weights)
    precisions = ("--fp32", "--fp16", "--int8", "--calib", images, "--calib-few", "--golden", images)
    words = ("export", "py:nets:masked", "--weights", weights, *MAKE, *precisions)
    found = command(*words, "--out", tmp_path / "out", cache=tmp_path)
    assert found.code == 0, found
    judged = Bundle.open(tmp_path / "out").manifest.judgements
    assert {one.verdict for one in judged} == {Verdict.PASS}, found
