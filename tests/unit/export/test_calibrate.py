from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.unit.calibration.pictures import RECIPE, crops, natural, uniform

from deploykit.artifact import FileRecord
from deploykit.calibration.images import RENDERED_CALIBRATION
from deploykit.data import rendered
from deploykit.data.imageset import REPORT_EVERY
from deploykit.data.preprocess import crop, normalize
from deploykit.errors import BadInputError, DeploykitError, InternalError, UsageError
from deploykit.export import calibrate
from deploykit.export.cache import Cache
from deploykit.export.calibrate import (
    CalibrationOptions,
    CalibrationRequest,
    calibration_stage,
    count,
    resolve_calibration,
    rows,
)
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.export.reference import CROPS, IMAGES, LABELS, ImagesOptions
from deploykit.export.stage import Facts, Inputs, Item, Node, Plan, Workspace

COUNT = 40
LABELS_OF_OTHERS = ("cat", "dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images, natural enough. Not to be changed: copy it."""
    root = tmp_path_factory.mktemp("photos")
    for seed in range(COUNT):
        (root / f"{seed % 3}").mkdir(exist_ok=True)
        Image.fromarray(natural(seed, 48)).save(root / f"{seed % 3}/{seed:02}.png")
    return root


def saved(path: Path, array: NDArray[Any]) -> str:
    np.save(path, array)
    return str(path)


def resolved(name: Path | str, number: int = 300, *, seed: int = 0, few: bool = False) -> CalibrationRequest:
    return resolve_calibration(str(name), number, seed, LABELS_OF_OTHERS, RECIPE, few=few)


def made(folder: Path, name: Path | str, number: int = 300, *, evaluation: Item | None = None, **how: Any) -> Item:
    """Run the stage as the pipeline does, without it."""
    options = CalibrationOptions.of(resolved(name, number, **how), RECIPE)
    return ran(folder, options, {} if evaluation is None else {"evaluation": evaluation})


def ran(folder: Path, options: CalibrationOptions, inputs: Inputs) -> Item:
    folder.mkdir()
    stage = calibration_stage(with_evaluation=bool(inputs))
    facts = stage.run(inputs, options, Workspace(folder, lambda _done, _of: None))
    return item_of(folder, facts)


def item_of(folder: Path, facts: Facts) -> Item:
    return Item("images", folder, tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir())), facts)


def refusal(kind: type[DeploykitError], folder: Path, name: Path | str, **how: Any) -> str:
    with pytest.raises(kind) as caught:
        made(folder, name, **how)
    assert type(caught.value) is kind
    return caught.value.message


# ---- before anything runs --------------------------------------------------------------------------------------------


def test_what_is_no_set_or_holds_too_few_is_refused_before_anything_runs(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        resolved(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="holds no images"):
        resolved(tmp_path)
    with pytest.raises(UsageError, match=r"--calib-size 0"):
        resolved(photos, 0)
    with pytest.raises(UsageError, match="31 images are too few"):
        resolved(photos, 31)
    with pytest.raises(UsageError, match="5 images are too few"):
        resolved(saved(tmp_path / "a.npy", crops(5)))
    assert resolved(photos, 31, few=True).few


def test_the_rendered_set_is_for_models_of_its_classes() -> None:
    with pytest.raises(UsageError, match="which this model was not trained for"):
        resolved(RENDERED_CALIBRATION)
    for labels in (rendered.CLASSES, ()):
        request = resolve_calibration(RENDERED_CALIBRATION, 300, 0, labels, RECIPE)
        assert (request.count, request.note) == (300, "")


def test_fewer_images_than_were_asked_for_are_told(photos: Path) -> None:
    assert resolved(photos, 40).note == ""
    told = f"{photos} holds 40 images: all are calibrated on; 300 were asked for"
    assert resolved(photos, 300).note == told
    assert resolved(photos, 300).digest == resolved(photos, 40).digest


def test_a_request_knows_its_images_by_content(photos: Path) -> None:
    assert resolved(photos, 35) == resolved(photos, 35)
    assert resolved(photos, 35).digest != resolved(photos, 35, seed=1).digest


# ---- hard stops ------------------------------------------------------------------------------------------------------


def test_images_that_changed_meanwhile_are_refused(tmp_path: Path, photos: Path) -> None:
    options = CalibrationOptions.of(dataclasses.replace(resolved(photos), digest="other"), RECIPE)
    with pytest.raises(BadInputError, match="has changed since this began"):
        ran(tmp_path / "made", options, {})


def test_broken_images_are_refused_all_at_once(tmp_path: Path) -> None:
    for seed in range(COUNT):
        Image.fromarray(natural(seed)).save(tmp_path / f"{seed:02}.png")
    for name in ("03.png", "20.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    message = refusal(BadInputError, tmp_path / "made", tmp_path)
    assert "has 2 faults:" in message
    assert "03.png can't be decoded" in message
    assert "20.png can't be decoded" in message


def test_unfit_images_are_refused_with_all_reasons(tmp_path: Path) -> None:
    images = np.concatenate([crops(COUNT), crops(1), uniform(0, 32)[None], np.zeros((1, 32, 32, 3), np.uint8)])
    message = refusal(BadInputError, tmp_path / "made", saved(tmp_path / "a.npy", images))
    for words in ("is not fit to calibrate on", "image 40 = image 0", "noise", "image 41", "one colour", "image 42"):
        assert words in message


def test_inputs_of_other_values_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path / "a.npy", crops(COUNT).transpose(0, 3, 1, 2).astype(np.float32))
    assert "they look like pixels 0..255" in refusal(BadInputError, tmp_path / "made", name)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_images_that_are_judged_on_are_refused(tmp_path: Path, is_prepared: bool) -> None:
    images = crops(COUNT, 48)
    prepared = np.stack([crop(image, RECIPE) for image in images])
    (tmp_path / "judged").mkdir()
    np.save(tmp_path / "judged" / CROPS, np.concatenate([crops(3, start=100), prepared[7:9]]))
    evaluation = item_of(tmp_path / "judged", {})
    name = saved(tmp_path / "a.npy", normalize(prepared, RECIPE) if is_prepared else images)
    message = refusal(BadInputError, tmp_path / "made", name, evaluation=evaluation)
    assert "2 of 40 images are among those that are judged on" in message
    assert message.endswith("image 7 = 3, image 8 = 4")
    np.save(tmp_path / "judged" / CROPS, crops(3, start=100))
    assert count(made(tmp_path / "again", name, evaluation=item_of(tmp_path / "judged", {}))) == COUNT


@pytest.mark.parametrize("names", [(), (LABELS,), (CROPS, calibrate.INPUTS)])
def test_an_item_holds_either_crops_or_inputs(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        np.save(tmp_path / name, crops(2))
    with pytest.raises(InternalError, match=r"either crops\.npy or inputs\.npy"):
        count(item_of(tmp_path, {}))


# ---- what is made ----------------------------------------------------------------------------------------------------


def test_files_are_prepared_and_told_about(tmp_path: Path, photos: Path) -> None:
    item = made(tmp_path / "made", photos, 36, seed=4)
    assert [record.path for record in item.files] == [CROPS]
    stored = np.load(item.path(CROPS))
    assert (stored.shape, stored.dtype) == ((36, 32, 32, 3), np.uint8)
    by_title = sorted((f"{seed % 3}/{seed:02}", seed) for seed in range(COUNT))
    everything = [crop(natural(seed, 48), RECIPE).tobytes() for _, seed in by_title]
    places = [everything.index(one.tobytes()) for one in stored]
    assert places == sorted(set(places))
    pixels = stored / 255
    means, deviations = item.facts["channel_means"], item.facts["channel_deviations"]
    assert np.allclose(means, pixels.mean((0, 1, 2)))
    assert np.allclose(deviations, pixels.std((0, 1, 2)))
    assert {key: item.facts[key] for key in ("images", "available", "set", "seed", "digest")} == {
        "images": 36,
        "available": COUNT,
        "set": str(photos),
        "seed": 4,
        "digest": resolved(photos, 36, seed=4).digest,
    }


def test_rows_are_what_the_model_takes_from_either_kind(tmp_path: Path) -> None:
    images = crops(COUNT)
    prepared = normalize(np.stack([crop(image, RECIPE) for image in images]), RECIPE)
    pictures = made(tmp_path / "one", saved(tmp_path / "a.npy", images))
    inputs = made(tmp_path / "two", saved(tmp_path / "b.npy", prepared))
    assert [record.path for record in inputs.files] == [calibrate.INPUTS]
    for item in (pictures, inputs):
        assert count(item) == COUNT
        found = rows(item, RECIPE, 3, 8)
        assert found.dtype == np.float32
        assert found.shape == (5, 3, 32, 32)
        assert found.flags.c_contiguous
        assert np.array_equal(found, prepared[3:8])
        assert len(rows(item, RECIPE, 38, 50)) == 2
    assert pictures.facts["channel_means"] == inputs.facts["channel_means"]


def test_progress_never_claims_more_than_there_is(tmp_path: Path) -> None:
    total = REPORT_EVERY + 5
    for name, array in (("a", crops(total)), ("b", normalize(crops(total), RECIPE))):
        seen: list[tuple[int, int]] = []
        options = CalibrationOptions.of(resolved(saved(tmp_path / f"{name}.npy", array)), RECIPE)
        (tmp_path / name).mkdir()
        workspace = Workspace(tmp_path / name, lambda done, of, seen=seen: seen.append((done, of)))  # type: ignore[misc]
        calibration_stage(with_evaluation=False).run({}, options, workspace)
        assert seen == [(0, total), (REPORT_EVERY, total)]


def test_the_pipeline_runs_it_beside_the_images_that_are_judged_on(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, input_size=(3, 64, 64))
    request = resolve_calibration(RENDERED_CALIBRATION, 48, 0, rendered.CLASSES, recipe)
    judged = ImagesOptions("rendered:test", "digest", 40, 80, rendered.CLASSES, recipe)
    nodes = (
        Node("evaluation-images", IMAGES, judged, {}),
        Node(
            "calibration",
            calibration_stage(with_evaluation=True),
            CalibrationOptions.of(request, recipe),
            {"evaluation": "evaluation-images"},
        ),
    )
    cache = Cache(tmp_path / "cache")
    item = Pipeline(cache, Silent()).run(Plan({}, nodes))["calibration"].item
    assert (count(item), item.facts["set"]) == (48, RENDERED_CALIBRATION)
    assert rows(item, recipe, 0, 2).shape == (2, 3, 64, 64)
