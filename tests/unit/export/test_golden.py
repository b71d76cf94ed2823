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


def test_too_few_or_none_are_refused(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir())[15:]:
        path.unlink()
    with pytest.raises(UsageError, match="holds 15 images; golden inputs are made of 16"):
        asked(photos)
    with pytest.raises(UsageError, match="does not exist"):
        asked(tmp_path / "absent")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "named.npz"])
@pytest.mark.parametrize("rows", [3, 40])
def test_prepared_inputs_are_taken_as_they_are(tmp_path: Path, name: str, rows: int) -> None:
    path, draw = tmp_path / name, np.random.default_rng(7)
    array = draw.standard_normal((rows, 3, 64, 64)).astype(np.float32)
    if name == "a.npy":
        np.save(path, array)
    elif name == "a.npz":
        np.savez(path, array)
    else:
        np.savez(path, input=array, images=array[:, ::-1], other=np.zeros(3))
    preview = asked(path)
    found = made(preview, tmp_path / "cache")
    assert len(found) == min(rows, GOLDEN_COUNT)
    places = [int(np.abs(array - one).sum(axis=(1, 2, 3)).argmin()) for one in found]
    np.testing.assert_array_equal(found, array[places])
    assert len(set(places)) == len(found)
    assert probe.GOLDEN_IMAGES not in {node.id for node in preview.plan.nodes}
    assert not [node for node in preview.plan.nodes if node.id == probe.GOLDEN and node.inputs]


@pytest.mark.parametrize(
    ("array", "kind", "told"),
    [
        (np.zeros((20, 3, 32, 32), np.float32), UsageError, r"is float32 \[20, 3, 32, 32\]; calibration takes"),
        (np.zeros((20, 3, 64, 64)), UsageError, "is float64"),
        (np.full((1, 3, 64, 64), np.nan, np.float32), BadInputError, "image 0 holds NaN or infinity"),
        (np.zeros((0, 3, 64, 64), np.float32), BadInputError, "holds no images"),
    ],
)
def test_prepared_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, array: np.typing.NDArray[np.float32], kind: type[Exception], told: str
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(kind, match=told):
        asked(tmp_path / "a.npy")


def test_prepared_inputs_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3, 64, 64), np.float32))
    preview = asked(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((4, 3, 64, 64), np.float32))
    with pytest.raises(BadInputError, match="has changed since this began"):
        made(preview, tmp_path / "cache")


def test_a_model_that_takes_no_images_takes_none(photos: Path) -> None:
    with pytest.raises(UsageError, match="tiny-lcm-unet takes no images"):
        prepare("tiny-lcm-unet", ExportOptions(golden=str(photos)))
