"""Any timm model: what a name resolves to, whose weights it opens with, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from deploykit.errors import BadInputError, ResourceError, UsageError
from deploykit.models import sources
from deploykit.models.family import family_of
from deploykit.models.original import Original, SourceOptions

NET = "test_convnext"
VIT = "test_vit"
RANDOM = SourceOptions(random_weights=True)


def _answers(original: Original, seed: int = 0) -> torch.Tensor:
    images = torch.randn(2, *original.recipe.input_size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        answers: torch.Tensor = sources.open_module(original)(images)
    return answers


def _trained(name: str = NET, **options: Any) -> dict[str, torch.Tensor]:
    """Weights that no constructor makes."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, torch.Tensor] = timm.create_model(name, **options).state_dict()
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    return state | {key: 0.5 + 0.1 * torch.rand(value.shape, generator=generator) for key, value in floats.items()}


def _saved(path: Path, state: Mapping[str, torch.Tensor]) -> SourceOptions:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return SourceOptions(weights=str(path))


# Names


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("convnext_tinny", "convnext_tiny"),
        ("timm:mobilenetv3_smal_050", "mobilenetv3_small_050"),
        ("tiny-convnxt", "tiny-convnext"),
        ("ResNet18", "resnet18"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(source: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"is no model that I know\. Near: .*\b{near}\b") as caught:
        sources.resolve(source, RANDOM)
    assert "deploykit models" in str(caught.value.hints)


@pytest.mark.parametrize(
    "source", ["timm:", "timm:hf_hub:timm/resnet18", "timm:../resnet18", ".a1_in1k", "timm:local-dir:/"]
)
def test_what_is_no_name_of_timms_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="is no model that I know"):
        sources.resolve(source, RANDOM)


def test_an_unknown_tag_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no such tag; mobilenetv3_small_050 has lamb_in1k"):
        sources.resolve("mobilenetv3_small_050.nonsense", RANDOM)


def test_names_are_listed_by_pattern() -> None:
    from deploykit.models.scheme import get_scheme

    scheme = get_scheme("timm")
    assert NET in scheme.names("test_*")
    assert scheme.names("nothing_*") == ()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("convnext_tiny", "convnext"),
        ("convnextv2_tiny.fcmae", "convnext"),
        ("tf_efficientnetv2_s", "efficientnetv2"),
        ("efficientnetv2_rw_s", "efficientnetv2"),
        ("mobilenetv3_large_100", "mobilenetv3"),
        ("tf_mobilenetv3_small_075", "mobilenetv3"),
        ("vit_small_patch14_dinov2", "dinov2"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "dinov2"),
        ("resnet18", "generic"),
        ("vit_tiny_patch16_224", "generic"),
        ("tf_efficientnet_b0", "generic"),
        ("mobilenetv2_100", "generic"),
        ("", "generic"),
    ],
)
def test_a_name_belongs_to_the_family_that_fits_closest(name: str, family: str) -> None:
    assert family_of(name).name == family


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "a.pth", "random_weights": True}, "--weights and --random-weights contradict one another"),
        ({"weights": "none.pth"}, r"none\.pth does not exist \(given as --weights\)"),
        ({"random_weights": True, "checkpoint_key": "model"}, "there is no --weights FILE to look in"),
        ({"random_weights": True, "embedding": True, "labels": "a.txt"}, "answers with features"),
        ({"random_weights": True, "num_classes": -1}, "--num-classes -1"),
        ({"random_weights": True, "image_size": 0}, "--image-size 0"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sources.resolve(NET, SourceOptions(**options))


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        (NET, "nonsense", 1),
        (NET, "depths", "many"),
        ("mobilenetv3_small_050", "act_layer", "nonsense"),
        (VIT, "depth", "deep"),
        (VIT, "num_heads", 5),
        (VIT, "global_pool", "nonsense"),
    ],
)
def test_arguments_that_timm_does_not_take_are_refused(name: str, argument: str, value: float | str) -> None:
    with pytest.raises(UsageError, match=rf"timm can't build {name} with .*{argument}"):
        sources.resolve(name, SourceOptions(random_weights=True, model_args={argument: value}))


@pytest.mark.parametrize(
    ("argument", "value", "instead"),
    [
        ("pretrained", True, "say --weights"),
        ("checkpoint_path", "/tmp/other.pth", "say --weights"),
        ("num_classes", 3, "say --num-classes"),
        ("img_size", 64, "say --image-size"),
        ("features_only", True, "isn't supported"),
        ("in_chans", 1, "isn't supported"),
    ],
)
def test_arguments_that_go_around_an_option_are_refused(argument: str, value: float | str, instead: str) -> None:
    with pytest.raises(UsageError, match=f"--model-arg {argument}.*{instead}"):
        sources.resolve(VIT, SourceOptions(random_weights=True, model_args={argument: value}))


def test_an_argument_of_the_constructor_is_passed_on() -> None:
    plain = sources.resolve(VIT, RANDOM)
    deeper = sources.resolve(VIT, SourceOptions(random_weights=True, model_args={"depth": 7}))
    assert deeper.parameters > plain.parameters
    assert deeper.digest != plain.digest
    assert len(sources.open_module(deeper).blocks) == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "size"), [(VIT, 96), (NET, 64), ("mobilenetv3_small_050", 96)])
def test_an_image_size_changes_the_input(name: str, size: int) -> None:
    original = sources.resolve(name, SourceOptions(random_weights=True, image_size=size))
    assert original.recipe.input_size == (3, size, size)
    assert original.digest != sources.resolve(name, RANDOM).digest
    assert _answers(original).shape == (2, 1000)


def test_features_are_answered_where_asked_for() -> None:
    original = sources.resolve(NET, SourceOptions(random_weights=True, embedding=True))
    whole = sources.resolve(NET, RANDOM)
    assert (original.task, original.labels) == ("embedding", ())
    assert _answers(original).shape == (2, sources.open_module(original).num_features)
    assert original.parameters == sum(value.numel() for value in sources.open_module(original).parameters())
    assert original.parameters < whole.parameters
    assert original.digest != whole.digest


def test_a_pretrained_model_without_a_head_answers_with_features() -> None:
    original = sources.resolve("convnextv2_atto.fcmae", RANDOM)
    assert (original.task, original.labels, original.id) == ("embedding", (), "convnextv2_atto")


# Random weights


@pytest.mark.parametrize("name", [NET, VIT, "test_efficientnet"])
def test_random_weights_are_the_same_at_each_opening(name: str) -> None:
    torch.manual_seed(1)
    original = sources.resolve(name, RANDOM)
    first = sources.open_module(original).state_dict()
    torch.manual_seed(2)
    again = sources.located(original.locator)
    assert again == original
    second = sources.open_module(again).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    answers = _answers(original)
    assert bool(torch.isfinite(answers).all())
    assert float((answers[0] - answers[1]).abs().max()) > 0.01


def test_an_original_is_called_without_its_tag() -> None:
    original = sources.resolve("mobilenetv3_small_050.lamb_in1k", RANDOM)
    assert (original.id, original.name) == ("mobilenetv3_small_050", "mobilenetv3_small_050.lamb_in1k")
    assert (original.task, original.family, len(original.labels)) == ("logits", "mobilenetv3", 1000)
    assert original.weights_file == ""


def test_a_family_that_is_named_goes_before_the_names() -> None:
    plain = sources.resolve("mobilenetv3_small_050", RANDOM)
    named = sources.resolve("mobilenetv3_small_050", replace(RANDOM, family="generic"))
    assert (plain.family, named.family) == ("mobilenetv3", "generic")
    assert named.digest != plain.digest


# A checkpoint of one's own


def test_a_checkpoint_tells_the_size_of_the_head(tmp_path: Path) -> None:
    state = _trained(num_classes=10)
    original = sources.resolve(NET, _saved(tmp_path / "w.safetensors", state))
    assert original.labels == tuple(f"class {index}" for index in range(10))
    assert Path(original.weights_file).is_absolute()
    opened = sources.open_module(sources.located(original.locator))
    assert all(torch.equal(value, state[key]) for key, value in opened.state_dict().items())
    assert not opened.training
    assert _answers(original).shape == (2, 10)


def test_classes_are_called_as_the_file_says(tmp_path: Path) -> None:
    options = _saved(tmp_path / "w.safetensors", _trained(num_classes=3))
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    named = SourceOptions(weights=options.weights, labels=str(tmp_path / "labels.txt"))
    assert sources.resolve(NET, named).labels == ("cat", "dog", "bird")
    assert sources.resolve(NET, named).digest != sources.resolve(NET, options).digest


def test_features_of_a_checkpoint_with_a_head(tmp_path: Path) -> None:
    options = _saved(tmp_path / "w.safetensors", _trained(num_classes=10))
    original = sources.resolve(NET, SourceOptions(weights=options.weights, embedding=True))
    assert (original.task, original.labels) == ("embedding", ())
    assert _answers(original).ndim == 2


def test_another_head_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    options = _saved(tmp_path / "w.safetensors", _trained(num_classes=10))
    original = sources.resolve(NET, SourceOptions(weights=options.weights, num_classes=5))
    with pytest.raises(BadInputError, match=r"of another shape \(first: head\.fc\.weight \[10, 64\] for \[5, 64\]\)"):
        sources.open_module(original)


@pytest.mark.parametrize(
    "state", [{"fc.weight": torch.ones(2, 3)}, {"conv.weight": torch.ones(1)}, {"head.x": torch.ones(2, 2)}]
)
@pytest.mark.parametrize("name", [NET, VIT, "test_resnet"])
def test_weights_of_another_network_are_refused(tmp_path: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BadInputError, match=r"w\.safetensors doesn't fit"):
        sources.open_module(sources.resolve(name, _saved(tmp_path / "w.safetensors", state)))


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_weights_that_changed_since_they_were_resolved_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "w.safetensors"
    original = sources.resolve(NET, _saved(path, _trained()))
    path.unlink()
    if change == "changed":
        _saved(path, timm.create_model(NET).state_dict())
    with pytest.raises(BadInputError, match="is missing or has changed since it was resolved"):
        sources.open_module(original)


def test_damaged_weights_are_refused_when_resolved(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"nonsense")
    with pytest.raises(BadInputError, match=r"w\.pth is no checkpoint"):
        sources.resolve(NET, SourceOptions(weights=str(tmp_path / "w.pth")))


def test_a_key_of_the_checkpoint_is_part_of_the_original(tmp_path: Path) -> None:
    state = _trained(num_classes=4)
    torch.save({"a": state, "b": {key: value * 2 for key, value in state.items()}}, tmp_path / "w.pth")
    one, other = (
        sources.resolve(NET, SourceOptions(weights=str(tmp_path / "w.pth"), checkpoint_key=key)) for key in "ab"
    )
    assert one.digest != other.digest
    assert not torch.equal(_answers(one), _answers(other))


def _original_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name a ConvNeXt's weights as its authors did."""
    names = {}
    for name, value in state.items():
        old = re.sub(r"^stem\.", "downsample_layers.0.", name)
        old = re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", old)
        old = re.sub(r"^stages\.(\d+)\.blocks\.", r"stages.\1.", old)
        old = old.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        names[old.replace("head.fc.", "head.").replace("head.norm.", "norm.")] = value
    return names


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}])
def test_a_checkpoint_with_its_authors_names_is_renamed(tmp_path: Path, wrap: Any) -> None:
    state = _trained(num_classes=6)
    renamed = _original_names(state)
    assert "downsample_layers.0.0.weight" in renamed
    torch.save(wrap(renamed), tmp_path / "w.pth")
    original = sources.resolve(NET, SourceOptions(weights=str(tmp_path / "w.pth")))
    assert len(original.labels) == 6
    opened = sources.open_module(original).state_dict()
    assert all(torch.equal(opened[key], value) for key, value in state.items())


def test_position_embeddings_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    state = _trained(VIT)
    saved = _saved(tmp_path / "w.safetensors", state)
    original = sources.resolve(VIT, SourceOptions(weights=saved.weights, image_size=96))
    opened = sources.open_module(original).state_dict()
    assert opened["pos_embed"].shape != state["pos_embed"].shape
    assert all(torch.equal(opened[key], value) for key, value in state.items() if key != "pos_embed")
    assert _answers(original).shape == (2, 1000)


# The hub


HUB = """
import json, sys, time
from deploykit.errors import DeploykitError
from deploykit.models import sources
from deploykit.models.original import SourceOptions
import timm, torch, huggingface_hub
began = time.monotonic()
try:
    original = sources.resolve(sys.argv[1])
    said = {"weights": original.weights_file, "labels": len(original.labels), "loaded": bool(sources.open_module(original))}
except DeploykitError as error:
    said = {"error": str(error), "code": error.exit_code, "hints": [hint.action for hint in error.hints]}
print(json.dumps({**said, "seconds": time.monotonic() - began}))
"""


def _from_hub(home: Path, name: str = NET, **environment: str) -> dict[str, Any]:
    """Resolve and open in a process of its own: the hub's client reads the environment when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    variables = {**inherited, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    ended = subprocess.run([sys.executable, "-c", HUB, name], capture_output=True, text=True, env=variables)
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def _in_cache(home: Path, state: Mapping[str, torch.Tensor], filename: str = "model.safetensors") -> Path:
    """Lay weights where the hub's client keeps them: a blob, and a link to it from the snapshot that `main` is."""
    commit = "0" * 40
    folder = home / "hub" / f"models--timm--{timm.get_pretrained_cfg(NET).hf_hub_id.partition('/')[2]}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    _saved(folder / "blobs/abc", state)
    link = folder / "snapshots" / commit / filename
    link.symlink_to("../../blobs/abc")
    return link


def test_pretrained_weights_come_from_the_cache_without_network(tmp_path: Path) -> None:
    link = _in_cache(tmp_path, _trained())
    said = _from_hub(tmp_path)
    assert (said["weights"], said["labels"], said["loaded"]) == (str(link), 1000, True)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HF_HUB_OFFLINE": "1"},
        {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_ENDPOINT": "https://example.invalid"},
    ],
    ids=["no network", "offline", "no proxy"],
)
def test_without_weights_or_network_it_says_what_to_do_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    said = _from_hub(tmp_path, **environment)
    assert (said["code"], said["error"]) == (5, f"no weights for {NET}: the hub can't be reached and no file was given")
    assert said["hints"] == ["--weights FILE", "--random-weights"]
    assert said["seconds"] < 8


def test_an_architecture_that_was_never_trained_says_so() -> None:
    never = next(name for name in timm.list_models("*") if not timm.get_pretrained_cfg(name).hf_hub_id)
    with pytest.raises(ResourceError, match=f"no weights for {never}: timm has none, and no file was given"):
        sources.resolve(never)
