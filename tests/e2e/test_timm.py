"""timm models and checkpoints of one's own, through the whole line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch

import deploykit
from deploykit.models import sources
from tests.e2e.support import run

SMALL = ("mobilenetv3_small_050", "--image-size", "96")
LABELS = tuple(f"thing {index}" for index in range(10))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training script leaves: ten classes, averaged weights, options, an optimizer."""
    torch.manual_seed(1)
    module = timm.create_model(SMALL[0], num_classes=len(LABELS))
    averaged = {f"module.{name}": value for name, value in module.state_dict().items()}
    other = {name: torch.zeros_like(value) for name, value in averaged.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    path = tmp_path_factory.mktemp("training") / "last.pth.tar"
    torch.save(
        {
            "epoch": 3,
            "arch": SMALL[0],
            "state_dict": other,
            "state_dict_ema": averaged,
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, data="here"),
            "metric": 0.93,
        },
        path,
    )
    (path.parent / "labels.txt").write_text("\n".join(LABELS))
    return path


def test_random_weights_are_verified_in_both_runtimes_with_a_dynamic_batch(tmp_path: Path) -> None:
    words = ("export", *SMALL, "--random-weights", "--ort", "--openvino", "--dynamic", "batch", "--no-bench")
    outcome = run(*words, "--out", str(tmp_path / "b"), "--json")
    assert outcome.code in {0, 3}, outcome.err
    found = json.loads(outcome.out)
    runs = {run["run"]["precision"]: run for artifact in found["artifacts"] for run in artifact["runs"]}
    assert runs["f32"]["verdict"] == "pass"
    assert runs["f32"]["metrics"]["relative_max"] <= 1e-4
    assert {gate["metric"] for gate in runs["f32"]["gates"] if gate["kind"] == "axis"} == {
        "batch=1",
        "batch=3",
        "batch=5",
        "batch=8",
    }


def test_a_training_scripts_checkpoint_becomes_a_bundle_with_its_own_labels(checkpoint: Path, tmp_path: Path) -> None:
    labels = str(checkpoint.parent / "labels.txt")
    words = (
        "export",
        *SMALL,
        "--weights",
        str(checkpoint),
        "--labels",
        labels,
        "--no-bench",
        "--out",
        str(tmp_path / "b"),
    )
    outcome = run(*words)
    assert outcome.code == 0, outcome.out + outcome.err
    bundle = deploykit.Bundle.open(tmp_path / "b")
    assert bundle.manifest.labels == LABELS
    assert bundle.manifest.preprocess is not None
    assert bundle.manifest.preprocess.input_size == (3, 96, 96)
    original = sources.located(bundle.manifest.source.locator)
    weights = sources.open_module(original).state_dict()
    assert not any(bool((weights[name] == 0).all()) for name in weights if name.endswith("conv_pw.weight"))
    verified = run("verify", str(tmp_path / "b"))
    assert verified.code == 0, verified.out + verified.err


def test_features_instead_of_logits(tmp_path: Path) -> None:
    words = ("export", *SMALL, "--random-weights", "--embedding", "--no-bench", "--out", str(tmp_path / "b"))
    outcome = run(*words)
    assert outcome.code == 0, outcome.out + outcome.err
    manifest = deploykit.Bundle.open(tmp_path / "b").manifest
    (output,) = manifest.artifacts[0].outputs
    assert output.name == "embedding"
    assert output.shape == (1, 1024)
    assert manifest.labels == ()


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(width=8):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(width, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (
        "export",
        "py:mine:net",
        "--image-size",
        "64",
        "--model-arg",
        "width=12",
        "--ort",
        "--openvino",
        "--no-bench",
    )
    outcome = run(*words, "--out", "b")
    assert outcome.code == 0, outcome.out + outcome.err
    assert deploykit.Bundle.open(tmp_path / "b").manifest.labels[4] == "class 4"


def test_a_checkpoint_that_does_not_fit_is_exit_7(checkpoint: Path, tmp_path: Path) -> None:
    outcome = run("export", "mobilenetv3_large_100", "--weights", str(checkpoint), "--out", str(tmp_path / "b"))
    assert outcome.code == 7
    assert "doesn't fit MobileNetV3" in outcome.err
    assert not (tmp_path / "b").exists()
