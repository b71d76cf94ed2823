"""From a preprocessor_config.json to a recipe: what can be expressed, and what is refused with its value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.models import hf_folders
from tests.unit.models.hf_folders import BIT, resolve, saved, transformers

from deploykit.artifact import Preprocess
from deploykit.data import rendered
from deploykit.data.preprocess import prepare
from deploykit.errors import BadInputError, UsageError
from deploykit.models import hf_preprocess
from deploykit.models.hf_quiet import quiet
from deploykit.models.original import SourceOptions
from deploykit.models.source_hf import SCHEME


@pytest.fixture(scope="module")
def _dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.dino_at(tmp_path_factory.mktemp("written") / "dino")


@pytest.fixture
def dino(tmp_path: Path, _dino: Path) -> Path:
    """A DINOv2 of one's own, with its preprocessor_config.json."""
    return shutil.copytree(_dino, tmp_path / "dino")


def _recipe(dino: Path, preprocessor: Mapping[str, Any], **options: Any) -> Preprocess:
    (dino / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return SCHEME.resolve(str(dino), SourceOptions(**options)).recipe


def _squeezed(side: int, **changes: Any) -> dict[str, Any]:
    return {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}, **changes}


def test_images_are_prepared_as_the_file_says(dino: Path) -> None:
    assert _recipe(dino, BIT) == Preprocess(
        (3, 56, 56), "bicubic", 0.875, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"resample": 0}, "interpolation", "nearest"),
        ({"resample": 1}, "interpolation", "lanczos"),
        ({"resample": 2}, "interpolation", "bilinear"),
        ({"size": {"shortest_edge": 56}}, "crop_pct", 1.0),
        ({"size": 70, "crop_size": 56}, "crop_pct", 0.8),
        ({"crop_size": {"height": 28, "width": 28}}, "input_size", (3, 28, 28)),
        ({"do_normalize": False}, "mean", (0.0, 0.0, 0.0)),
        ({"do_normalize": False}, "std", (1.0, 1.0, 1.0)),
        ({"image_mean": 0.5}, "mean", (0.5, 0.5, 0.5)),
        ({"image_processor_type": "BitImageProcessorFast"}, "crop_pct", 0.875),
        ({"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"}, "crop_pct", 0.875),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}, "do_center_crop": None,
          "crop_size": None, "crop_pct": 0.9}, "crop_pct", 0.9),
    ],
)  # fmt: skip
def test_what_can_be_expressed_is(dino: Path, changes: dict[str, Any], field: str, value: object) -> None:
    said = {key: value for key, value in {**BIT, **changes}.items() if value is not None}
    assert getattr(_recipe(dino, said), field) == value


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (_squeezed(56, do_center_crop=True, crop_size=70), "crop_size 70x70 can't be expressed"),
        (
            _squeezed(64, do_center_crop=True, crop_size={"height": 56, "width": 28}),
            "crop_size 56x28 can't be expressed",
        ),
        ({**BIT, "do_center_crop": False}, r"size \{'shortest_edge': 64\}, do_center_crop False"),
        ({**BIT, "size": {"shortest_edge": 28}}, "crop_size 56x56 can't be expressed"),
        ({**BIT, "size": {"shortest_edge": 64, "longest_edge": 90}}, "'longest_edge': 90"),
        ({**BIT, "crop_size": {"height": 56, "width": 28}}, "crop_size 56x28 can't be expressed"),
        ({**BIT, "resample": 4}, "resample 4 can't be expressed"),
        ({**BIT, "do_resize": False}, "do_resize False can't be expressed"),
        ({**BIT, "do_rescale": False}, "do_rescale False can't be expressed"),
        ({**BIT, "rescale_factor": 1 / 127.5}, r"rescale_factor 0\.00784.* can't be expressed"),
        ({**BIT, "do_pad": True}, "do_pad True can't be expressed"),
        (
            {"image_processor_type": "EfficientNetImageProcessor"},
            "image_processor_type EfficientNetImageProcessor can't",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_value(dino: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        _recipe(dino, said)
    assert caught.value.hints


@pytest.mark.parametrize(
    "said",
    [
        {"image_processor_type": "NoImageProcessor"},
        {"image_processor_type": 3},
        {**BIT, "size": "large"},
        {**BIT, "size": {"edge": 3}},
        {**BIT, "crop_size": {"height": 56}},
        {**BIT, "crop_size": 0},
        {**BIT, "crop_size": -8, "size": -4},
        {**BIT, "image_mean": "grey"},
        {**BIT, "image_std": ["a", "b", "c"]},
        {**BIT, "rescale_factor": "1/255"},
        [],
        "text",
    ],
)
def test_a_damaged_file_is_refused(dino: Path, said: Any) -> None:
    with pytest.raises(BadInputError, match=r"preprocessor_config\.json"):
        _recipe(dino, said)


@pytest.mark.parametrize("said", [{**BIT, "image_std": [0.0, 1.0, 1.0]}, {**BIT, "image_mean": [0.5, 0.5]}])
def test_statistics_that_cannot_be_are_refused(dino: Path, said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="std"):
        _recipe(dino, said)


@pytest.mark.parametrize(
    ("said", "input_size", "crop_pct", "crop_mode"),
    [
        (_squeezed(56), (3, 56, 56), 1.0, "squash"),
        (_squeezed(70, do_center_crop=True, crop_size=56), (3, 56, 56), 0.8, "squash"),
        (_squeezed(56, size={"height": 56, "width": 28}), (3, 56, 28), 1.0, "squash"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 378}},
            (3, 378, 378),
            0.875,
            "center",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 392}},
            (3, 392, 392),
            1.0,
            "squash",
        ),
    ],
)
def test_images_are_squeezed_where_that_is_said(
    dino: Path, said: dict[str, Any], input_size: tuple[int, ...], crop_pct: float, crop_mode: str
) -> None:
    recipe = _recipe(dino, said)
    assert (recipe.input_size, recipe.crop_pct, recipe.crop_mode) == (input_size, crop_pct, crop_mode)


def test_images_of_any_shape_are_cut_where_that_is_asked_for(dino: Path) -> None:
    recipe = _recipe(dino, {**BIT, "size": {"shortest_edge": 56}, "do_center_crop": False}, crop_pct=1.0)
    assert (recipe.input_size, recipe.crop_pct, recipe.crop_mode) == ((3, 56, 56), 1.0, "center")


def test_what_a_file_leaves_out_is_its_processors_own(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vit", "ViTModel", {"do_normalize": True, "do_resize": True, "size": 32})
    recipe = SCHEME.resolve(str(folder), SourceOptions()).preprocess
    assert recipe == Preprocess((3, 32, 32), "bilinear", 1.0, "squash", (0.5,) * 3, (0.5,) * 3)


def test_what_is_asked_for_goes_before_the_file(dino: Path) -> None:
    recipe = _recipe(dino, {**BIT, "resample": 4}, interpolation="bilinear", image_size=70, mean=(0.1, 0.2, 0.3))
    assert (recipe.interpolation, recipe.input_size, recipe.mean) == ("bilinear", (3, 70, 70), (0.1, 0.2, 0.3))
    assert (recipe.crop_pct, recipe.std) == (0.875, (0.229, 0.224, 0.225))


def test_without_a_file_all_of_it_must_be_said(dino: Path) -> None:
    (dino / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"has no preprocessor_config\.json") as caught:
        SCHEME.resolve(str(dino), SourceOptions(crop_pct=0.9))
    assert "--mean" in str(caught.value.hints)
    assert resolve(dino, 56).preprocess == Preprocess((3, 56, 56), "bicubic", 0.875, "center", (0.5,) * 3, (0.5,) * 3)


@given(short=st.integers(1, 2000), data=st.data())
def test_the_short_side_comes_out_to_the_pixel(short: int, data: st.DataObject) -> None:
    crop = data.draw(st.integers(1, short))
    recipe = Preprocess((3, crop, crop), "bicubic", hf_preprocess.share(crop, short), "center", (0.5,) * 3, (0.5,) * 3)
    assert recipe.resized == (short, short)
    assert recipe.crop_pct <= 1


@pytest.mark.parametrize(
    ("said", "shape"),
    [
        (BIT, (80, 80)),
        (BIT, (80, 120)),
        ({**BIT, "resample": 2}, (120, 80)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}}, (96, 96)),
        (_squeezed(56), (96, 64)),
        (_squeezed(70, do_center_crop=True, crop_size=56), (64, 96)),
        (_squeezed(56, size={"height": 56, "width": 28}), (64, 96)),
    ],
)
def test_pixels_are_those_of_transformers(dino: Path, said: dict[str, Any], shape: tuple[int, int]) -> None:
    recipe = _recipe(dino, said)
    image = rendered.render("calib", 3, max(shape))[0][: shape[0], : shape[1]]
    with quiet():
        processor = transformers.AutoImageProcessor.from_pretrained(dino, local_files_only=True, backend="pil")
    own = processor(images=image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    level = 1 / 255 / min(recipe.std)
    assert np.abs(prepare([image], recipe) - own.numpy()).max() < 1.01 * level, (
        "torchvision rounds otherwise than Pillow"
    )
