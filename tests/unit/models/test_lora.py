"""LoRA: fused as a hook beside each layer would have it, however its file names layers; what doesn't fit is told why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deploykit.errors import BadInputError, UsageError
from deploykit.models import lora, sources
from deploykit.models.original import SourceOptions
from deploykit.models.source_lcm import SHIPPED, WEIGHTS

diffusers = pytest.importorskip("diffusers")

TINY = "tiny-lcm-unet"
BLOCK = "down_blocks.2.attentions.0"
#: Linear layers, a pointwise convolution, one of 3x3, and one of stride 2, each with its rank.
RANKS = {
    f"{BLOCK}.transformer_blocks.0.attn1.to_q": 4,
    f"{BLOCK}.transformer_blocks.0.attn2.to_out.0": 2,
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj": 8,
    f"{BLOCK}.proj_in": 3,
    "mid_block.resnets.0.conv1": 4,
    "down_blocks.0.downsamplers.0.conv": 5,
}
ALPHA = 3.0

State = dict[str, torch.Tensor]


def network() -> nn.Module:
    unet: nn.Module = diffusers.UNet2DConditionModel.from_pretrained(
        SHIPPED[TINY], subfolder="unet", local_files_only=True
    )
    return unet.eval()


def halves(unet: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return down and up of each layer, in the layer's own form."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / 3

    made = {}
    for name, rank in RANKS.items():
        out, *rest = unet.get_parameter(f"{name}.weight").shape
        ones = (1,) * (len(rest) - 1)
        made[name] = (draw(rank, *rest), draw(out, rank, *ones))
    return made


def kohya(name: str, down: torch.Tensor, up: torch.Tensor) -> State:
    stem = f"lora_unet_{name.replace('.', '_')}"
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}


def peft(name: str, down: torch.Tensor, up: torch.Tensor) -> State:
    return {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}


def diffusers_file(name: str, down: torch.Tensor, up: torch.Tensor) -> State:
    return {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}


def written(path: Path, named: Callable[..., State], metadata: dict[str, str] | None = None) -> Path:
    state: State = {}
    for name, pair in halves(network()).items():
        state |= named(name, *pair)
    save_file(state, path, metadata)
    return path


def feeds(rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = sources.resolve(TINY).takes.at({"batch": rows})
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "timestep": torch.tensor([999, 259][:rows])}


def answer(unet: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = unet(**feeds(), return_dict=False)[0]
    return output


def hooked(alpha: float | None) -> torch.Tensor:
    """Answer with the change of each layer computed beside it."""
    unet = network()

    def beside(down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor]:
        scale = 1.0 if alpha is None else alpha / len(down)

        def added(layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if isinstance(layer, nn.Conv2d):
                low = nn.functional.conv2d(given[0], down, stride=layer.stride, padding=layer.padding)
                return output + scale * nn.functional.conv2d(low, up)
            return output + scale * nn.functional.linear(nn.functional.linear(given[0], down), up)

        return added

    for name, pair in halves(unet).items():
        unet.get_submodule(name).register_forward_hook(beside(*pair))
    return answer(unet)


def fused(path: Path) -> torch.Tensor:
    unet = network()
    lora.fuse(unet, path)
    return answer(unet)


@pytest.mark.parametrize(
    ("named", "metadata", "alpha"),
    [
        (kohya, None, ALPHA),
        (peft, None, None),
        (diffusers_file, None, None),
        (peft, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 4})}, 2.0),
    ],
)
def test_every_way_to_name_layers_gives_what_the_layers_would_compute(
    named: Callable[..., State], metadata: dict[str, str] | None, alpha: float | None, tmp_path: Path
) -> None:
    wanted = hooked(alpha)
    torch.testing.assert_close(
        fused(written(tmp_path / "lora.safetensors", named, metadata)), wanted, rtol=1e-4, atol=1e-4
    )
    assert (wanted - answer(network())).abs().max() > 0.1


def test_attention_processors_of_old_files_are_their_layers(tmp_path: Path) -> None:
    name = f"{BLOCK}.transformer_blocks.0.attn1"
    down, up = halves(network())[f"{name}.to_q"]
    save_file(
        {f"{name}.processor.to_q_lora.down.weight": down, f"{name}.processor.to_q_lora.up.weight": up},
        tmp_path / "old.safetensors",
    )
    save_file(peft(f"{name}.to_q", down, up), tmp_path / "new.safetensors")
    assert torch.equal(fused(tmp_path / "old.safetensors"), fused(tmp_path / "new.safetensors"))


# What it is not


def changed(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """Write a LoRA in kohya's form with tensors changed, added, or removed where None."""
    path = written(tmp_path / "lora.safetensors", kohya)
    state: dict[str, Any] = {**load_file(path), **changes}
    save_file({name: value for name, value in state.items() if value is not None}, path)
    return path


LAYER = "lora_unet_mid_block_resnets_0_conv1"


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({f"{LAYER}.lora_up.weight": None}, BadInputError, "the up half of .*mid_block_resnets_0_conv1 is missing"),
        ({f"{LAYER}.lora_down.weight": torch.ones(4, 9, 3, 3)}, BadInputError, "is for another base: .* has weights"),
        ({f"{LAYER}.lora_down.weight": torch.ones(7, 64, 3, 3)}, BadInputError, "is for another base"),
        (
            {"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.ones(4, 4)},
            BadInputError,
            "is for another base: it changes input_blocks_4_1_proj_in, and this UNet has no such layer",
        ),
        (
            {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 4)},
            UsageError,
            "changes 1 tensor outside the UNet, such as 'lora_te_text_model",
        ),
        ({f"{LAYER}.strange": torch.ones(4)}, UsageError, "is no LoRA of a UNet: it holds 1 tensor that no LoRA has"),
        (
            {f"{LAYER}.dora_scale": torch.ones(4)},
            UsageError,
            r"is of another kind, DoRA, which isn't supported, .* such as .*dora_scale",
        ),
        (
            {f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(4)},
            UsageError,
            "is of another kind, DoRA, which isn't supported",
        ),
        ({f"{LAYER}.hada_w1_a": torch.ones(4)}, UsageError, "is of another kind, LoHa, which isn't supported"),
        ({f"{LAYER}.lokr_w2_b": torch.ones(4)}, UsageError, "is of another kind, LoKr, which isn't supported"),
        (
            {f"{LAYER}.lora_mid.weight": torch.ones(4)},
            UsageError,
            r"is of another kind, LoCon with a third matrix \(Tucker\)",
        ),
        ({f"{LAYER}.oft_blocks": torch.ones(4)}, UsageError, "is of another kind, OFT"),
        (
            {f"{LAYER}.diff": torch.ones(4), f"{LAYER}.lokr_w1": torch.ones(4)},
            UsageError,
            "is of another kind, LoKr and full difference",
        ),
        ({f"{LAYER}.lora_down.weight": torch.full((4, 64, 3, 3), torch.nan)}, BadInputError, "holds NaN"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_changed(
    changes: dict[str, torch.Tensor | None], error: type[Exception], told: str, tmp_path: Path
) -> None:
    path, unet = changed(tmp_path, **changes), network()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    with pytest.raises(error, match=told):
        lora.fuse(unet, path)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for name, content, error, told in (
        ("lora.bin", b"\x80\x04.", UsageError, r"a LoRA is read from \.safetensors"),
        ("none.safetensors", None, UsageError, "does not exist"),
        ("half.safetensors", b"\x10\x00", BadInputError, "is no safetensors file"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error, match=told):
            lora.fuse(network(), path)
    whole = SHIPPED[TINY] / "unet" / WEIGHTS
    with pytest.raises(
        UsageError, match=r"is no LoRA of a UNet: it holds .* tensors that no LoRA has, such as 'conv_in\.bias'"
    ):
        lora.fuse(network(), whole)


@pytest.mark.parametrize("key", lora.UNUSUAL)
def test_what_is_more_than_two_matrices_is_refused(key: str, tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": {"a": 1}, "unet.r": 4})}
    path = written(tmp_path / "lora.safetensors", peft, metadata)
    with pytest.raises(UsageError, match=f"is a LoRA with {key}, which isn't supported"):
        lora.fuse(network(), path)


# As an option of a source


@pytest.fixture
def ordinary(tmp_path: Path) -> Path:
    """The folder of a UNet without a guidance embedding, as that of Stable Diffusion 1.5 is."""
    folder = shutil.copytree(SHIPPED[TINY], tmp_path / "ordinary")
    config, weights = folder / "unet/config.json", folder / "unet" / WEIGHTS
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": None}))
    save_file({name: value for name, value in load_file(weights).items() if "cond_proj" not in name}, weights)
    return folder


def test_a_lora_makes_an_lcm_of_an_ordinary_unet(ordinary: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an ordinary diffusion UNet") as caught:
        sources.resolve(f"lcm:{ordinary}")
    assert caught.value.hints[0].action == "--lora lcm-lora.safetensors"
    path = written(tmp_path / "lora.safetensors", kohya)
    original = sources.resolve(f"lcm:{ordinary}", SourceOptions(lora=str(path)))
    assert [each.name for each in original.takes.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    module, given = sources.open_module(original), feeds()
    theirs = diffusers.UNet2DConditionModel.from_pretrained(ordinary, subfolder="unet", local_files_only=True).eval()
    lora.fuse(theirs, path)
    del given["timestep_cond"]
    with torch.inference_mode():
        assert torch.equal(module(*given.values()), theirs(**given, return_dict=False)[0])


def test_the_lora_is_part_of_what_an_original_is(tmp_path: Path) -> None:
    path = written(tmp_path / "lora.safetensors", kohya)
    plain, adapted = (sources.resolve(TINY, SourceOptions(lora=given)) for given in (None, str(path)))
    assert plain.digest != adapted.digest
    assert sources.located(adapted.locator) == adapted
    written(path, peft)
    with pytest.raises(BadInputError, match="has changed since it was resolved"):
        sources.open_module(adapted)
    path.unlink()
    with pytest.raises(BadInputError, match=r"lora\.safetensors is missing or has changed"):
        sources.check(adapted)


def test_other_models_take_none() -> None:
    with pytest.raises(
        UsageError, match=r"--lora x\.safetensors: tiny-convnext takes none; UNets of diffusion models do"
    ):
        sources.resolve("tiny-convnext", SourceOptions(lora="x.safetensors"))
