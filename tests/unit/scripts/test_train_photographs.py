"""Training on photographs: which archives are taken, what is cut out of images, and what comes of a short run."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripts import train_photographs
from scripts.train_photographs import PHOTOGRAPHS, Photographs, mirrored_crops, read, train_network, unpack, weights_of

from deploykit.models import sources
from deploykit.models.original import SourceOptions

CLASSES = ("dark", "light")


def _archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _photograph(level: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(level, level + 60, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def _split(split: str, count: int, classes: tuple[str, ...] = CLASSES) -> dict[str, bytes]:
    levels = dict(zip(classes, (20, 160), strict=False))
    return {
        f"{split}/{name}/{index:04}.jpg": _photograph(level, index)
        for name, level in levels.items()
        for index in range(count)
    }


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python's tarfile has no filters; that of 3.11.4 and newer has")
    folder = tmp_path / "archives"
    folder.mkdir()
    for split, count in (("train", 12), ("test", 4)):
        _archive(folder / f"{split}.tar.gz", _split(split, count))
    return folder


def _outside() -> tarfile.TarInfo:
    return tarfile.TarInfo("test/../../outside.jpg")


def _link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("test/dark/link.jpg")
    info.type, info.linkname = tarfile.SYMTYPE, "../../../outside.jpg"
    return info


def _device() -> tarfile.TarInfo:
    info = tarfile.TarInfo("test/dark/device.jpg")
    info.type = tarfile.CHRTYPE
    return info


@pytest.mark.parametrize("entry", [_outside(), _link(), _device()], ids=lambda entry: entry.name)
def test_an_archive_that_leads_outside_or_holds_no_plain_file_is_refused(
    tmp_path: Path, archives: Path, entry: tarfile.TarInfo
) -> None:
    with tarfile.open(archives / "test.tar.gz", "w:gz") as archive:
        archive.addfile(entry)
    with pytest.raises(tarfile.FilterError):
        unpack(archives, tmp_path / "deep" / "scratch")
    assert [path.name for path in (tmp_path / "deep").rglob("*")].count("outside.jpg") == 0
    assert not (tmp_path / "deep" / "scratch" / "test").exists()


def test_a_missing_archive_is_told(tmp_path: Path, archives: Path) -> None:
    (archives / "test.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.tar\.gz"):
        unpack(archives, tmp_path / "scratch")


def test_splits_of_different_classes_are_refused(tmp_path: Path, archives: Path) -> None:
    _archive(archives / "test.tar.gz", _split("test", 1, ("dark", "other")))
    with pytest.raises(ValueError, match=r"train shows .*'light'.*, test .*'other'"):
        unpack(archives, tmp_path / "scratch")


def test_unpacking_is_done_once_and_leaves_nothing_else(tmp_path: Path, archives: Path) -> None:
    scratch = tmp_path / "scratch"
    photographs = unpack(archives, scratch)
    (archives / "train.tar.gz").unlink()
    assert unpack(archives, scratch) == photographs == Photographs(scratch, CLASSES)
    assert sorted(path.name for path in scratch.iterdir()) == ["test", "train"]


def test_images_are_read_class_by_class(tmp_path: Path, archives: Path) -> None:
    found = read(unpack(archives, tmp_path / "scratch"), "test", 48)
    assert found.images.shape == (8, 48, 48, 3)
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert found.images[:4].mean() < 100 < found.images[4:].mean()


@given(st.integers(8, 24), st.integers(0, 2**32 - 1))
def test_crops_are_windows_of_the_mirrored_frame(size: int, seed: int) -> None:
    image = np.arange(size * size, dtype=np.uint16).reshape(size, size)
    images = np.stack([image >> 8, image & 255, image * 0], axis=-1).astype(np.uint8)[None]
    crop = mirrored_crops(images, size, np.random.default_rng(seed))[0]
    margin = round(size / 8)
    framed = np.pad(images[0], ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    windows = [
        framed[top : top + size, left : left + size] for top in range(2 * margin + 1) for left in range(2 * margin + 1)
    ]
    assert any(np.array_equal(crop, way) for window in windows for way in (window, window[:, ::-1]))


def test_a_short_training_writes_weights_that_the_source_opens(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "tiny-mobilenetv3"
    short = replace(PHOTOGRAPHS[model], input_size=32, epochs=1, batch=10)
    weights_of_the_usual_recipe = weights_of(model, tmp_path)
    monkeypatch.setattr(train_photographs, "PHOTOGRAPHS", {model: short})
    monkeypatch.setattr(train_photographs, "HELD_OUT", 4)
    photographs = unpack(archives, tmp_path / "scratch")
    train_network(model, photographs, tmp_path)
    weights = weights_of(model, tmp_path)
    written = weights.read_bytes()
    train_network(model, photographs, tmp_path)
    assert weights.read_bytes() == written, "what is there is not done again"
    assert "Top-1 on 8 test images" in weights.with_suffix(".md").read_text(encoding="utf-8")
    arguments: dict[str, bool | int | float | str] = {"model": model, "classes": 2}
    assert weights_of(model, tmp_path) != weights_of_the_usual_recipe, "another recipe trains anew"
    options = SourceOptions(weights=str(weights), model_args=arguments, family=short.family, image_size=32)
    original = sources.resolve("py:scripts.train_photographs:network", options)
    assert (original.family, len(original.labels), original.recipe.input_size) == ("mobilenetv3", 2, (3, 32, 32))
    with torch.inference_mode():
        assert sources.open_module(original)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
