from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploykit.artifact import Preprocess
from deploykit.data import rendered
from deploykit.data.imageset import (
    NATIVE_SIZE,
    REPORT_EVERY,
    FolderSet,
    RenderedSet,
    open_imageset,
    prepare_crops,
    rendered_images,
)
from deploykit.data.preprocess import crop
from deploykit.errors import BadInputError, UsageError

LABELS = ("cat", "dog", "eel")
RECIPE = Preprocess((3, 16, 16), "bilinear", 0.875, "center", (0.5,) * 3, (0.5,) * 3)


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


def fill(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(root / name)
    return root


NAMES = ["eel/a.png", "cat/b.png", "cat/a.png", "dog/z.png"]


def test_folders_are_mapped_to_classes_by_name_and_not_by_order(tmp_path: Path) -> None:
    found = FolderSet(fill(tmp_path, NAMES), LABELS)
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths] == sorted(NAMES)
    assert found.labels == (0, 0, 1, 2)
    assert FolderSet(tmp_path, LABELS[::-1]).labels == (2, 2, 1, 0)
    for index, name in enumerate(sorted(NAMES)):
        assert np.array_equal(found.image(index), picture(NAMES.index(name)))
    assert len(found) == len(NAMES)


def test_the_order_does_not_depend_on_when_files_were_written(tmp_path: Path) -> None:
    one = FolderSet(fill(tmp_path / "one", NAMES), LABELS)
    two = tmp_path / "two"
    for name in reversed(NAMES):
        (two / name).parent.mkdir(parents=True, exist_ok=True)
        (two / name).write_bytes((tmp_path / "one" / name).read_bytes())
    assert FolderSet(two, LABELS).digest == one.digest


def test_a_class_may_be_absent(tmp_path: Path) -> None:
    assert FolderSet(fill(tmp_path, ["eel/a.png"]), LABELS).labels == (2,)


def test_a_folder_that_is_no_class_is_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, "kitten/a.png"])
    with pytest.raises(UsageError, match="folder 'kitten' is no class of this model; its classes: cat, dog, eel"):
        FolderSet(tmp_path, LABELS)


def test_hidden_folders_and_other_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, ".thumbs/a.png"])
    (tmp_path / "cat/notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "readme.md").write_text("no image", encoding="utf-8")
    assert len(FolderSet(tmp_path, LABELS)) == len(NAMES)


def test_no_images_at_all_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no images"):
        FolderSet(tmp_path, LABELS)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/notes.txt").touch()
    with pytest.raises(BadInputError, match="holds no images"):
        FolderSet(tmp_path, LABELS)


@pytest.mark.parametrize("name", ["nowhere", "file.png", "rendered:", ":", ""])
def test_what_is_no_folder_is_refused_by_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, BadInputError)):
        open_imageset(name, LABELS)


def test_the_digest_knows_bytes_and_labels_and_nothing_else(tmp_path: Path) -> None:
    before = FolderSet(fill(tmp_path, NAMES), LABELS).digest
    path = tmp_path / "cat/a.png"
    os.utime(path, (1, 1))
    assert FolderSet(tmp_path, LABELS).digest == before
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert FolderSet(tmp_path, LABELS).digest != before
    path.write_bytes(data)
    assert FolderSet(tmp_path, LABELS).digest == before
    assert FolderSet(tmp_path, ("dog", "cat", "eel")).digest != before
    path.unlink()
    assert FolderSet(tmp_path, LABELS).digest != before


def test_a_broken_image_is_bad_input_when_it_is_read(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    (tmp_path / "dog/z.png").write_bytes(b"no image")
    with pytest.raises(BadInputError, match=r"z\.png"):
        prepare_crops(FolderSet(tmp_path, LABELS), RECIPE)


@pytest.mark.parametrize("split", rendered.SPLITS)
def test_the_rendered_set_is_what_renders(split: str) -> None:
    found = open_imageset(f"rendered:{split}", tuple(rendered.CLASSES), 3)
    assert isinstance(found, RenderedSet)
    assert (len(found), found.name) == (3, f"rendered:{split}")
    for index in range(3):
        image, label = rendered.render(split, index)
        assert np.array_equal(found.image(index), image)
        assert found.labels[index] == label


def test_the_digest_of_a_rendered_set_knows_split_count_and_size() -> None:
    kinds = [(split, count, size) for split in rendered.SPLITS for count in (0, 1, 2) for size in (80, 96)]
    assert len({RenderedSet(*kind).digest for kind in kinds}) == len(kinds)
    assert RenderedSet("test", 2, 80).digest == RenderedSet("test", 2, 80).digest


def test_images_are_rendered_at_the_size_that_is_asked_for() -> None:
    assert rendered_images("rendered:calib", 1, 96).image(0).shape == (96, 96, 3)
    assert rendered_images("rendered:calib", 1).image(0).shape == (NATIVE_SIZE, NATIVE_SIZE, 3)


@pytest.mark.parametrize("labels", [(), LABELS, tuple(rendered.CLASSES)[::-1], (*rendered.CLASSES, "more")], ids=len)
def test_labels_of_another_model_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="the rendered set shows"):
        open_imageset("rendered:test", labels, 1)


def test_a_rendered_set_needs_a_known_split_and_a_count() -> None:
    with pytest.raises(UsageError, match="has the splits train, calib, test"):
        open_imageset("rendered:validation", tuple(rendered.CLASSES), 3)
    with pytest.raises(UsageError, match="say how many"):
        open_imageset("rendered:test", tuple(rendered.CLASSES))


def test_crops_are_those_of_each_image(tmp_path: Path) -> None:
    images = FolderSet(fill(tmp_path, NAMES), LABELS)
    into = np.full((4, 16, 16, 3), 7, np.uint8)
    crops = prepare_crops(images, RECIPE)
    assert prepare_crops(images, RECIPE, into) is into
    assert np.array_equal(crops, into)
    for index in range(4):
        assert np.array_equal(crops[index], crop(images.image(index), RECIPE))


def test_no_images_make_no_crops() -> None:
    assert prepare_crops(RenderedSet("test", 0, 80), RECIPE).shape == (0, 16, 16, 3)


def test_progress_never_claims_more_than_there_is() -> None:
    seen: list[tuple[int, int]] = []
    count = REPORT_EVERY + 2
    prepare_crops(RenderedSet("test", count, 80), RECIPE, None, lambda *step: seen.append(step))
    assert seen == [(0, count), (REPORT_EVERY, count)]
