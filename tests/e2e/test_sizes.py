"""Height and width left open: artifacts answer as the original does to images of other sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import deploykit
from deploykit.bundle import Bundle
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.verdict import GateKind, Verdict
from tests.e2e.support import run

SIDES = ("height", "width")
#: What few images can not tell.
FEW_IMAGES = {"agreement", "accuracy_drop"}


def exported(model: str, cells: tuple[str, ...], out: Path, **changes: object) -> deploykit.Exported:
    options = deploykit.ExportOptions(cells=cells, dynamic=SIDES, out=str(out), bench=False, eval_size=20, **changes)  # type: ignore[arg-type]
    return deploykit.export_model(model, options)


@pytest.mark.parametrize("model", ["tiny-mobilenetv3", "tiny-efficientnetv2", "tiny-convnextv2"])
def test_other_sizes_answer_as_the_original_does(model: str, tmp_path: Path) -> None:
    made = exported(model, ("fp32:ort", "fp32:openvino"), tmp_path / "b")
    assert len(made.report.judgements) == 3
    again = deploykit.verify(tmp_path / "b")
    for judgement in (*made.report.judgements, *again.judgements):
        found = {gate.metric: gate.verdict for gate in judgement.gates if gate.metric not in FEW_IMAGES}
        assert set(found.values()) == {Verdict.PASS}, found
        assert {"height=64", "height=160", "width=96", "width=192"} <= set(found)
    file = next(path for path in (tmp_path / "b").glob("*.fp32.onnx"))
    session = onnxruntime.InferenceSession(str(file))
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]
    assert session.run(None, {"input": np.zeros((1, 3, 96, 256), np.float32)})[0].shape[0] == 1


def test_half_and_eight_bits_hold_at_other_sizes_too(tmp_path: Path) -> None:
    made = exported("tiny-convnext", ("fp16:ort", "int8:ort"), tmp_path / "b", calib_size=100)
    for judgement in made.report.judgements:
        assert {gate.verdict for gate in judgement.gates if gate.metric not in FEW_IMAGES} == {Verdict.PASS}
        least = {"fp16": 45.0, "int8": 20.0}[judgement.artifact.split(".")[1]]
        values = [gate.value for gate in judgement.gates if gate.kind is GateKind.AXIS]
        assert len(values) == 4
        assert min(values) >= least


@pytest.mark.skipif(COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here")
def test_an_engine_is_tuned_for_a_range_of_sizes(tmp_path: Path) -> None:
    words = ("--fp16", "--trt-rtx", "--sm", "89", "--dynamic", "height", "--dynamic", "width", "--no-bench")
    parts = ("--profile", "height=64,64,64", "--profile", "height=96,128,256", "--profile", "width=32,64,256")
    made = run("export", "tiny-convnext", *words, *parts, "--eval-size", "20", "--out", str(tmp_path / "b"))
    assert made.code == 0, made.err
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.artifacts[0].inputs[0].text == "[1, 3, height 64..256, width 32..256]"
    facts = next(stage.facts for stage in manifest.stages if stage.node == manifest.artifacts[0].name)
    assert [profile["input"] for profile in facts["profiles"]] == [
        "[1, 3, height 64..64, width 32..256]",
        "[1, 3, height 96..256, width 32..256]",
    ]


@pytest.mark.parametrize(
    ("model", "words", "told"),
    [
        ("tiny-dinov2", ("--dynamic", "height"), "DINOv2 has no axis 'height'"),
        ("tiny-convnext", ("--dynamic", "height", "--profile", "height=96,128,256"), "are judged at 64 too"),
        (
            "tiny-convnext",
            ("--dynamic", "height", "--profile", "height=64,100,256"),
            "height 32 to 1024 in steps of 32",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(model: str, words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    refused = run("export", model, "--fp16", "--trt-rtx", *words, "--out", str(tmp_path / "b"))
    assert refused.code == 2
    assert told in refused.err
    assert not (tmp_path / "b").exists()
