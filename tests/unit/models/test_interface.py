"""What an original declares that it takes, and what stands for originals that declare nothing."""

from __future__ import annotations

import dataclasses

import pytest

from deploykit import serde
from deploykit.artifact import Axis
from deploykit.errors import BadInputError, UsageError
from deploykit.models import sources
from deploykit.models.interface import Input, Interface
from deploykit.models.original import Original

TAKES = Interface(
    (Input("sample", "float32", ("batch", 4, "height", "width")), Input("timestep", "int64", ("batch",))),
    "out",
    ("batch", 4, "height", "width"),
    {"height": 64, "width": 32},
    "lcm",
)


@pytest.fixture
def image() -> Original:
    return sources.resolve("tiny-convnext")


@pytest.fixture
def several(image: Original) -> Original:
    return dataclasses.replace(image, preprocess=None, interface=TAKES)


def test_an_original_that_takes_no_images_says_what_it_takes(several: Original) -> None:
    with pytest.raises(UsageError, match="tiny-convnext takes no images, it takes sample, timestep"):
        _ = several.recipe


@pytest.mark.parametrize("shape", [[1.5], [None], "batch", [["batch"]]])
def test_a_damaged_shape_is_bad_input(several: Original, shape: object) -> None:
    data = serde.to_json(several)
    data["interface"]["inputs"][0]["shape"] = shape
    with pytest.raises(BadInputError, match=r"original\.interface\.inputs\[0\]\.shape"):
        serde.from_json(Original, data, "original")


def test_one_image_is_what_is_taken_where_nothing_is_declared(image: Original) -> None:
    takes = image.takes
    assert takes.inputs == (Input("input", "float32", ("batch", 3, "height", "width")),)
    assert (takes.output, takes.probe, takes.axes) == ("logits", "images", ("batch", "height", "width"))
    assert takes.at({}) == {"input": (1, 3, 64, 64)}


def test_sides_of_images_are_fixed_where_the_family_or_the_file_fixes_them(image: Original) -> None:
    for fixed in (dataclasses.replace(image, family="dinov2"), dataclasses.replace(image, form="graph")):
        assert fixed.takes.inputs == (Input("input", "float32", ("batch", 3, 64, 64)),)
        assert fixed.takes.axes == ("batch",)


def test_an_interface_travels_with_its_original_and_counts_in_its_hash(image: Original, several: Original) -> None:
    assert sources.located(several.locator) == several
    assert "interface" not in serde.to_json(image), "bundles of image models stay as they were"
    other = dataclasses.replace(TAKES, sizes={"height": 64, "width": 64})
    assert several.digest != dataclasses.replace(several, interface=other).digest


def test_sizes_of_axes_make_shapes() -> None:
    assert TAKES.axes == ("batch", "height", "width")
    assert TAKES.at({}) == {"sample": (1, 4, 64, 32), "timestep": (1,)}
    assert TAKES.at({"batch": 3, "width": 8}) == {"sample": (3, 4, 64, 8), "timestep": (3,)}
    with pytest.raises(KeyError):
        Input("x", "float32", ("depth",)).at({"batch": 1})
    axes = {name: Axis.unbounded(name) for name in TAKES.axes}
    assert TAKES.inputs[0].spec(axes).shape == (axes["batch"], 4, axes["height"], axes["width"])
    assert TAKES.inputs[0].places({"height": 0, "batch": 0}) == {0: "batch", 2: "height"}
