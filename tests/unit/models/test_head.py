"""The size of the head, the labels and the preprocessing: where each comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError, UsageError
from deploykit.models import head
from deploykit.models.original import SourceOptions

CONFIG = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def _recipe(config: dict[str, Any] | None = None, **options: Any) -> Preprocess:
    return head.preprocess_of({**CONFIG, **(config or {})}, SourceOptions(**options))


# Classes


def test_fewer_classes_than_none_are_refused() -> None:
    with pytest.raises(UsageError, match="--num-classes -1"):
        head.class_count(SourceOptions(num_classes=-1), None, "fc", 1000)


@pytest.mark.parametrize(
    ("asked", "names", "classifier", "classes"),
    [
        (7, {"fc": 10}, "fc", 7),
        (0, {"fc": 10}, "fc", 0),
        (7, None, "fc", 7),
        (None, {"fc": 10, "conv": 99}, "fc", 10),
        (None, {"head": 10, "head_dist": 10}, ("head", "head_dist"), 10),
        (None, {"head_dist": 10}, ["head", "head_dist"], 10),
        (None, {"conv": 99}, "fc", 0),
        (None, {"conv": 99}, None, 1000),
        (None, {"conv": 99}, (), 1000),
        (None, None, "fc", 1000),
        (None, None, None, 0),
    ],
)
def test_classes_are_as_asked_else_the_checkpoints_else_the_usual(
    asked: int | None, names: dict[str, int] | None, classifier: object, classes: int
) -> None:
    state = None if names is None else {f"{name}.weight": torch.zeros(size, 4) for name, size in names.items()}
    usual = 1000 if classes or state else 0
    assert head.class_count(SourceOptions(num_classes=asked), state, classifier, usual) == classes


# Labels


def _labels(path: Path, content: bytes, classes: int = 3) -> tuple[str, ...]:
    path.write_bytes(content)
    return head.labels_of(SourceOptions(labels=str(path)), classes)


@pytest.mark.parametrize(("name", "told"), [("none.txt", "does not exist"), (".", "is a folder")])
def test_labels_that_do_not_exist_are_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError, match=rf"{told} \(given as --labels\)"):
        head.labels_of(SourceOptions(labels=str(tmp_path / name)), 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\n", "names 2 classes; the model has 3"),
        (b"a\nb\nc\nd", "names 4 classes; the model has 3"),
        (b"\n \n", "names 0 classes; the model has 3"),
        (b"", "names 0 classes; the model has 3"),
        (b"cat\ndog\ncat", "names 'cat' more than once"),
    ],
)
def test_labels_of_another_number_or_twice_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _labels(tmp_path / "labels.txt", content)


@pytest.mark.parametrize("content", [b"cat\n\xff\xfe\nc", "cät\nb\nc".encode("latin-1"), "a\nb\nc".encode("utf-16")])
def test_labels_that_are_no_utf8_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInputError, match="is no UTF-8 text"):
        _labels(tmp_path / "labels.txt", content)


def test_labels_are_read_without_blank_lines_and_edges(tmp_path: Path) -> None:
    assert _labels(tmp_path / "labels.txt", "\n  chat noir \r\n\n\tžába\n犬\n\n".encode()) == (
        "chat noir",
        "žába",
        "犬",
    )


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert _labels(tmp_path / "labels.txt", "\ufeffcat\ndog\nbird".encode()) == ("cat", "dog", "bird")


@pytest.mark.parametrize("classes", [1, 2, 10, 999, 1001])
def test_classes_without_names_are_numbered(classes: int) -> None:
    labels = head.labels_of(SourceOptions(), classes)
    assert labels == tuple(f"class {index}" for index in range(classes))


def test_a_thousand_classes_are_those_of_imagenet() -> None:
    labels = head.labels_of(SourceOptions(), 1000)
    assert len(set(labels)) == 1000, "ImageNet has two classes 'crane' and two 'maillot': the number tells them apart"
    assert labels[0] == "tench, Tinca tinca (n01440764)"
    assert labels[999].endswith("(n15075141)")


# Preprocessing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 0.0}, "crop_pct must be in"),
        ({"crop_pct": -0.5}, "crop_pct must be in"),
        ({"crop_pct": 1.01}, "crop_pct must be in"),
        ({"crop_pct": float("nan")}, "crop_pct must be in"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"std": (0.5, -1.0, 0.5)}, "std above 0"),
        ({"std": (0.5, 0.5, float("nan"))}, "mean and std are 3 finite numbers"),
        ({"std": (0.5, 0.5, float("inf"))}, "mean and std are 3 finite numbers"),
        ({"std": (0.5,)}, "mean and std are 3 finite numbers"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean and std are 3 finite numbers"),
        ({"mean": (0.5, 0.5, 0.5, 0.5)}, "mean and std are 3 finite numbers"),
        ({"image_size": 0}, "--image-size 0"),
        ({"image_size": -8}, "--image-size -8"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"interpolation": "Bicubic"}, "one of nearest, bilinear, bicubic, lanczos"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _recipe(**options)


@pytest.mark.parametrize("mode", ["stretch", "Center"])
def test_a_crop_mode_of_a_model_that_is_not_known_is_refused(mode: str) -> None:
    with pytest.raises(UsageError, match=f"crop mode '{mode}' isn't supported"):
        _recipe({"crop_mode": mode})


def test_preprocessing_is_timms() -> None:
    assert _recipe() == Preprocess(**CONFIG)  # type: ignore[arg-type]


def test_the_test_configuration_is_taken_where_there_is_one() -> None:
    recipe = _recipe({"test_input_size": (3, 288, 288), "test_crop_pct": 1.0})
    assert (recipe.input_size, recipe.crop_pct) == ((3, 288, 288), 1.0)


@given(
    size=st.none() | st.integers(1, 600),
    crop=st.none() | st.floats(0.01, 1),
    interpolation=st.sampled_from([None, *head.INTERPOLATIONS]),
    mean=st.none() | st.tuples(*[st.floats(-1, 1)] * 3),
    std=st.none() | st.tuples(*[st.floats(0.01, 2)] * 3),
)
def test_what_is_asked_for_is_taken_and_the_rest_stays(
    size: int | None,
    crop: float | None,
    interpolation: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> None:
    recipe = _recipe(image_size=size, crop_pct=crop, interpolation=interpolation, mean=mean, std=std)
    assert recipe.input_size == (3, size or 224, size or 224)
    assert recipe.crop_pct == (crop or 0.875)
    assert recipe.interpolation == (interpolation or "bicubic")
    assert recipe.mean == (mean or CONFIG["mean"])
    assert recipe.std == (std or CONFIG["std"])


def test_sample_images_are_prepared_and_always_the_same() -> None:
    recipe = _recipe(image_size=48)
    images = head.sample_images(recipe)
    assert (images.shape, images.dtype) == ((head.SAMPLE, 3, 48, 48), torch.float32)
    assert torch.equal(images, head.sample_images(recipe))
    assert float(images.std()) > 0.2
