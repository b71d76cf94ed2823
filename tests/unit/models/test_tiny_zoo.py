"""Every model that ships with the package: is it what its card says, and does it do what it is there for?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import naive_int8
from numpy.typing import NDArray

from deploykit.artifact import sha256_of
from deploykit.data import rendered
from deploykit.data.imageset import RenderedSet, prepare_crops, rendered_images
from deploykit.data.preprocess import normalize
from deploykit.models import source_tiny, sources
from deploykit.models.family import get_family
from deploykit.models.original import SourceOptions

IMAGES = 360
#: Standard errors of a share of 360 images: 4 of them at 0.9 are 0.063.
TOLERANCE = 0.065
FEATURES = {
    "tiny-convnext": 192,
    "tiny-convnextv2": 160,
    "tiny-dinov2": 128,
    "tiny-efficientnetv2": 960,
    "tiny-mobilenetv3": 1280,
}
EMBEDDING = SourceOptions(embedding=True)

each = pytest.mark.parametrize("name", source_tiny.tiny_names())


@pytest.fixture(scope="module")
def images() -> RenderedSet:
    """The first test images, in their own size."""
    return rendered_images("rendered:test", IMAGES)


def _answers(name: str, images: RenderedSet, options: SourceOptions | None = None) -> NDArray[np.float32]:
    original = sources.resolve(name, options)
    inputs = torch.from_numpy(normalize(prepare_crops(images, original.recipe), original.recipe))
    with torch.inference_mode():
        answers: NDArray[np.float32] = sources.open_module(original)(inputs).numpy()
    return answers


@each
def test_the_files_are_what_the_card_says(name: str) -> None:
    card = source_tiny.tiny_card(name)
    path = source_tiny.TINY / card.weights
    assert (card.id, card.weights) == (name, f"{name}.safetensors")
    assert sha256_of(path) == card.weights_sha256
    assert path.stat().st_size < 5_000_000
    assert get_family(card.family).name == card.family
    assert card.labels == rendered.CLASSES


@each
def test_the_network_is_what_the_card_says(name: str) -> None:
    card, original = source_tiny.tiny_card(name), sources.resolve(name)
    module = sources.open_module(original)
    assert sum(parameter.numel() for parameter in module.parameters()) == card.parameters <= 1_300_000
    assert original.parameters == card.parameters
    assert not module.training
    assert source_tiny.tiny_card(name).kwargs == card.kwargs, "building it must not change the card"


@each
def test_it_knows_the_shapes_as_well_as_the_card_says(name: str, images: RenderedSet) -> None:
    card = source_tiny.tiny_card(name)
    logits = _answers(name, images)
    assert logits.shape == (IMAGES, len(rendered.CLASSES))
    assert logits.dtype == np.float32
    assert 0.90 <= card.top1.value <= 0.99
    assert (card.top1.n, card.top1.set) == (10_000, "rendered:test")
    assert np.mean(logits.argmax(axis=1) == images.labels) == pytest.approx(card.top1.value, abs=TOLERANCE)


@each
def test_its_features_are_what_its_classifier_sees(name: str, images: RenderedSet) -> None:
    few = rendered_images(images.name, 4)
    whole, headless = sources.open_module(sources.resolve(name)), sources.resolve(name, EMBEDDING)
    features = torch.from_numpy(_answers(name, few, EMBEDDING))
    assert features.shape == (4, FEATURES[name])
    with torch.inference_mode():
        torch.testing.assert_close(whole.get_classifier()(features), torch.from_numpy(_answers(name, few)))  # type: ignore[operator]
    assert headless.parameters == sources.resolve(name).parameters - (FEATURES[name] + 1) * len(rendered.CLASSES)


@each
def test_features_are_another_original(name: str) -> None:
    logits, features = sources.resolve(name), sources.resolve(name, EMBEDDING)
    assert (features.task, features.labels, features.images) == ("embedding", (), None)
    assert features.digest != logits.digest
    assert sources.located(features.locator) == features


@each
def test_its_card_is_the_one_of_the_log(name: str) -> None:
    card = source_tiny.tiny_card(name)
    log = (Path(__file__).parents[3] / f"docs/models/{name}.md").read_text(encoding="utf-8")
    assert f"**{card.top1.value:.4f}**" in log
    assert f"Parameters: {card.parameters}." in log
    assert f"`{card.module}(" in log


@pytest.mark.slow
def test_careless_int8_costs_the_delicate_one_two_points() -> None:
    found = naive_int8.measure("tiny-mobilenetv3", 2400)
    assert found.right / found.n == pytest.approx(source_tiny.tiny_card("tiny-mobilenetv3").top1.value, abs=0.03)
    assert found.drop >= 2.0
