"""Calibration images: chosen, prepared and looked at, as the item that ranges are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.calibration import hygiene
from deploykit.calibration.images import (
    RENDERED_CALIBRATION,
    CalibrationImages,
    CalibrationInputs,
    open_calibration,
)
from deploykit.data import rendered
from deploykit.data.imageset import REPORT_EVERY, prepare_crops
from deploykit.data.preprocess import normalize
from deploykit.errors import BadInputError, InternalError, UsageError
from deploykit.export.reference import CROPS, reserve
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace

#: Inputs that were prepared already: float32 [N, channels, height, width]. An item holds either these or crops.
INPUTS = "inputs.npy"


@dataclass(frozen=True)
class CalibrationRequest:
    """Images to calibrate on.

    Attributes:
        images: Name of the set.
        digest: Content hash of the chosen images.
        count: How many were asked for.
        seed: What the choice is drawn from.
        few: Fewer than `hygiene.MIN_IMAGES` are taken all the same.
        available: How many there are to choose from.
    """

    images: str
    digest: str
    count: int
    seed: int
    few: bool
    available: int

    @property
    def note(self) -> str:
        """What to tell people before anything runs; "" where it is as they asked."""
        if self.available >= self.count:
            return ""
        return f"{self.images} holds {self.available} images: all are calibrated on; {self.count} were asked for"


@dataclass(frozen=True)
class CalibrationOptions:
    """Which images, prepared how; see `CalibrationRequest`."""

    images: str
    digest: str
    count: int
    seed: int
    few: bool
    preprocess: Preprocess

    @classmethod
    def of(cls, request: CalibrationRequest, recipe: Preprocess) -> CalibrationOptions:
        """Return a request with what images are prepared by."""
        return cls(request.images, request.digest, request.count, request.seed, request.few, recipe)


def resolve_calibration(
    name: str, count: int, seed: int, labels: tuple[str, ...], recipe: Preprocess, *, few: bool = False
) -> CalibrationRequest:
    """Check what can be checked before anything runs: that the set exists, holds images alone, and enough of them.

    Args:
        name: What the user typed; see `open_calibration`.
        count: How many images are taken.
        seed: What the choice is drawn from.
        labels: The model's classes by index, which the rendered set must show; none where it answers with features.
        recipe: What the model was trained for.
        few: Fewer than `hygiene.MIN_IMAGES` are enough.

    Raises:
        UsageError: No such set, one that doesn't fit the model, or too few images.
        BadInputError: It holds no images, is damaged, or can't be read.
        ResourceError: There is no memory for an array.
    """
    if name == RENDERED_CALIBRATION and labels and tuple(labels) != tuple(rendered.CLASSES):
        raise UsageError(f"{name!r} shows {', '.join(rendered.CLASSES)}, which this model was not trained for")
    found = open_calibration(name, count, seed, recipe)
    hygiene.check_count(name, len(found), found.choice.available, few=few)
    return CalibrationRequest(name, found.digest, count, seed, few, found.choice.available)


def _prepare(inputs: Inputs, options: CalibrationOptions, workspace: Workspace) -> Facts:
    found = open_calibration(options.images, options.count, options.seed, options.preprocess)
    if found.digest != options.digest:
        raise BadInputError(f"{options.images} has changed since this began: start again when it is complete")
    hygiene.check_count(options.images, len(found), found.choice.available, few=options.few)
    titles = [found.title(index) for index in range(len(found))]
    judged: Any = np.load(inputs["evaluation"].path(CROPS), mmap_mode="r") if "evaluation" in inputs else ()
    if isinstance(found, CalibrationImages):
        looked = hygiene.examine(_write_crops(found, options, workspace), titles, options.preprocess, judged)
    else:
        looked = hygiene.examine_inputs(_write_inputs(found, options, workspace), titles, options.preprocess, judged)
    looked.refuse(options.images)
    return {
        "images": len(found),
        "available": found.choice.available,
        "set": options.images,
        "seed": options.seed,
        "digest": options.digest,
        "channel_means": list(looked.means),
        "channel_deviations": list(looked.deviations),
    }


def _write_crops(found: CalibrationImages, options: CalibrationOptions, workspace: Workspace) -> NDArray[np.uint8]:
    channels, height, width = options.preprocess.input_size
    crops = _mapped(workspace, CROPS, np.uint8, (len(found), height, width, channels))
    prepare_crops(found, options.preprocess, crops, workspace.progress)
    crops.flush()
    return crops


def _write_inputs(found: CalibrationInputs, options: CalibrationOptions, workspace: Workspace) -> NDArray[np.float32]:
    inputs = _mapped(workspace, INPUTS, np.float32, (len(found), *options.preprocess.input_size))
    for index in range(len(found)):
        inputs[index] = found.row(index)
        if index % REPORT_EVERY == 0:
            workspace.progress(index, len(found))
    inputs.flush()
    return inputs


def _mapped(workspace: Workspace, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    path = workspace.folder / name
    array = np.lib.format.open_memmap(str(path), mode="w+", dtype=dtype, shape=shape)
    reserve(path)
    return array


def calibration_stage(*, with_evaluation: bool) -> Stage[CalibrationOptions]:
    """Return the stage that prepares calibration images, and compares them with those that are judged on.

    It makes an item of the kind "images" with crops, uint8 [N, height, width, channels], or with inputs; see `rows`.
    """
    takes = {"evaluation": "images"} if with_evaluation else {}
    return Stage("calibration", 1, takes, "images", ("PIL",), _prepare)


def count(item: Item) -> int:
    """Return the number of images."""
    return len(_stored(item))


def rows(item: Item, recipe: Preprocess, start: int, stop: int) -> NDArray[np.float32]:
    """Return images `start` to `stop`, without it, as the model takes them: float32 [n, channels, height, width]."""
    array = _stored(item)[start:stop]
    return normalize(array, recipe) if array.dtype == np.uint8 else np.array(array, np.float32)


def _stored(item: Item) -> NDArray[Any]:
    names = [record.path for record in item.files if record.path in {CROPS, INPUTS}]
    if len(names) != 1:
        raise InternalError(f"calibration images are either {CROPS} or {INPUTS}; the item has {names}")
    stored: NDArray[Any] = np.load(item.path(names[0]), mmap_mode="r")
    return stored
