"""Models of the Hugging Face world, through the whole line: what save_pretrained wrote to a bundle with its proof."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import deploykit
from deploykit.models.hf_quiet import quiet
from tests.e2e.support import Outcome, run

transformers = pytest.importorskip("transformers")

LABELS = {0: "cat", 1: "dog", 2: "bird", 3: "fish", 4: "ant"}


def _varied(network: torch.nn.Module) -> Any:
    """Give every parameter a value that no constructor makes, so that nothing hides what isn't loaded."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DINOv2 with registers and its processor. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("hf") / "dinov2-tiny"
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=4, image_size=56, patch_size=14
    )
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, do_center_crop=True
    )
    with quiet():
        _varied(transformers.Dinov2WithRegistersModel(config)).save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ConvNeXt with five named classes, and its processor."""
    folder = tmp_path_factory.mktemp("hf") / "convnext-tiny"
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 2, 1],
        layer_scale_init_value=0.5,
        image_size=64,
        id2label=LABELS,
        label2id={name: index for index, name in LABELS.items()},
    )
    with quiet():
        _varied(transformers.ConvNextForImageClassification(config)).save_pretrained(folder)
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


def _export(folder: Path | str, out: Path, *words: str) -> Outcome:
    return run("export", f"hf:{folder}", "--no-bench", "--out", str(out), *words)


def _relative(outcome: Outcome) -> list[float]:
    """The largest relative deviation of each run in float32, all of which must have passed."""
    runs = [run for artifact in json.loads(outcome.out)["artifacts"] for run in artifact["runs"]]
    found = [run for run in runs if run["run"]["precision"] == "f32"]
    assert [run["verdict"] for run in found] == ["pass"] * len(found)
    return [run["metrics"]["relative_max"] for run in found]


@pytest.mark.parametrize("size", [56, 70])
def test_a_backbone_is_verified_in_both_runtimes_at_its_own_size_and_another(
    dino: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "b"
    outcome = _export(dino, out, "--ort", "--openvino", "--dynamic", "batch", "--image-size", str(size), "--json")
    assert outcome.code in {0, 3}, outcome.err
    relative = _relative(outcome)
    assert len(relative) >= 2
    assert max(relative) <= 1e-4
    manifest = deploykit.Bundle.open(out).manifest
    assert (manifest.source.id, manifest.source.family, manifest.source.task) == ("dinov2-tiny", "dinov2", "embedding")
    assert manifest.preprocess is not None
    assert manifest.preprocess.input_size == (3, size, size)
    assert manifest.labels == ()


def test_positions_are_constants_of_the_graph(dino: Path, tmp_path: Path) -> None:
    import onnx

    outcome = _export(dino, tmp_path / "b", "--ort", "--image-size", "70")
    assert outcome.code == 0, outcome.out + outcome.err
    (path,) = (tmp_path / "b").glob("*.onnx")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "Conv" in operators
    assert not operators & {"Resize", "Upsample"}


def test_a_classifier_is_verified_with_its_own_labels(convnext: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    outcome = _export(convnext, out, "--ort", "--openvino", "--json")
    assert outcome.code in {0, 3}, outcome.err
    assert max(_relative(outcome)) <= 1e-4
    manifest = deploykit.Bundle.open(out).manifest
    assert manifest.labels == tuple(LABELS.values())
    assert manifest.preprocess is not None
    assert (manifest.source.family, manifest.preprocess.crop_pct) == ("convnext", 0.875)
    verified = run("verify", str(out))
    assert verified.code in {0, 3}, verified.out + verified.err


def test_features_of_a_classifier(convnext: Path, tmp_path: Path) -> None:
    outcome = _export(convnext, tmp_path / "b", "--embedding")
    assert outcome.code == 0, outcome.out + outcome.err
    (output,) = deploykit.Bundle.open(tmp_path / "b").manifest.artifacts[0].outputs
    assert (output.name, output.shape) == ("embedding", (1, 128))


def test_a_folder_of_timms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _varied(timm.create_model("test_convnext", num_classes=4))
    timm.models.save_for_hf(network, tmp_path / "mine", safe_serialization=True)
    outcome = _export(tmp_path / "mine", tmp_path / "b", "--ort", "--openvino", "--json")
    assert outcome.code in {0, 3}, outcome.err
    assert max(_relative(outcome)) <= 1e-4
    assert deploykit.Bundle.open(tmp_path / "b").manifest.source.id == "mine"


def _without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def _half_a_configuration(folder: Path) -> None:
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:40])


def _unknown_kind(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dinov2_with_registers"', '"dinov9"'))


def _own_code(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "auto_map": {"AutoModel": "evil.Model"}}))


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _half_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])


def _another_depth(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "num_hidden_layers": 5}))


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (shutil.rmtree, 2, "there is no such folder"),
        (_without_configuration, 2, "is no model: it has no config.json"),
        (_unknown_kind, 2, "model_type 'dinov9'"),
        (_half_a_configuration, 7, "config.json is not JSON"),
        (_own_code, 7, "it is never run"),
        (_without_weights, 7, "holds no weights"),
        (_half_the_weights, 7, "is no safetensors file"),
        (_another_depth, 7, "doesn't fit Dinov2WithRegistersModel"),
    ],
)
def test_what_cannot_be_opened_ends_with_its_code_and_no_bundle(
    dino: Path, tmp_path: Path, damage: Any, code: int, said: str
) -> None:
    folder = shutil.copytree(dino, tmp_path / "copy")
    damage(folder)
    outcome = _export(folder, tmp_path / "b")
    assert outcome.code == code, outcome.err
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "b").exists()
