from __future__ import annotations

import dataclasses
import os
import re
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
    FileSet,
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


def opened(root: Path, labels: tuple[str, ...] = LABELS) -> FileSet:
    found = open_imageset(str(root), labels)
    assert isinstance(found, FileSet)
    return found


def test_files_are_named_counted_and_decoded_in_order(tmp_path: Path) -> None:
    found = opened(fill(tmp_path, NAMES))
    assert (found.name, len(found), found.labels) == (str(tmp_path), 4, (0, 0, 1, 2))
    for index, name in enumerate(sorted(NAMES)):
        assert found.title(index) == str(tmp_path / name)
        assert np.array_equal(found.image(index), picture(NAMES.index(name)))


@pytest.mark.parametrize("name", ["nowhere", "file.png", "list.txt", "nowhere.csv", ":", "", "a\0b"])
def test_what_is_no_set_is_refused_by_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.png").touch()
    (tmp_path / "list.txt").write_text("image,label\nfile.png,cat\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_imageset(name, LABELS)
    assert (name or "file.png") in caught.value.message


def test_a_folder_of_any_name_is_a_folder(tmp_path: Path) -> None:
    assert len(opened(fill(tmp_path / "val.csv", NAMES))) == 4


def test_the_digest_knows_bytes_and_labels_and_nothing_else(tmp_path: Path) -> None:
    before = opened(fill(tmp_path, NAMES)).digest
    path = tmp_path / "cat/a.png"
    os.utime(path, (1, 1))
    assert opened(tmp_path).digest == before
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert opened(tmp_path).digest != before
    path.write_bytes(data)
    assert opened(tmp_path).digest == before
    assert opened(tmp_path, ("dog", "cat", "eel")).digest != before
    path.unlink()
    assert opened(tmp_path).digest != before


def test_the_digest_does_not_know_what_folders_and_lists_are_called(tmp_path: Path) -> None:
    labels = ("tench, Tinca tinca (n01440764)", "goldfish, Carassius auratus (n01443537)")
    one = opened(fill(tmp_path / "one", ["tench/a.png", "tench/b.png", "goldfish/a.png"]), labels)
    two = opened(fill(tmp_path / "two", ["n01440764/a.png", "n01440764/b.png", "n01443537/a.png"]), labels)
    rows = [f"{path.relative_to(tmp_path)},{label}\n" for path, label in zip(one.paths, one.labels, strict=True)]
    for name, lines in (("same.csv", rows), ("turned.csv", rows[::-1])):
        (tmp_path / name).write_text("".join(["path,class\n", *lines]), encoding="utf-8")
    assert opened(tmp_path / "same.csv", labels).digest == one.digest == two.digest
    assert opened(tmp_path / "turned.csv", labels).digest != one.digest


def test_a_file_that_is_gone_when_it_is_hashed_is_bad_input(tmp_path: Path) -> None:
    found = opened(fill(tmp_path, NAMES))
    for name in NAMES[:2]:
        (tmp_path / name).unlink()
    with pytest.raises(BadInputError) as caught:
        _ = found.digest
    assert "has 2 faults:" in caught.value.message
    for name in NAMES[:2]:
        assert f"{tmp_path / name} can't be read: No such file" in caught.value.message


def test_one_broken_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    (tmp_path / "dog/z.png").write_bytes(b"no image")
    with pytest.raises(BadInputError, match=rf"^{re.escape(str(tmp_path))}: .*z\.png is no image"):
        prepare_crops(opened(tmp_path), RECIPE)


def test_all_broken_images_are_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, *(f"eel/{index:02}.png" for index in range(12))])
    for index in range(12):
        (tmp_path / f"eel/{index:02}.png").write_bytes(b"no image")
    (tmp_path / "cat/a.png").write_bytes(b"")
    with pytest.raises(BadInputError) as caught:
        prepare_crops(opened(tmp_path), RECIPE)
    first, *lines, last = caught.value.message.splitlines()
    assert first == f"{tmp_path} has 13 faults:"
    assert [line.split()[0] for line in lines] == [
        str(tmp_path / name) for name in ("cat/a.png", *(f"eel/{index:02}.png" for index in range(9)))
    ]
    assert last == "  and 3 more"


def test_an_image_too_narrow_to_crop_is_named_among_the_others(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    Image.new("L", (1, 2_000_000)).save(tmp_path / "cat/line.png")
    with pytest.raises(BadInputError, match=r"line\.png: 1x2000000 pixels are too narrow"):
        prepare_crops(opened(tmp_path), RECIPE)


def test_a_request_that_fits_no_image_is_told_once(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, interpolation="nonsense")
    with pytest.raises(UsageError, match="unknown preprocessing 'nonsense'"):
        prepare_crops(opened(fill(tmp_path, NAMES)), recipe)


@pytest.mark.parametrize("split", rendered.SPLITS)
def test_the_rendered_set_is_what_renders(split: str) -> None:
    found = open_imageset(f"rendered:{split}", tuple(rendered.CLASSES), 3)
    assert isinstance(found, RenderedSet)
    assert (len(found), found.name, found.title(2)) == (3, f"rendered:{split}", f"rendered:{split} 2")
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
    images = opened(fill(tmp_path, NAMES))
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
