"""Golden inputs of a user's own images: which are taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.bundle import load_tensors
from deploykit.data.preprocess import crop, normalize
from deploykit.errors import BadInputError, UsageError
from deploykit.export import probe
from deploykit.export.cache import Cache
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.export.stage import TENSORS
from deploykit.workflow.export import Preview, prepare
from deploykit.workflow.options import GOLDEN_COUNT, ExportOptions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty images, each of noise of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(3)
    for index in range(40):
        Image.fromarray(draw.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return folder


def asked(golden: Path) -> Preview:
    return prepare("tiny-convnext", ExportOptions(golden=str(golden), eval_size=10))


def made(preview: Preview, cache: Path) -> np.typing.NDArray[np.float32]:
    plan = preview.plan.reaching([probe.GOLDEN])
    item = Pipeline(Cache(cache), Silent()).run(plan)[probe.GOLDEN].item
    return load_tensors(item.path(TENSORS))["input"]


def test_sixteen_of_them_are_taken_and_prepared_as_the_model_takes_images(photos: Path, tmp_path: Path) -> None:
    preview = asked(photos)
    found = made(preview, tmp_path / "cache")
    assert found.shape == (GOLDEN_COUNT, 3, 64, 64)
    recipe = preview.original.recipe
    crops = np.stack([crop(np.asarray(Image.open(path)), recipe) for path in sorted(photos.iterdir())])
    every = normalize(crops, recipe)
    places = [int(np.abs(every - one).sum(axis=(1, 2, 3)).argmin()) for one in found]
    np.testing.assert_array_equal(found, every[places])
    assert len(set(places)) == GOLDEN_COUNT
    assert places != list(range(GOLDEN_COUNT)), "drawn, not the first ones"


def test_other_images_are_another_plan(photos: Path, tmp_path: Path) -> None:
    def options(preview: Preview) -> object:
        return next(node.options for node in preview.plan.nodes if node.id == probe.GOLDEN_IMAGES)

    first = options(asked(photos))
    assert options(asked(photos)) == first
    for path in photos.iterdir():
        Image.new("RGB", (70, 90)).save(path)
    assert options(asked(photos)) != first


def test_images_that_change_meanwhile_are_refused(photos: Path, tmp_path: Path) -> None:
    preview = asked(photos)
    for path in photos.iterdir():
        Image.new("RGB", (70, 90)).save(path)
    with pytest.raises(BadInputError, match="has changed since this began"):
        made(preview, tmp_path / "cache")


def test_too_few_none_or_prepared_ones_are_refused(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir())[15:]:
        path.unlink()
    with pytest.raises(UsageError, match="holds 15 images; golden inputs are made of 16"):
        asked(photos)
    with pytest.raises(UsageError, match="does not exist"):
        asked(tmp_path / "absent")
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((20, 3, 64, 64), np.float32))
    with pytest.raises(UsageError, match="holds prepared inputs"):
        asked(inputs)


def test_a_model_that_takes_no_images_takes_none(photos: Path) -> None:
    with pytest.raises(UsageError, match="tiny-lcm-unet takes no images"):
        prepare("tiny-lcm-unet", ExportOptions(golden=str(photos)))
