from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from deploykit.artifact import Preprocess
from deploykit.data.preprocess import CROP_MODES, crop, normalize, prepare, stretched
from deploykit.errors import BadInputError, UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(64, 64), (101, 77), (77, 101), (57, 200), (201, 58), (32, 33), (37, 37), (41, 37)]
SMALL = [(20, 31), (9, 9), (31, 7), (1, 1), (1, 5)]


def recipe(side: int = 37, interpolation: str = "bicubic", share: float = 0.875, mode: str = "center") -> Preprocess:
    return Preprocess((3, side, side), interpolation, share, mode, MEAN, STD)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def by_timm(image: NDArray[np.uint8], how: Preprocess) -> NDArray[np.float32]:
    from timm.data import create_transform

    transform = create_transform(
        how.input_size,
        is_training=False,
        interpolation=how.interpolation,
        crop_pct=how.crop_pct,
        crop_mode=how.crop_mode,
        mean=how.mean,
        std=how.std,
    )
    found: NDArray[np.float32] = transform(Image.fromarray(image)).numpy()
    return found


@pytest.mark.parametrize(("height", "width"), SIZES + SMALL)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize(("side", "share"), [(32, 0.875), (37, 0.95), (48, 1.0)])
def test_inputs_are_bit_for_bit_those_of_the_test_transform(
    height: int, width: int, interpolation: str, side: int, share: float
) -> None:
    how = recipe(side, interpolation, share)
    image = picture(height, width)
    found = prepare([image], how)
    assert found.dtype == np.float32
    assert found.shape == (1, 3, side, side)
    assert found[0].tobytes() == by_timm(image, how).tobytes()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(8, 40),
    st.sampled_from([0.8, 0.875, 0.9, 0.95, 0.96, 1.0]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(sorted(CROP_MODES)),
)
def test_any_size_equals_the_test_transform(
    height: int, width: int, side: int, share: float, interpolation: str, mode: str
) -> None:
    assume(mode != "border" or max(height, width) < side * min(height, width))  # else nothing is left to resize
    how = recipe(side, interpolation, share, mode)
    image = picture(height, width)
    assert np.array_equal(prepare([image], how)[0], by_timm(image, how))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40), st.sampled_from(sorted(CROP_MODES))
)
def test_inputs_that_are_not_square_equal_the_test_transform(
    height: int, width: int, tall: int, wide: int, mode: str
) -> None:
    assume(mode != "border" or max(height, width) < min(tall, wide) * min(height, width))
    how = Preprocess((3, tall, wide), "bicubic", 0.9, mode, MEAN, STD)
    image = picture(height, width)
    assert np.array_equal(prepare([image], how)[0], by_timm(image, how))


def test_an_image_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(BadInputError, match="1x200 pixels are too narrow: resized to 0x9"):
        crop(picture(200, 1), recipe(8, mode="border"))


def test_the_crop_is_uint8_and_centred() -> None:
    image = np.zeros((100, 60, 3), np.uint8)
    image[:, 29:31] = 255
    found = crop(image, recipe(30, "nearest", 0.5))
    assert found.dtype == np.uint8
    assert found.shape == (30, 30, 3)
    assert sorted(set(np.flatnonzero(found[15, :, 0]))) == [14, 15]


@pytest.mark.parametrize(
    ("interpolation", "mode"), [("random", "center"), ("box", "center"), ("", "center"), ("bicubic", "stretch")]
)
def test_an_unknown_recipe_is_refused_by_name(interpolation: str, mode: str) -> None:
    how = dataclasses.replace(recipe(), interpolation=interpolation, crop_mode=mode)
    with pytest.raises(UsageError, match=f"unknown preprocessing {interpolation!r} / {mode!r}"):
        crop(picture(40, 40), how)


@given(st.lists(st.integers(0, 255), min_size=12, max_size=12))
def test_normalizing_is_float32_arithmetic_per_channel(values: list[int]) -> None:
    crops = np.asarray(values, np.uint8).reshape(1, 2, 2, 3)
    found = normalize(crops, recipe())
    for channel in range(3):
        exact = (crops[0, :, :, channel] / 255 - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(found[0, channel], exact, rtol=0, atol=1e-6)
    assert found.flags["C_CONTIGUOUS"]


def test_several_images_of_different_size_become_one_batch() -> None:
    images = [picture(*size) for size in SIZES[:4]]
    found = prepare(images, recipe(32))
    for index, image in enumerate(images):
        assert np.array_equal(found[index], prepare([image], recipe(32))[0])


def test_an_image_too_narrow_to_resize_is_refused_before_it_is_tried() -> None:
    """One pixel by a million would be resized to 73 by 73 million."""
    for shape in ((1_000_000, 1, 3), (1, 1_000_000, 3)):
        with pytest.raises(BadInputError, match=rf"{shape[1]}x{shape[0]} pixels are too narrow"):
            crop(np.zeros(shape, np.uint8), recipe(64))


def test_grey_is_what_pillow_makes_of_the_colours_before_anything_is_resized() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    recipe = Preprocess((1, 24, 24), "bicubic", 0.875, "center", (0.4,), (0.2,))
    grey = Image.fromarray(image).convert("L").resize((40, 27), Image.Resampling.BICUBIC)
    assert recipe.resized == (27, 27)
    expected = np.asarray(grey)[2:26, 8:32]
    found = crop(image, recipe)
    assert found.shape == (24, 24, 1)
    np.testing.assert_array_equal(found[..., 0], expected)
    rows = prepare([image, image], recipe)
    assert rows.shape == (2, 1, 24, 24)
    np.testing.assert_allclose(rows[0, 0], (expected / 255 - 0.4) / 0.2, atol=1e-6)
    assert stretched(found[None], 12, 18).shape == (1, 12, 18, 1)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_no_image_has_are_refused_with_the_way_on(channels: int) -> None:
    recipe = Preprocess((channels, 24, 24), "bicubic", 0.875, "center", (0.0,) * channels, (1.0,) * channels)
    with pytest.raises(UsageError, match=f"{channels} channels: images have 1 or 3") as caught:
        crop(np.zeros((40, 60, 3), np.uint8), recipe)
    assert caught.value.hints[0].action == "--golden FILE.npz"


def test_no_image_costs_the_time_to_look_up_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(name: str) -> str:
        raise AssertionError(f"the version of {name} was looked up")

    monkeypatch.setattr("deploykit.optional.metadata.version", looked_up)
    crop(picture(40, 40), recipe(32))
