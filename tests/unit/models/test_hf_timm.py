"""Folders that timm wrote: they answer as in timm, and what of their configuration is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.models.hf_folders import answers_of, edit, images_for, state_of, timm_folder, write_state

from deploykit.errors import BadInputError, DeploykitError, UsageError
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.models.source_hf import SCHEME


@pytest.mark.parametrize(
    ("name", "options", "family"),
    [
        ("test_convnext", {"num_classes": 7}, "generic"),
        ("test_vit", {"num_classes": 7, "img_size": 96}, "generic"),
        ("test_vit", {"num_classes": 7, "depth": 3}, "generic"),
        ("mobilenetv3_small_050", {"num_classes": 7}, "mobilenetv3"),
    ],
)
def test_a_folder_of_timms_answers_as_in_timm(tmp_path: Path, name: str, options: dict[str, Any], family: str) -> None:
    folder, network = timm_folder(tmp_path / "mine", name, **options)
    original = SCHEME.resolve(str(folder), SourceOptions())
    assert (original.id, original.scheme, original.name, original.family) == ("mine", "hf", str(folder), family)
    assert original.labels == tuple(f"class {index}" for index in range(7))
    assert original.recipe.input_size == tuple(network.pretrained_cfg["input_size"])  # type: ignore[index]
    assert original.parameters == sum(parameter.numel() for parameter in network.parameters())
    with torch.inference_mode():
        assert torch.equal(answers_of(original), network(images_for(original)))
    again = sources.located(original.locator)
    assert (again, again.digest) == (original, original.digest)


def test_a_folder_of_timms_without_a_head_answers_with_features(tmp_path: Path) -> None:
    folder, network = timm_folder(tmp_path / "mine", num_classes=0)
    original = SCHEME.resolve(str(folder), SourceOptions())
    assert (original.task, original.labels) == ("embedding", ())
    with torch.inference_mode():
        assert torch.equal(answers_of(original), network(images_for(original)))


def test_a_folder_of_timms_is_prepared_and_called_as_it_says(tmp_path: Path) -> None:
    folder, _ = timm_folder(tmp_path / "mine", num_classes=3)
    config = json.loads((folder / "config.json").read_text())
    recipe = {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.9, "interpolation": "bilinear"}
    edit(folder, label_names=["cat", "dog", "cat"], pretrained_cfg={**config["pretrained_cfg"], **recipe})
    original = SCHEME.resolve(str(folder), SourceOptions())
    assert original.labels == ("cat (0)", "dog", "cat (2)")
    assert (original.recipe.mean, original.recipe.crop_pct) == ((0.1, 0.2, 0.3), 0.9)
    assert SCHEME.resolve(str(folder), SourceOptions(crop_pct=1.0)).recipe.crop_pct == 1.0
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert SCHEME.resolve(str(folder), SourceOptions(labels=str(tmp_path / "labels.txt"))).labels == ("a", "b", "c")


def test_a_folder_of_timms_takes_an_image_size_and_features(tmp_path: Path) -> None:
    folder, _ = timm_folder(tmp_path / "mine", "test_vit", num_classes=3)
    original = SCHEME.resolve(str(folder), SourceOptions(image_size=96, embedding=True))
    assert (original.recipe.input_size, original.task) == ((3, 96, 96), "embedding")
    assert answers_of(original).shape == (2, 64)


def test_a_folder_of_timms_takes_other_weights(tmp_path: Path) -> None:
    folder, network = timm_folder(tmp_path / "mine", num_classes=3)
    doubled = {name: value * 2 for name, value in network.state_dict().items()}
    save_file(doubled, tmp_path / "w.safetensors")
    original = SCHEME.resolve(str(folder), SourceOptions(weights=str(tmp_path / "w.safetensors")))
    assert torch.equal(SCHEME.open(original).state_dict()["stem.0.bias"], doubled["stem.0.bias"])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_type": "timm_wrapper"}, UsageError, r"that transformers wraps \(timm_wrapper\), which isn't read"),
        ({"architecture": "convnext_tinny"}, UsageError, r"is no model that I know\. Near: .*convnext_tiny"),
        ({"architecture": "hf-hub:evil/model"}, UsageError, "is no model that I know"),
        ({"architecture": "local-dir:/tmp"}, UsageError, "is no model that I know"),
        ({"architecture": 3}, BadInputError, "damaged: architecture 3"),
        ({"pretrained_cfg": 3}, BadInputError, "is damaged"),
        ({"pretrained_cfg": {"mean": 3}}, BadInputError, "pretrained_cfg in its config.json is damaged"),
        ({"pretrained_cfg": {"std": {"a": 1}}}, BadInputError, "pretrained_cfg in its config.json is damaged"),
        ({"pretrained_cfg": {"nonsense": 3}}, BadInputError, "is damaged: .*nonsense"),
        ({"model_args": 3}, BadInputError, "is damaged"),
        (
            {"model_args": {"checkpoint_path": "/tmp/evil.pth"}},
            BadInputError,
            r"model_args checkpoint_path '/tmp/evil\.pth'",
        ),
        ({"model_args": {"pretrained": True}}, BadInputError, "model_args pretrained True isn't supported"),
        ({"model_args": {"nonsense": 1}}, UsageError, "timm can't build test_convnext with .*nonsense"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, BadInputError, "it is never run"),
        ({"model_args": {"in_chans": 1}}, UsageError, "mean and std are 1 finite numbers each"),
        ({"num_classes": 9}, BadInputError, "doesn't fit"),
    ],
)
def test_a_folder_of_timms_that_cannot_be_opened_is_refused(
    tmp_path: Path, changes: dict[str, Any], kind: type[DeploykitError], message: str
) -> None:
    folder, _ = timm_folder(tmp_path / "mine", num_classes=3)
    with pytest.raises(kind, match=message):
        SCHEME.open(SCHEME.resolve(str(edit(folder, **changes)), SourceOptions()))


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_weights_of_timms_that_changed_are_refused(tmp_path: Path, change: str) -> None:
    folder, _ = timm_folder(tmp_path / "mine")
    original = SCHEME.resolve(str(folder), SourceOptions())
    state = state_of(folder)
    (folder / "model.safetensors").unlink()
    if change == "changed":
        write_state(folder, {name: value * 2 for name, value in state.items()})
    with pytest.raises(BadInputError, match="is missing or has changed since it was resolved"):
        SCHEME.open(original)
