from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploykit.data import rendered

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rendered_v1.npz"


def render_many(split: str, count: int, size: int = 80) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pairs = [rendered.render(split, index, size) for index in range(count)]
    return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "Train", "validation", "0"])
def test_unknown_split_is_named_with_the_choices(split: str) -> None:
    with pytest.raises(ValueError, match=f"unknown split '{split}'; choose one of train, calib, test"):
        rendered.render(split, 0)


@pytest.mark.parametrize("index", [-1, 2**31, 2**40])
def test_index_out_of_range_is_named(index: int) -> None:
    with pytest.raises(ValueError, match=f"index {index} is out of range"):
        rendered.render("test", index)


@pytest.mark.parametrize("size", [-80, 0, 15, 1025])
def test_size_out_of_range_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"size {size} is out of range; it must be from 16 to 1024"):
        rendered.render("test", 0, size)


@pytest.mark.parametrize("arguments", [(1.5, 80), (0, 80.0), ("0", 80)])
def test_only_whole_numbers_are_taken(arguments: tuple[object, object]) -> None:
    with pytest.raises(TypeError):
        rendered.render("test", *arguments)  # type: ignore[arg-type]


# ---- what is promised ------------------------------------------------------------------------------------------------


def test_names_are_distinct() -> None:
    assert len(set(rendered.CLASSES)) == len(rendered.CLASSES) >= 10
    assert rendered.SPLITS == ("train", "calib", "test")


@pytest.mark.parametrize("size", [16, 64, 80, 97])
def test_image_has_the_size_asked_for(size: int) -> None:
    image, label = rendered.render("calib", 7, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert isinstance(label, int)
    assert 0 <= label < len(rendered.CLASSES)


def test_default_size_is_80() -> None:
    assert np.array_equal(rendered.render("test", 3)[0], rendered.render("test", 3, 80)[0])


def test_largest_index_renders() -> None:
    assert rendered.render("test", 2**31 - 1)[0].std() > 0


def test_order_of_calls_does_not_matter() -> None:
    forwards = {index: rendered.render("test", index) for index in range(30)}
    for index in reversed(range(30)):
        rendered.render("train", index, 32)
        image, label = rendered.render("test", index)
        assert label == forwards[index][1]
        assert np.array_equal(image, forwards[index][0])


def test_caller_may_write_into_an_image() -> None:
    first = rendered.render("test", 5)[0]
    first[:] = 0
    assert rendered.render("test", 5)[0].any()


def test_splits_differ() -> None:
    sets = {split: render_many(split, 48) for split in rendered.SPLITS}
    for one, other in itertools.combinations(rendered.SPLITS, 2):
        assert not np.array_equal(sets[one][1], sets[other][1])
        distances = np.abs(sets[one][0].astype(np.int16) - sets[other][0]).mean(axis=(1, 2, 3))
        assert distances.min() > 1.0


def test_no_two_images_are_equal() -> None:
    images, _ = render_many("train", 300, 32)
    assert len({image.tobytes() for image in images}) == len(images)


def test_labels_are_balanced() -> None:
    classes, count = len(rendered.CLASSES), 1200
    labels = [rendered.render("train", index, 16)[1] for index in range(count)]
    expected = count / classes
    chi_square = float(((np.bincount(labels, minlength=classes) - expected) ** 2 / expected).sum())
    assert chi_square < 25.0  # 0.99 quantile of 11 degrees of freedom


def test_labels_come_in_no_fixed_order() -> None:
    classes = len(rendered.CLASSES)
    labels = np.array([rendered.render("test", index, 16)[1] for index in range(classes * 50)]).reshape(50, classes)
    assert len({tuple(block) for block in labels.tolist()}) == 50
    for position in labels.T:
        assert len(set(position.tolist())) > classes // 2


# ---- what it looks like ----------------------------------------------------------------------------------------------


def test_pixels_are_varied_and_seldom_clipped() -> None:
    images, _ = render_many("test", 200)
    spread = images.std(axis=(1, 2))
    assert spread.max(axis=1).min() > 1.0
    assert 70 < images.mean() < 160
    assert np.mean((images == 0) | (images == 255)) < 0.15
    assert images.mean(axis=(1, 2)).std(axis=0).min() > 20


def test_same_index_at_another_size_is_the_same_scene() -> None:
    for index in range(24):
        small, label = rendered.render("test", index, 40)
        large, same_label = rendered.render("test", index, 80)
        pooled = large.reshape(40, 2, 40, 2, 3).mean(axis=(1, 3))
        assert label == same_label
        # Noise differs; what is left after pooling both further must not.
        gap = np.abs(
            pooled.reshape(10, 4, 10, 4, 3).mean(axis=(1, 3)) - small.reshape(10, 4, 10, 4, 3).mean(axis=(1, 3))
        )
        assert gap.mean() < 4.0


def test_every_class_is_rendered_inside_the_part_a_centre_crop_keeps() -> None:
    """Averaged over many images, the border is smoother than the middle, where the objects are."""
    images, _ = render_many("train", 400, 64)
    grey = images.astype(np.float32).mean(axis=3)
    variation = np.abs(grey - grey.mean(axis=(1, 2), keepdims=True)).mean(axis=0)
    assert variation[24:40, 24:40].mean() > 1.1 * np.concatenate([variation[:4], variation[-4:]]).mean()


def test_pixels_have_not_changed_since_this_version() -> None:
    """Machines may round differently, so two grey levels are allowed; a real change must bump VERSION."""
    assert rendered.VERSION == 1
    golden = np.load(GOLDEN)
    rows = zip(golden["splits"], golden["indices"], golden["labels"], golden["thumbnails"], strict=True)
    for split, index, label, thumbnail in rows:
        image, found_label = rendered.render(str(split), int(index))
        assert found_label == label
        assert np.abs(image[::4, ::4].astype(np.int16) - thumbnail).max() <= 2
