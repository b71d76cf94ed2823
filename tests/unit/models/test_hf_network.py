"""Networks of transformers: they answer as in transformers, at any image size, and are called as their configuration says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.unit.models import hf_folders
from tests.unit.models.hf_folders import (
    NETWORKS,
    answers_of,
    edit,
    images_for,
    is_close,
    own_answer,
    resolve,
    saved,
    state_of,
    transformers,
    write_state,
)

from deploykit.errors import BadInputError
from deploykit.models import sources
from deploykit.models.hf_quiet import quiet
from deploykit.models.original import SourceOptions
from deploykit.models.source_hf import SCHEME


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of networks, each written once. Not to be changed: copy them."""
    root = tmp_path_factory.mktemp("networks")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else saved(root / name, name)

    return folder


@pytest.fixture(scope="module")
def _dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.dino_at(tmp_path_factory.mktemp("written") / "dino")


@pytest.fixture
def dino(tmp_path: Path, _dino: Path) -> Path:
    """A DINOv2 of one's own, with its preprocessor_config.json."""
    return shutil.copytree(_dino, tmp_path / "dino")


# What is opened


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_answers_as_in_transformers(shared: Callable[[str], Path], name: str) -> None:
    folder = shared(name)
    original = resolve(folder, NETWORKS[name][1])
    own = own_answer(folder, name, images_for(original))
    task = "logits" if "ForImageClassification" in name else "embedding"
    first = answers_of(original)
    assert (original.scheme, original.name, original.task) == ("hf", str(folder), task)
    assert is_close(first, own.logits if task == "logits" else own.pooler_output)
    assert torch.equal(first, answers_of(original)), "opened twice, it is the same"
    module = SCHEME.open(original)
    assert original.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


def _expected_features(folder: Path, name: str, images: torch.Tensor) -> torch.Tensor:
    """Features of a classifier: of its backbone, which some of transformers' are built without a pooler in."""
    with torch.inference_mode(), quiet():
        classifier = getattr(transformers, name).from_pretrained(folder, local_files_only=True).eval()
        found = classifier.base_model(pixel_values=images)
    pooled = found.pooler_output
    features: torch.Tensor = found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
    return features


@pytest.mark.parametrize("name", [name for name in NETWORKS if "ForImageClassification" in name])
def test_features_of_a_classifier_are_those_of_its_backbone(shared: Callable[[str], Path], name: str) -> None:
    folder = shared(name)
    original = resolve(folder, NETWORKS[name][1], embedding=True)
    assert (original.task, original.labels) == ("embedding", ())
    assert is_close(answers_of(original), _expected_features(folder, name, images_for(original)))
    whole = resolve(folder, NETWORKS[name][1])
    assert original.parameters < whole.parameters
    assert original.digest != whole.digest


def test_a_backbone_that_was_trained_without_a_pooler_answers_with_its_cls_token(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vit", "ViTModel")
    write_state(folder, {name: value for name, value in state_of(folder).items() if "pooler" not in name})
    original = resolve(folder)
    own = own_answer(folder, "ViTModel", images_for(original))
    assert is_close(answers_of(original), own.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Dinov2Model", "dinov2"),
        ("Dinov2WithRegistersForImageClassification", "dinov2"),
        ("ConvNextModel", "convnext"),
        ("ConvNextV2ForImageClassification", "convnext"),
        ("ViTModel", "generic"),
        ("ResNetForImageClassification", "generic"),
    ],
)
def test_a_network_belongs_to_the_family_of_its_kind(shared: Callable[[str], Path], name: str, family: str) -> None:
    assert resolve(shared(name), NETWORKS[name][1]).family == family


def test_a_family_that_is_named_goes_before_the_kind(dino: Path) -> None:
    assert SCHEME.resolve(str(dino), SourceOptions(family="generic")).family == "generic"


def test_a_locator_opens_an_equal_original(dino: Path) -> None:
    original = SCHEME.resolve(str(dino), SourceOptions(image_size=70))
    again = sources.located(original.locator)
    assert (again, again.digest) == (original, original.digest)
    assert torch.equal(answers_of(again), answers_of(original))


def test_another_configuration_is_another_original(dino: Path) -> None:
    original = SCHEME.resolve(str(dino), SourceOptions())
    assert SCHEME.resolve(str(dino), SourceOptions()) == original
    changed = SCHEME.resolve(str(edit(dino, layer_norm_eps=1e-3)), SourceOptions())
    assert changed.digest != original.digest


def test_the_random_state_of_the_program_stays_as_it_was(dino: Path) -> None:
    before = torch.get_rng_state()
    for options in (SourceOptions(), SourceOptions(random_weights=True)):
        SCHEME.open(SCHEME.resolve(str(dino), options))
    assert torch.equal(torch.get_rng_state(), before)


# Position embeddings


@pytest.mark.parametrize("size", [14, 28, 56, 70, 112])
@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel", "Dinov2ForImageClassification"])
def test_positions_are_those_that_transformers_resamples(shared: Callable[[str], Path], name: str, size: int) -> None:
    folder = shared(name)
    original = resolve(folder, size)
    own = own_answer(folder, name, images_for(original))
    assert is_close(answers_of(original), own.logits if original.task == "logits" else own.pooler_output)


@pytest.mark.parametrize("size", [16, 32, 48])
@pytest.mark.parametrize(
    "name", ["ViTModel", "ViTForImageClassification", "CLIPVisionModel", "SwinForImageClassification"]
)
def test_a_transformer_of_a_fixed_size_is_fitted_to_another(
    shared: Callable[[str], Path], name: str, size: int
) -> None:
    folder = shared(name)
    original = resolve(folder, size)
    own = own_answer(folder, name, images_for(original), interpolate_pos_encoding=True)
    assert is_close(answers_of(original), own.logits if original.task == "logits" else own.pooler_output)


@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel", "ViTModel", "CLIPVisionModel"])
def test_nothing_is_resampled_in_the_graph(shared: Callable[[str], Path], name: str) -> None:
    original = resolve(shared(name), NETWORKS[name][1] * 2)
    module = SCHEME.open(original)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(module, (images_for(original),), dynamic_shapes=({0: batch},))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called
    assert not [target for target in called if "upsample" in target or "interpolate" in target]
    images = images_for(original, 5)
    with torch.inference_mode():
        assert is_close(program.module()(images), module(images))


# Classes


def _labelled(tmp_path: Path, names: object) -> Path:
    folder = saved(tmp_path / "net", "ConvNextForImageClassification", num_labels=3)
    return edit(folder, id2label=names)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "cat", "1": "dog", "2": "bird"}, ("cat", "dog", "bird")),
        ({"2": "cat", "1": "dog", "0": "bird"}, ("bird", "dog", "cat")),
        ({"0": "crane", "1": "dog", "2": "crane"}, ("crane (0)", "dog", "crane (2)")),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ("class 0", "class 1", "class 2")),
        ({"0": 7, "1": 8, "2": 9}, ("7", "8", "9")),
    ],
)
def test_classes_are_called_as_the_configuration_says(tmp_path: Path, names: object, labels: tuple[str, ...]) -> None:
    assert resolve(_labelled(tmp_path, names)).labels == labels


@pytest.mark.parametrize("names", [{"0": "a", "1": "b", "3": "c"}, {"a": "0", "b": "1"}, ["a", "b", "c"], "abc"])
def test_class_names_that_number_no_classes_are_refused(tmp_path: Path, names: object) -> None:
    with pytest.raises(BadInputError, match=r"config\.json"):
        resolve(_labelled(tmp_path, names))


def test_classes_are_called_as_a_file_says(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert resolve(_labelled(tmp_path, {"0": "x", "1": "y", "2": "z"}), labels=str(tmp_path / "labels.txt")).labels == (
        "a",
        "b",
        "c",
    )
