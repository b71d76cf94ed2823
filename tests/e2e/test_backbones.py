"""The backbones that the toolkit exists for, at full size, in both runtimes: static and dynamic batch, two image sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.support import run

BACKBONES = (
    ("convnext_tiny", 224, 160),
    ("convnextv2_tiny", 224, 160),
    ("tf_efficientnetv2_s", 224, 160),
    ("efficientnetv2_rw_s", 224, 160),
    ("mobilenetv3_small_100", 224, 160),
    ("mobilenetv3_large_100", 224, 160),
    ("vit_small_patch14_dinov2", 224, 518),
    ("vit_small_patch14_reg4_dinov2", 224, 518),
)
CASES = [(name, size) for name, *sizes in BACKBONES for size in sizes]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("batch", ["static", "dynamic"])
@pytest.mark.parametrize(("name", "size"), CASES)
def test_float32_equals_the_original_in_both_runtimes(tmp_path: Path, name: str, size: int, batch: str) -> None:
    words = ["export", name, "--random-weights", "--image-size", str(size), "--ort", "--openvino", "--no-bench"]
    words += ["--dynamic", "batch"] if batch == "dynamic" else []
    outcome = run(*words, "--no-cache", "--out", str(tmp_path / "b"), "--json")
    assert outcome.code in {0, 3}, outcome.err  # 3: what OpenVINO chooses by itself may be bfloat16, judged beside f32
    runs = [entry for artifact in json.loads(outcome.out)["artifacts"] for entry in artifact["runs"]]
    exact = {entry["run"]["backend"]: entry for entry in runs if entry["run"]["precision"] == "f32"}
    assert set(exact) == {"onnxruntime", "openvino"}
    for entry in exact.values():
        assert entry["verdict"] == "pass", entry
        assert entry["metrics"]["relative_max"] <= 1e-4
        axes = [gate["metric"] for gate in entry["gates"] if gate["kind"] == "axis"]
        assert axes == (["batch=1", "batch=3", "batch=5", "batch=8"] if batch == "dynamic" else [])
