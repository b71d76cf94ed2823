"""Golden inputs of a user's own images: which are taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.bundle import load_tensors
from deploykit.calibration.images import open_calibration
from deploykit.cli.export import show_plan
from deploykit.data import rendered
from deploykit.data.preprocess import crop, normalize
from deploykit.errors import BadInputError, UsageError
from deploykit.export import probe
from deploykit.export.cache import Cache
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.export.reference import Draw, ImagesOptions
from deploykit.export.stage import TENSORS
from deploykit.workflow.export import Preview, prepare
from deploykit.workflow.options import GOLDEN_COUNT, GOLDEN_IMAGES, ExportOptions


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


def places(found: np.typing.NDArray[np.float32], preview: Preview, folder: Path) -> set[int]:
    """Return which images of a folder, in order of their paths, golden inputs were made of."""
    recipe = preview.original.recipe
    crops = [crop(np.asarray(Image.open(path)), recipe) for path in sorted(folder.rglob("*.png"))]
    every = normalize(np.stack(crops), recipe)
    return {int(np.abs(every - one).sum(axis=(1, 2, 3)).argmin()) for one in found}


def golden_options(preview: Preview) -> ImagesOptions:
    found = next(node.options for node in preview.plan.nodes if node.id == probe.GOLDEN_IMAGES)
    assert isinstance(found, ImagesOptions)
    return found


def int8(**options: object) -> Preview:
    return prepare("tiny-convnext", ExportOptions(cells=("int8:ort",), eval_size=10, **options))  # type: ignore[arg-type]


def test_photographs_to_calibrate_on_are_golden_inputs_too_and_none_is_both(photos: Path, tmp_path: Path) -> None:
    preview = int8(calib=str(photos), calib_few=True, calib_size=20)
    calibration = preview.draft.request.calibration
    assert calibration is not None
    assert calibration.count == 20
    assert not preview.notes
    assert preview.golden_set == str(photos)
    calibrated = open_calibration(str(photos), calibration.count, calibration.seed, preview.original.recipe)
    golden = places(made(preview, tmp_path / "cache"), preview, photos)
    assert len(golden) == GOLDEN_COUNT
    assert not golden & set(calibrated.choice.indices)


def test_where_all_would_be_calibrated_on_some_are_left_out(photos: Path) -> None:
    for index in range(40, 60):
        Image.new("RGB", (70, 90), (index, 0, 0)).save(photos / f"{index}.png")
    preview = int8(calib=str(photos))
    calibration = preview.draft.request.calibration
    assert calibration is not None
    assert calibration.count == 60 - GOLDEN_COUNT
    assert golden_options(preview).draw == Draw(0, 60 - GOLDEN_COUNT)
    assert preview.notes == (
        f"{photos} holds 60 images: 44 are calibrated on, 16 are golden inputs; 300 to calibrate on were asked for",
    )


def test_where_too_few_would_be_left_golden_inputs_are_rendered_and_that_is_told(photos: Path) -> None:
    preview = int8(calib=str(photos))
    assert golden_options(preview).images == GOLDEN_IMAGES
    assert any(note.startswith(f"golden inputs are rendered: {photos} holds 40 images") for note in preview.notes)
    calibration = preview.draft.request.calibration
    assert calibration is not None
    assert calibration.count == 300


def test_images_to_judge_on_come_before_those_to_calibrate_on(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in rendered.CLASSES:
        (data / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (70, 90), (index * 90, len(label) * 9, 0)).save(data / label / f"{index}.png")
    preview = int8(calib=str(photos), calib_few=True, calib_size=20, data=str(data))
    assert preview.golden_set == str(data)
    found = made(preview, tmp_path / "cache")
    assert len(found) == GOLDEN_COUNT
    assert len(places(found, preview, data)) > GOLDEN_COUNT // 2, "those of one colour can't be told apart"


def test_rendered_ones_remain_to_be_had(photos: Path) -> None:
    preview = int8(calib=str(photos), calib_few=True, calib_size=20, golden="rendered")
    assert golden_options(preview).images == preview.golden_set == GOLDEN_IMAGES
    assert int8(calib="rendered:calib").golden_set == GOLDEN_IMAGES


@pytest.mark.parametrize("count", [0, -1, 33])
def test_a_bundle_holds_some_golden_inputs_and_not_many(count: int) -> None:
    with pytest.raises(UsageError, match=f"--golden-size {count}: a bundle holds 1 to 32"):
        prepare("tiny-convnext", ExportOptions(golden_size=count))


def test_as_many_are_taken_as_are_asked_for(photos: Path, tmp_path: Path) -> None:
    preview = prepare("tiny-convnext", ExportOptions(golden=str(photos), golden_size=5, eval_size=10))
    assert len(made(preview, tmp_path / "cache")) == 5


def test_images_to_judge_on_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in rendered.CLASSES:
        (data / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (70, 90), (index * 90, 0, 0)).save(data / label / f"{index}.png")
    preview = int8(data=str(data))
    for path in data.rglob("*.png"):
        Image.new("RGB", (70, 90), (5, 5, 5)).save(path)
    with pytest.raises(BadInputError, match="has changed since this began"):
        made(preview, tmp_path / "cache")


def test_the_plan_says_which_images_a_bundle_will_hold(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(int8(calib=str(photos), calib_few=True, calib_size=20, golden_size=8))
    told = " ".join(capsys.readouterr().err.split())
    assert f"8 golden inputs of {photos}, kept in the bundle" in told
    show_plan(int8(golden="rendered"))
    assert " ".join(capsys.readouterr().err.split()).endswith("16 golden inputs of rendered:calib")


def test_a_number_of_golden_inputs_is_refused_where_nothing_takes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--golden-size 3: tiny-lcm-unet takes no images"):
        prepare("tiny-lcm-unet", ExportOptions(golden_size=3))
