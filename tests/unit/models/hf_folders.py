"""Folders of small networks as transformers writes them, for the tests of what is opened from such folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deploykit.models.hf_quiet import quiet
from deploykit.models.original import Original, SourceOptions
from deploykit.models.source_hf import SCHEME

transformers = pytest.importorskip("transformers")

BIT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
#: How images are prepared, for tests of something else.
PREPARED: dict[str, Any] = {
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DINOV2 = {**TOKENS, "image_size": 56, "patch_size": 14}
VIT = {**TOKENS, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
CONVNEXT = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "image_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
#: Networks by transformers' class: what they are built with, and the size of image that they take.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "Dinov2Model": (DINOV2, 56),
    "Dinov2WithRegistersModel": (DINOV2, 56),
    "Dinov2ForImageClassification": ({**DINOV2, "num_labels": 5}, 56),
    "Dinov2WithRegistersForImageClassification": ({**DINOV2, "num_labels": 5}, 56),
    "ConvNextModel": (CONVNEXT, 32),
    "ConvNextForImageClassification": ({**CONVNEXT, "num_labels": 5}, 32),
    "ConvNextV2ForImageClassification": ({**CONVNEXT, "num_labels": 5}, 32),
    "ViTModel": (VIT, 32),
    "ViTForImageClassification": ({**VIT, "num_labels": 5}, 32),
    "DeiTForImageClassificationWithTeacher": ({**VIT, "num_labels": 5}, 32),
    "ResNetForImageClassification": ({**RESNET, "num_labels": 5}, 32),
    "SwinForImageClassification": ({**SWIN, "num_labels": 5}, 32),
    "CLIPVisionModel": (VIT, 32),
}


def config_of(name: str, **changes: Any) -> Any:
    return getattr(transformers, name).config_class(**{**NETWORKS[name][0], **changes})


def varied(name: str, **changes: Any) -> Any:
    """Build a network whose values no constructor makes, so that nothing hides what isn't loaded."""
    torch.manual_seed(5)
    with quiet():
        network = getattr(transformers, name)(config_of(name, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for key, value in network.named_buffers():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return network


def saved(folder: Path, name: str, preprocessor: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    network = varied(name, **changes)
    with quiet():
        network.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def edit(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Change keys of a JSON file; None removes one."""
    data = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return folder


def resolve(folder: Path | str, size: int | None = None, **options: Any) -> Original:
    """Resolve a folder, whatever its preprocessor_config.json says."""
    return SCHEME.resolve(str(folder), SourceOptions(**{**PREPARED, "image_size": size or 32, **options}))


def images_for(original: Original, count: int = 2) -> torch.Tensor:
    size = original.recipe.input_size
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def answers_of(original: Original) -> torch.Tensor:
    with torch.inference_mode():
        answers: torch.Tensor = SCHEME.open(original)(images_for(original))
    return answers


def own_answer(folder: Path, name: str, images: torch.Tensor, **arguments: Any) -> Any:
    """What transformers itself answers with."""
    with torch.inference_mode(), quiet():
        network = getattr(transformers, name).from_pretrained(folder, local_files_only=True).eval()
        return network(pixel_values=images, **arguments)


def is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the rounding of float32."""
    return one.shape == other.shape and float((one - other).abs().max()) <= 2e-6 * float(other.abs().max())


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return state


def write_state(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_file(dict(state), folder / "model.safetensors")


def dino_at(folder: Path) -> Path:
    """Write a DINOv2 of 56 pixels with its preprocessor_config.json."""
    return saved(folder, "Dinov2WithRegistersModel", BIT)


def timm_folder(folder: Path, name: str = "test_convnext", **options: Any) -> tuple[Path, torch.nn.Module]:
    """Write a network of timm's as timm does."""
    torch.manual_seed(2)
    network = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return folder, network
