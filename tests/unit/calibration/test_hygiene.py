from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.calibration.pictures import RECIPE, compressed, crops, natural, titles, uniform

from deploykit.artifact import Preprocess
from deploykit.calibration.hygiene import (
    FLAT_SET,
    MIN_IMAGES,
    NAMED,
    Examination,
    Grain,
    check_count,
    examine,
    examine_inputs,
    to_crop,
)
from deploykit.data import rendered
from deploykit.data.preprocess import crop, normalize
from deploykit.errors import BadInputError, UsageError

PIXEL = np.float32(255)
CROPS = crops(40)
HALVES = dataclasses.replace(RECIPE, mean=(0.5,) * 3, std=(0.5,) * 3)
PLAIN = dataclasses.replace(RECIPE, mean=(0.0,) * 3, std=(1.0,) * 3)


def kinds(found: Examination) -> list[str]:
    return [finding.kind for finding in found.findings]


def looked(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], evaluation: Any = ()) -> Examination:
    return examine(images, titles(len(images)), RECIPE, evaluation)


def with_one(image: NDArray[np.uint8], place: int = 7) -> NDArray[np.uint8]:
    return np.insert(CROPS, place, image, 0)


def refusal(found: Examination) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        found.refuse("photos")
    return caught.value


# ---- how many --------------------------------------------------------------------------------------------------------


def test_no_images_at_all_are_bad_input() -> None:
    with pytest.raises(BadInputError, match="there are no calibration images"):
        looked(CROPS[:0])


@pytest.mark.parametrize(
    ("count", "available", "hint"),
    [(31, 31, "--calib DIR"), (1, 31, "--calib DIR"), (10, 50, "--calib-size 50"), (31, 9000, "--calib-size 300")],
)
def test_a_few_images_are_refused_unless_they_are_asked_for(count: int, available: int, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"photos: {count} images are too few to calibrate on; at least 32") as caught:
        check_count("photos", count, available, few=False)
    assert [one.action for one in caught.value.hints] == [hint, "--calib-few"]
    check_count("photos", count, available, few=True)
    check_count("photos", MIN_IMAGES, available, few=False)


# ---- images that are there twice, or show nothing --------------------------------------------------------------------


def test_copies_are_refused_in_pairs() -> None:
    images = CROPS.copy()
    images[30] = images[3]
    images[31] = images[3]
    images[39] = images[0]
    found = looked(images)
    assert kinds(found) == ["duplicates"]
    assert found.findings[0].total == 3
    told = "3 of 40 images are there already, with the same pixels"
    pairs = "image 30 = image 3, image 31 = image 3, image 39 = image 0"
    assert refusal(found).message == f"photos: {told}: {pairs}"


def test_many_are_named_up_to_a_few_and_counted() -> None:
    found = looked(np.concatenate([CROPS, CROPS]))
    (finding,) = found.findings
    assert (finding.total, len(finding.named)) == (40, NAMED)
    assert finding.text.endswith(f"image 44 = image 4, {40 - NAMED} more")


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 128)], ids=str)
def test_an_image_of_one_colour_is_refused(colour: tuple[int, ...]) -> None:
    found = looked(with_one(np.full((32, 32, 3), colour, np.uint8)))
    assert kinds(found) == ["constant"]
    assert refusal(found).message.endswith(
        "1 of 41 images is of one colour, with deviations below one grey level: image 7"
    )


def test_an_image_that_hardly_varies_is_refused_and_one_that_does_in_one_channel_is_not() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, 16:] = 101
    assert kinds(looked(with_one(image))) == ["constant"]
    image[:, 16:, 2] = 103
    assert kinds(looked(with_one(image))) == []


# ---- noise -----------------------------------------------------------------------------------------------------------


def prepared(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return crop(image, dataclasses.replace(RECIPE, input_size=(3, size, size)))


def normal(seed: int, size: int) -> NDArray[np.uint8]:
    return np.clip(np.random.default_rng(seed).normal(128, 40, (size, size, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [16, 17, 31, 64, 224])
@pytest.mark.parametrize("make", [uniform, normal])
def test_noise_is_refused_by_name_wherever_it_is(make: Any, size: int) -> None:
    images = crops(12, max(size, 32))[:, :size, :size]
    found = looked([*images, make(0, size)])
    assert kinds(found) == ["noise"]
    assert found.findings[0].named == ("image 12",)


@pytest.mark.parametrize("quality", [95, 75, 50, 20])
@pytest.mark.parametrize("out", [64, 224])
@pytest.mark.parametrize("size", [32, 64, 224, 400])
def test_a_set_of_noise_that_was_resized_and_compressed_is_refused(size: int, out: int, quality: int) -> None:
    images = [prepared(compressed(uniform(seed, size), quality), out) for seed in range(16)]
    found = looked(images)
    assert kinds(found) == ["noise"]
    assert found.findings[0].total >= 10


@pytest.mark.parametrize("out", [64, 224])
@pytest.mark.parametrize("size", [32, 64, 400])
def test_a_set_of_grey_noise_is_refused(size: int, out: int) -> None:
    assert kinds(looked([prepared(uniform(seed, size, is_grey=True), out) for seed in range(16)])) == ["noise"]


def test_a_single_image_of_enlarged_noise_is_refused_for_its_channels() -> None:
    for size in (32, 64, 128):
        images = np.insert(crops(12, 224), 3, prepared(uniform(size, size), 224), 0)
        assert looked(images).findings[0].named == ("image 3",)


def test_rendered_images_are_no_noise() -> None:
    images = [rendered.render("calib", index)[0] for index in range(1000, 1300)]
    for found in (looked(images), looked([prepared(image, 64) for image in images])):
        assert kinds(found) == []
        assert np.median([Grain.of(image.astype(np.float32) / PIXEL).flat for image in images]) > 2 * FLAT_SET


def test_a_plain_wall_with_the_noise_of_a_camera_is_no_noise() -> None:
    wall = np.random.default_rng(0).normal(120, 6, (32, 32, 3)).astype(np.uint8)
    assert kinds(looked(with_one(wall))) == []


def mesh(size: int) -> list[NDArray[np.uint8]]:
    """Draw stripes, checks, grids and a bent mesh, with the noise of a camera."""
    y, x = np.mgrid[:size, :size]
    bent = (x + y * 0.3 + 3 * np.sin(y / 12)) % 5.3 < 2
    patterns = [x % 2, (x + y) % 2, x // 3 % 2, (x // 3 + y // 3) % 2, (x % 5 == 0) | (y % 5 == 0), bent]
    noise = np.random.default_rng(0).normal(0, 8, (size, size))
    return [np.repeat((pattern * 150 + 50 + noise).astype(np.uint8)[..., None], 3, 2) for pattern in patterns]


@pytest.mark.parametrize("size", [32, 64, 224])
def test_stripes_checks_and_meshes_are_no_noise(size: int) -> None:
    assert kinds(looked(mesh(size))) == []


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(4, 40), st.sampled_from([16, 28, 32, 48, 65]))
def test_distinct_natural_images_pass(seed: int, count: int, size: int) -> None:
    assert kinds(looked(crops(count, size, seed))) == []


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(8, 24), st.data())
def test_one_bad_image_among_natural_ones_is_named(seed: int, count: int, data: st.DataObject) -> None:
    images, place = crops(count, 32, seed), data.draw(st.integers(1, count))
    bad = {
        "duplicates": images[0],
        "constant": np.full((32, 32, 3), data.draw(st.integers(0, 255)), np.uint8),
        "noise": uniform(seed, 32),
    }
    kind = data.draw(st.sampled_from(sorted(bad)))
    (finding,) = looked(np.insert(images, place, bad[kind], 0)).findings
    assert (finding.kind, finding.total) == (kind, 1)
    assert finding.named[0].split(" = ")[0] == f"image {place}"


# ---- overlap, statistics, everything at once -------------------------------------------------------------------------


def test_images_that_are_judged_on_are_refused() -> None:
    evaluation = np.concatenate([crops(5, start=100), CROPS[10:17], crops(3, start=200)])
    found = looked(CROPS, evaluation)
    assert kinds(found) == ["overlap"]
    told = "7 of 40 images are among those that are judged on, whose indices follow: image 10 = 5, image 11 = 6, image 12 = 7"
    assert refusal(found).message.startswith(f"photos: {told}")
    assert refusal(found).message.endswith(", 2 more")
    assert kinds(looked(CROPS, crops(40, start=100))) == []


@pytest.mark.parametrize("recipe", [RECIPE, HALVES, PLAIN])
def test_values_of_0_to_1_in_bytes_are_refused(recipe: Preprocess) -> None:
    found = examine((CROPS > 128).astype(np.uint8), titles(40), recipe)
    assert kinds(found) == ["constant", "statistics"]
    message = refusal(found).message
    assert "channel 0 0.00" in message
    normalized = (found.means[0] - recipe.mean[0]) / recipe.std[0], found.deviations[0] / recipe.std[0]
    assert f"({normalized[0]:.2f} ± {normalized[1]:.2f} once normalized)" in message


@pytest.mark.parametrize(("scale", "offset"), [(0.05, 0), (0.05, 242), (0.05, 120)])
def test_images_without_light_or_contrast_are_refused(scale: float, offset: int) -> None:
    assert "statistics" in kinds(looked((CROPS * scale * 0.4 + offset).astype(np.uint8)))


def test_dark_and_bright_images_pass() -> None:
    dark, bright = (CROPS // 4).astype(np.uint8), (255 - CROPS // 4).astype(np.uint8)
    assert kinds(looked(dark)) == kinds(looked(bright)) == []


def test_statistics_are_those_of_all_pixels() -> None:
    found = looked(CROPS)
    pixels = CROPS.astype(np.float64) / 255
    assert found.count == 40
    assert np.allclose(found.means, pixels.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(found.deviations, pixels.std((0, 1, 2)), atol=1e-6)
    found.refuse("photos")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    images = np.concatenate([CROPS, np.zeros((2, 32, 32, 3), np.uint8), uniform(0, 32)[None]])
    found = looked(images, CROPS[5:6])
    assert kinds(found) == ["constant", "duplicates", "noise", "overlap"]
    error = refusal(found)
    first, *lines = error.message.splitlines()
    assert first == "photos is not fit to calibrate on:"
    assert lines == [f"  {finding.text}" for finding in found.findings]
    assert error.hints == tuple(finding.hint for finding in found.findings)


# ---- prepared inputs -------------------------------------------------------------------------------------------------


def inputs_looked(inputs: NDArray[Any], recipe: Preprocess = RECIPE, evaluation: Any = ()) -> Examination:
    return examine_inputs(np.asarray(inputs, np.float32), titles(len(inputs)), recipe, evaluation)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    inputs = normalize(CROPS, RECIPE)
    inputs[3, 1, 2, 2] = inputs[17, 0, 0, 0] = value
    found = inputs_looked(inputs)
    assert kinds(found) == ["not finite"]
    assert refusal(found).message == "photos: 2 of 40 images are not finite (NaN or infinity): image 3, image 17"


@pytest.mark.parametrize(
    ("inputs", "recipe", "guess"),
    [
        (CROPS.transpose(0, 3, 1, 2), RECIPE, "pixels 0..255"),
        (CROPS.transpose(0, 3, 1, 2), HALVES, "pixels 0..255"),
        (CROPS.transpose(0, 3, 1, 2), PLAIN, "pixels 0..255"),
        (normalize(CROPS, PLAIN), RECIPE, "pixels 0..1 that were not normalized"),
        (normalize(CROPS, PLAIN), HALVES, "pixels 0..1 that were not normalized"),
        (normalize(CROPS, HALVES), RECIPE, "pixels scaled to -1..1"),
        (normalize(CROPS, HALVES), PLAIN, ""),
        (normalize(CROPS, RECIPE), HALVES, ""),
        (normalize(CROPS, RECIPE) / np.float32(0.225) - np.float32(2), RECIPE, ""),
    ],
    ids=str,
)
def test_inputs_that_were_prepared_otherwise_are_refused(
    inputs: NDArray[np.float32], recipe: Preprocess, guess: str
) -> None:
    found = inputs_looked(inputs, recipe)
    assert kinds(found) == ["range"]
    message = refusal(found).message
    assert f"values from {inputs.min():.3g} to {inputs.max():.3g} are not what this model's mean" in message
    assert guess in message
    assert ("they look like" in message) == bool(guess)


@pytest.mark.parametrize("recipe", [RECIPE, HALVES, PLAIN])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_inputs_drawn_at_random_are_refused(recipe: Preprocess, scale: float) -> None:
    drawn = np.random.default_rng(0).normal(0, scale, (40, 3, 32, 32))
    found = inputs_looked(drawn.astype(np.float32), recipe)
    assert kinds(found) in (["range"], ["noise"])
    assert found.findings[0].total > 35


@pytest.mark.parametrize("recipe", [RECIPE, HALVES, PLAIN])
def test_normalized_images_pass_and_are_seen_as_crops(recipe: Preprocess) -> None:
    inputs = normalize(CROPS, recipe)
    assert all(np.array_equal(to_crop(one, recipe), image) for one, image in zip(inputs, CROPS, strict=True))
    assert inputs_looked(inputs, recipe) == examine(CROPS, titles(40), recipe)
    assert kinds(inputs_looked(np.concatenate([inputs, inputs[:1]]), recipe)) == ["duplicates"]
    assert kinds(inputs_looked(inputs, recipe, CROPS[:3])) == ["overlap"]


def test_what_interpolation_overshoots_passes() -> None:
    inputs = normalize(CROPS, RECIPE)
    inputs[0, :, 5, 5] = (1.1 - np.asarray(RECIPE.mean)) / np.asarray(RECIPE.std)
    inputs[1, :, 5, 5] = (-0.1 - np.asarray(RECIPE.mean)) / np.asarray(RECIPE.std)
    assert kinds(inputs_looked(inputs)) == []


# ---- grain -----------------------------------------------------------------------------------------------------------


def test_what_is_too_small_or_constant_shows_the_opposite_of_noise() -> None:
    for image in (uniform(0, 7), np.zeros((32, 32, 3), np.uint8)):
        grain = Grain.of(image.astype(np.float32) / PIXEL)
        assert not grain.is_noise
        assert not grain.is_flat


def test_the_shares_of_noise_are_one() -> None:
    grains = [Grain.of(uniform(seed, 64).astype(np.float32) / PIXEL) for seed in range(50)]
    assert (
        abs(np.mean([grain.flat for grain in grains]) - 15 / 16) < 0.1
    )  # a grid of 16 has 15/16 of the variance about its mean
    assert abs(np.mean([grain.fine for grain in grains]) - 1) < 0.01
    assert np.mean([grain.hue for grain in grains]) < 0.1


def test_natural_images_are_as_photographs_are() -> None:
    grains = [Grain.of(natural(seed, 64).astype(np.float32) / PIXEL) for seed in range(50)]
    assert 5 < np.median([grain.flat for grain in grains]) < 14
    assert min(grain.fine for grain in grains) > 2.6


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grain_is_measured_whatever_the_number_of_channels(channels: int) -> None:
    noise = np.random.default_rng(0).random((40, 56, channels), np.float32)
    assert Grain.of(noise).is_noise
    assert not Grain.of(np.cumsum(np.cumsum(noise - 0.5, 0), 1)).is_noise
