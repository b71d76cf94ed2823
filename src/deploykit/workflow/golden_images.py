"""Which images become golden inputs: the user's, else photographs that were given for something else, else rendered ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.calibration.hygiene import MIN_IMAGES
from deploykit.calibration.images import CalibrationInputs
from deploykit.data.imageset import rendered_images, ships
from deploykit.data.listing import labelled_files
from deploykit.data.preprocess import CHANNELS, check_channels
from deploykit.errors import UsageError
from deploykit.export.calibrate import CalibrationRequest, resolve_calibration
from deploykit.export.reference import Draw, drawn, unlabelled
from deploykit.export.request import ImagesRequest
from deploykit.models.interface import BATCH
from deploykit.models.original import Original
from deploykit.workflow.options import GOLDEN_COUNT, GOLDEN_IMAGES, GOLDEN_LIMIT, RENDERED, ExportOptions, rendered_size


@dataclass(frozen=True)
class Taken:
    """Images for golden inputs, beside those to calibrate on.

    Attributes:
        golden: What golden inputs are made of; None where the original takes no images.
        calibration: What is calibrated on: without those that are golden inputs.
        notes: What is not quite as it was asked for.
    """

    golden: ImagesRequest | None
    calibration: CalibrationRequest | None
    notes: tuple[str, ...] = ()


def golden_images(original: Original, options: ExportOptions, calibration: CalibrationRequest | None) -> Taken:
    """Choose images for golden inputs: of `golden`, else of `data`, else those of `calib` that aren't calibrated on.

    Raises:
        UsageError: Images are given that can't be taken, or as many as no bundle holds.
        BadInputError: They are damaged.
    """
    if original.preprocess is None or options.golden:
        return Taken(asked_images(original, options.golden, options.golden_size), calibration)
    _check_count(options.golden_size)
    return _of_others(original, options, calibration)


def asked_images(original: Original, golden: str | None, count: int) -> ImagesRequest | None:
    """Return what was asked for golden inputs: a user's images, or rendered ones; None where the original takes no images.

    Args:
        original: What is asked.
        golden: A set, "rendered", or None for rendered ones.
        count: How many.

    Raises:
        UsageError: Images are given that can't be taken, or as many as no bundle holds.
        BadInputError: They are damaged.
    """
    if original.preprocess is None:
        if golden or count != GOLDEN_COUNT:
            asked = f"--golden {golden}" if golden else f"--golden-size {count}"
            raise UsageError(f"{asked}: {original.id} takes no images")
        return None
    _check_count(count)
    return _rendered(original, count) if golden in {None, RENDERED} else _users(original, str(golden), count)


def _check_count(count: int) -> None:
    """Refuse a number of golden inputs that bundles don't hold.

    Raises:
        UsageError: Less than one, or more than `GOLDEN_LIMIT`.
    """
    if not 1 <= count <= GOLDEN_LIMIT:
        raise UsageError(f"--golden-size {count}: a bundle holds 1 to {GOLDEN_LIMIT} golden inputs")


def _users(original: Original, images: str, count: int) -> ImagesRequest:
    chosen = unlabelled(images, count, original.recipe, original.input_name)
    prepared = isinstance(chosen, CalibrationInputs)
    return ImagesRequest(images, chosen.digest, len(chosen), labelled=False, prepared=prepared, draw=Draw())


def _rendered(original: Original, count: int) -> ImagesRequest:
    check_channels(original.recipe)
    size = rendered_size(original.recipe)
    images = rendered_images(GOLDEN_IMAGES, count, size)
    return ImagesRequest(GOLDEN_IMAGES, images.digest, count, size, labelled=False)


def _of_others(original: Original, options: ExportOptions, calibration: CalibrationRequest | None) -> Taken:
    """Take photographs that were given to judge or to calibrate by; where there are too few, rendered images."""
    count = options.golden_size
    told: tuple[str, ...] = ()
    if options.data and not ships(options.data) and original.recipe.input_size[0] in CHANNELS:
        entries = labelled_files(Path(options.data), original.labels)
        if len(entries) >= count:
            images = drawn(options.data, original.labels, count, Draw())
            return Taken(ImagesRequest(options.data, images.digest, count, draw=Draw()), calibration)
        told = (_too_few(options.data, len(entries), count),)
    if calibration is not None and options.calib and not ships(options.calib):
        taken = _of_calibration(original, options, calibration)
        if taken is not None:
            return taken
        told = (_too_few(options.calib, calibration.available, count),)
    return Taken(_rendered(original, count), calibration, told)


def _of_calibration(original: Original, options: ExportOptions, calibration: CalibrationRequest) -> Taken | None:
    """Take images that aren't calibrated on, of which fewer are where there are no others; None where too few are left."""
    count, available = options.golden_size, calibration.available
    calibrated = min(calibration.count, available - count)
    if calibrated < (1 if calibration.few else MIN_IMAGES):
        return None
    draw = Draw(calibration.seed, calibrated)
    chosen = unlabelled(calibration.images, count, original.recipe, original.input_name, draw)
    prepared = isinstance(chosen, CalibrationInputs)
    if prepared and set(options.dynamic) - {BATCH}:
        return None
    golden = ImagesRequest(calibration.images, chosen.digest, count, labelled=False, prepared=prepared, draw=draw)
    if calibrated == calibration.count:
        return Taken(golden, calibration)
    fewer = resolve_calibration(
        calibration.images, calibrated, calibration.seed, original.labels, original.recipe, few=calibration.few
    )
    told = f"{calibration.images} holds {available} images: {calibrated} are calibrated on, {count} are golden inputs"
    return Taken(golden, fewer, (f"{told}; {calibration.count} to calibrate on were asked for",))


def _too_few(images: str, available: int, count: int) -> str:
    return (
        f"golden inputs are rendered: {images} holds {available} images, too few for {count} that nothing else is done with; "
        "--golden PATH takes others"
    )
