"""The scheme "lcm": what is no UNet of a latent consistency model is told what it is; what is one is opened whole and once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploykit.artifact import sha256_of
from deploykit.errors import BadInputError, UsageError
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.models.source_lcm import ARCHITECTURES, SCHEME, SHIPPED, STEM, WEIGHTS

pytest.importorskip("diffusers")

RANDOM = SourceOptions(random_weights=True)
TINY = "tiny-lcm-unet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's folder of one's own, with the network that ships."""
    return shutil.copytree(SHIPPED[TINY], tmp_path / "mine")


def edit(folder: Path, **changes: object) -> None:
    """Change settings of the UNet; None removes them."""
    path = folder / "unet/config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def resolve(folder: Path, options: SourceOptions | None = None) -> Original:
    return SCHEME.resolve(str(folder), options or SourceOptions())


def feeds(original: Original, rows: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    shapes = original.takes.at({"batch": rows})
    return tuple(
        torch.arange(rows) * 250 + 9 if each.dtype == "int64" else torch.randn(shapes[each.name], generator=generator)
        for each in original.takes.inputs
    )


# What it is not


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "AutoencoderKL"}, "is a AutoencoderKL, not a UNet2DConditionModel"),
        ({"_class_name": None, "model_type": "dinov2"}, "is a dinov2, not a UNet2DConditionModel"),
        ({"_class_name": None}, "is a model of an unknown kind"),
        (
            {"addition_embed_type": "text_time"},
            "is the UNet of Stable Diffusion XL, which takes text_embeds and time_ids",
        ),
        ({"time_cond_proj_dim": None}, "is an ordinary diffusion UNet, no LCM: it takes no guidance embedding"),
        ({"class_embed_type": "timestep"}, "takes more than an LCM's inputs, .*class_embed_type 'timestep'"),
        ({"encoder_hid_dim_type": "image_proj"}, "takes more than an LCM's inputs"),
        ({"in_channels": 9}, "takes 9 channels and gives 3: an inpainting UNet"),
    ],
)
def test_another_model_is_told_what_it_is(folder: Path, changes: dict[str, Any], told: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UsageError, match=told):
        resolve(folder)


def test_a_pipeline_without_a_unet_is_told_its_class(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    with pytest.raises(UsageError, match=r"is no diffusion model: it has neither unet/config\.json nor config\.json"):
        resolve(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(UsageError, match="is a FluxPipeline without a UNet"):
        resolve(folder)


@pytest.mark.parametrize("name", ["", "/no/such/folder", "a b"])
def test_a_folder_that_is_not_there_is_told_by_this_scheme(name: str) -> None:
    with pytest.raises(UsageError, match="lcm:") as caught:
        SCHEME.resolve(name, SourceOptions())
    assert "lcm:FOLDER" in str(caught.value.hints)


# What is damaged


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"_class_name": "UNet2DConditionModel"'])
def test_half_a_configuration_is_bad_input(folder: Path, text: str) -> None:
    (folder / "unet/config.json").write_text(text)
    with pytest.raises(BadInputError, match=r"config\.json (is not JSON|holds a list)"):
        resolve(folder)


def test_code_that_comes_along_is_never_run(folder: Path) -> None:
    edit(folder, auto_map={"AutoModel": "mine.Unet"})
    with pytest.raises(BadInputError, match="asks for code of its own"):
        resolve(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sample_size": "big"}, "sample_size must be a number"),
        ({"cross_attention_dim": [32, 64]}, "cross_attention_dim must be a number"),
        ({"block_out_channels": [32, 64]}, "diffusers builds no UNet2DConditionModel from its config"),
        ({"norm_num_groups": 7}, "diffusers builds no UNet2DConditionModel"),
    ],
)
def test_settings_that_build_nothing_are_bad_input(folder: Path, changes: dict[str, Any], told: str) -> None:
    edit(folder, **changes)
    with pytest.raises(BadInputError, match=told):
        resolve(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, 3_000_000, -1])
def test_half_a_download_is_told_before_anything_is_built(folder: Path, kept: int) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadInputError, match="is no whole safetensors file") as caught:
        resolve(folder)
    assert caught.value.exit_code == 7


def test_weights_that_are_missing_or_elsewhere_are_told_apart(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.unlink()
    with pytest.raises(BadInputError, match="holds no weights: is its download complete"):
        resolve(folder)
    pickled = path.with_suffix(".bin")
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(BadInputError, match="holds only a pickle of its weights, which isn't read"):
        resolve(folder)
    path.with_name(f"{path.name}.index.json").write_text("{}")
    with pytest.raises(BadInputError, match="is no index of weights: it has no weight_map"):
        resolve(folder)
    assert resolve(folder, RANDOM).weights_file == ""


@pytest.mark.parametrize(
    "index", [f"{WEIGHTS}.index.json", f"{WEIGHTS}.index.fp16.json", f"{STEM}.odd.safetensors.index.json"]
)
def test_weights_in_several_files_are_those_of_one(folder: Path, index: str) -> None:
    whole = resolve(folder)
    wanted = SCHEME.open(whole).state_dict()
    path = spread(folder / "unet" / WEIGHTS, index)
    original = resolve(folder)
    assert original.weights_file == str(path)
    found = SCHEME.open(original).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    shard = path.with_name("part-00002.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert resolve(folder).weights_sha256 != original.weights_sha256
    with pytest.raises(BadInputError, match="is missing or has changed"):
        SCHEME.open(original)
    shard.unlink()
    with pytest.raises(BadInputError, match=r"spreads weights over 2 files: part-00002\.safetensors does not exist"):
        resolve(folder)


def spread(file: Path, index: str) -> Path:
    """Put the weights of a file into two beside it."""
    state = load_file(file)
    file.unlink()
    placed = {name: f"part-0000{1 + number % 2}.safetensors" for number, name in enumerate(sorted(state))}
    for part in set(placed.values()):
        save_file({name: state[name] for name in state if placed[name] == part}, file.with_name(part))
    path = file.with_name(index)
    path.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return path


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "a\\b", "", "..", 3, None])
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, shard: object) -> None:
    path = spread(folder / "unet" / WEIGHTS, f"{WEIGHTS}.index.json")
    path.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(BadInputError, match="shards lie in the folder of their index"):
        resolve(folder)


def test_an_index_that_says_other_than_its_files_is_refused(folder: Path) -> None:
    path = spread(folder / "unet" / WEIGHTS, f"{WEIGHTS}.index.json")
    placed = json.loads(path.read_text())["weight_map"]
    path.write_text(
        json.dumps({"weight_map": {name: part for name, part in placed.items() if name != "conv_in.weight"}})
    )
    with pytest.raises(BadInputError, match=r"holds other tensors than .* says"):
        SCHEME.open(resolve(folder))


def test_variants_of_which_none_is_plain_are_listed(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.rename(path.with_name(f"{STEM}.one.safetensors"))
    assert resolve(folder).weights_file.endswith(".one.safetensors")
    shutil.copy(path.with_name(f"{STEM}.one.safetensors"), path.with_name(f"{STEM}.two.safetensors"))
    with pytest.raises(UsageError, match="in 2 variants, none of them plain: one, two"):
        resolve(folder)


def test_weights_of_another_network_are_told_by_name(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    state = load_file(path)
    kept = {name: value for name, value in state.items() if "cond_proj" not in name}
    save_file({**kept, "conv_in.weight": state["conv_in.weight"][:8].clone()}, path)
    with pytest.raises(
        BadInputError, match=r"1 missing \(first: time_embedding\.cond_proj\.weight\); 1 of another shape"
    ):
        SCHEME.open(resolve(folder))
    state["conv_in.bias"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(BadInputError, match=r"conv_in\.bias holds NaN"):
        SCHEME.open(resolve(folder))


def test_weights_that_changed_since_are_noticed(folder: Path) -> None:
    original = resolve(folder)
    path = folder / "unet" / WEIGHTS
    state = load_file(path)
    save_file({**state, "conv_in.bias": state["conv_in.bias"] + 1}, path)
    with pytest.raises(BadInputError, match="has changed since it was resolved"):
        SCHEME.open(original)


# What can't be asked for


def test_options_that_would_be_ignored_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="takes no image_size, num_classes"):
        resolve(folder, SourceOptions(num_classes=3, image_size=64))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_no_weights(name: str) -> None:
    with pytest.raises(UsageError, match="is an architecture without weights") as caught:
        SCHEME.resolve(name, SourceOptions())
    assert caught.value.hints[0].action == "--random-weights"


def test_without_diffusers_the_extra_is_named() -> None:
    code = (
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'diffusers' else found(name, *rest)\n"
        "from deploykit.errors import MissingComponentError\n"
        "from deploykit.models import sources\n"
        "try: sources.resolve('tiny-lcm-unet')\n"
        "except MissingComponentError as error: print(error.message, error.hints[0].action, error.exit_code)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip().endswith("pip install 'deploykit[diffusion]' 5"), ended.stderr
    assert "diffusers is not installed here" in ended.stdout


# What it is


def test_the_network_that_ships_is_known_by_its_name_alone() -> None:
    original = sources.resolve(TINY)
    assert (original.id, original.scheme, original.family, original.task) == (TINY, "lcm", "lcm", "noise")
    assert original.preprocess is None
    assert TINY in SCHEME.names("tiny-*")
    assert original.weights_sha256 == sha256_of(SHIPPED[TINY] / "unet" / WEIGHTS)
    assert Path(original.weights_file).stat().st_size < 12_000_000
    assert sources.located(original.locator) == original


def test_inputs_are_declared_with_types_and_open_sizes() -> None:
    takes = sources.resolve(TINY).takes
    assert [(each.name, each.dtype, each.shape) for each in takes.inputs] == [
        ("sample", "float32", ("batch", 3, "height", "width")),
        ("timestep", "int64", ("batch",)),
        ("encoder_hidden_states", "float32", ("batch", "sequence", 32)),
        ("timestep_cond", "float32", ("batch", 256)),
    ]
    assert (takes.output, takes.answer) == ("out_sample", ("batch", 3, "height", "width"))
    assert dict(takes.sizes) == {"height": 16, "width": 16, "sequence": 4}


def test_a_folder_answers_as_diffusers_own_loader_has_it(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    assert SCHEME.claims(str(folder))
    original = sources.resolve(str(folder))
    module = SCHEME.open(original)
    theirs = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True).eval()
    sample, timestep, states, guidance = feeds(original)
    with torch.inference_mode():
        expected = theirs(sample, timestep, states, timestep_cond=guidance).sample
        torch.testing.assert_close(module(sample, timestep, states, guidance), expected, rtol=0, atol=0)
    assert not any(parameter.is_meta for parameter in module.parameters())


def test_the_unets_own_folder_is_opened_too(folder: Path) -> None:
    original = resolve(folder / "unet")
    assert original.weights_sha256 == resolve(folder).weights_sha256
    assert original.takes.sizes["sequence"] == 77, "prompts are as long as CLIP's where no tokenizer says"


def test_weights_in_half_are_widened(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    save_file(
        {name: value.half() for name, value in load_file(path).items()}, path.with_name(f"{STEM}.fp16.safetensors")
    )
    path.unlink()
    module = SCHEME.open(resolve(folder))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_random_weights_are_the_same_each_time_and_answer() -> None:
    original = SCHEME.resolve(TINY, RANDOM)
    first, second = (SCHEME.open(original) for _ in range(2))
    with torch.inference_mode():
        answers = [module(*feeds(original)) for module in (first, second)]
    torch.testing.assert_close(*answers, rtol=0, atol=0)
    assert answers[0].std() > 0.05
    assert original.digest != SCHEME.resolve(TINY, SourceOptions()).digest


def test_the_architecture_of_stable_diffusion_is_the_published_one() -> None:
    original = sources.resolve("lcm:sd15", RANDOM)
    assert original.parameters == 859_520_964 + 256 * 320, "that of SD 1.5, and the guidance embedding's projection"
    assert dict(original.takes.sizes) == {"height": 64, "width": 64, "sequence": 77}


def test_a_repository_comes_from_the_cache_without_network(tmp_path: Path) -> None:
    commit, root = "0" * 40, tmp_path / "hub/models--some--lcm"
    snapshot = root / "snapshots" / commit
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    shutil.copytree(SHIPPED[TINY] / "unet", snapshot / "unet")
    code = (
        "import json\nfrom deploykit.models import sources\nfound = sources.resolve('lcm:some/lcm')\n"
        "sources.open_module(found)\nprint(json.dumps([found.id, found.name, found.weights_file]))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert json.loads(ended.stdout or "[]") == ["lcm", "some/lcm", str(snapshot / "unet" / WEIGHTS)], ended.stderr


def test_importing_the_scheme_imports_no_heavy_library() -> None:
    code = "import sys, deploykit.models.source_lcm\nprint({'torch', 'diffusers', 'safetensors'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == "set()", ended.stderr
