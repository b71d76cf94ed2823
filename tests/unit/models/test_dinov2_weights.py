"""DINOv2 as its authors publish it, loaded into timm's networks: the names, and the positions at two image sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from deploykit.errors import BadInputError
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions

#: timm's networks, and whether they have registers.
NETWORKS = {"vit_small_patch14_dinov2": False, "vit_small_patch14_reg4_dinov2": True}
#: Blocks that are kept of twelve: position embeddings come before them, names are alike in all.
DEPTH = {"depth": 2}
GRID = 518 // 14


def _trained(name: str) -> torch.nn.Module:
    """A network at the published size, whose values no constructor makes."""
    torch.manual_seed(11)
    network: torch.nn.Module = timm.create_model(name, num_classes=0, **DEPTH).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            is_scale = key.endswith("gamma") or ("norm" in key and key.endswith("weight"))
            parameter.copy_(0.05 * torch.randn(parameter.shape) + float(is_scale))
    return network


def _published(state: Mapping[str, torch.Tensor], *, with_registers: bool) -> dict[str, torch.Tensor]:
    """Name and shape weights as in dinov2_vits14_pretrain.pth: positions of the CLS token and of 37 x 37 patches.

    timm adds the CLS token's position to the token itself where there are registers; here it is taken apart again.
    """
    named = {**state, "mask_token": torch.randn(1, state["cls_token"].shape[-1])}
    if with_registers:
        position = torch.randn(1, 1, state["cls_token"].shape[-1])
        named["register_tokens"] = named.pop("reg_token")
        named["cls_token"] = state["cls_token"] - position
        named["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return {name: value.contiguous() for name, value in named.items()}


def _resampled(network: torch.nn.Module, name: str, size: int) -> torch.nn.Module:
    """The same network for another image size: its positions by PyTorch's own antialiased bicubic resampling."""
    state = network.state_dict()
    own = state["pos_embed"]
    grid = own[:, -GRID * GRID :].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    fitted = functional.interpolate(grid, size=(size // 14, size // 14), mode="bicubic", antialias=True)
    positions = torch.cat([own[:, : -GRID * GRID], fitted.flatten(2).transpose(1, 2)], dim=1)
    other: torch.nn.Module = timm.create_model(name, num_classes=0, img_size=size, **DEPTH).eval()
    other.load_state_dict({**state, "pos_embed": positions})
    return other


def _resolve(name: str, path: Path, size: int | None = None) -> Original:
    return sources.resolve(f"timm:{name}", SourceOptions(weights=str(path), image_size=size, model_args=DEPTH))


@pytest.mark.parametrize("size", [518, 224])
@pytest.mark.parametrize(("name", "with_registers"), NETWORKS.items())
def test_published_weights_answer_as_the_network_that_they_were_taken_from(
    tmp_path: Path, name: str, with_registers: bool, size: int
) -> None:
    network = _trained(name)
    published = _published(network.state_dict(), with_registers=with_registers)
    assert published["pos_embed"].shape == (1, 1 + GRID * GRID, 384)
    assert {"cls_token", "mask_token", "blocks.0.ls1.gamma", "patch_embed.proj.weight"} <= set(published)
    torch.save(published, tmp_path / "dinov2_vits14_pretrain.pth")
    original = _resolve(name, tmp_path / "dinov2_vits14_pretrain.pth", size)
    assert (original.task, original.family, original.recipe.input_size) == ("embedding", "dinov2", (3, size, size))
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    reference = network if size == 518 else _resampled(network, name, size)
    with torch.inference_mode():
        answers, expected = sources.open_module(original)(images), reference(images)
    assert float((answers - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "with_registers"), NETWORKS.items())
def test_the_published_size_is_the_usual(tmp_path: Path, name: str, with_registers: bool) -> None:
    published = _published(_trained(name).state_dict(), with_registers=with_registers)
    save_file(published, tmp_path / "w.safetensors")
    assert _resolve(name, tmp_path / "w.safetensors").recipe.input_size == (3, 518, 518)


@pytest.mark.parametrize(("name", "with_registers"), NETWORKS.items())
def test_weights_with_registers_do_not_fit_a_network_without_and_the_other_way_round(
    tmp_path: Path, name: str, with_registers: bool
) -> None:
    published = _published(_trained(name).state_dict(), with_registers=with_registers)
    save_file(published, tmp_path / "w.safetensors")
    other = next(known for known, has in NETWORKS.items() if has != with_registers)
    with pytest.raises(BadInputError, match=r"w\.safetensors doesn't fit VisionTransformer"):
        sources.open_module(_resolve(other, tmp_path / "w.safetensors", 224))
