"""What surrounds a network: its classes, its labels, its preprocessing, and images to settle it on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import paths
from deploykit.artifact import Preprocess
from deploykit.data import rendered
from deploykit.data.preprocess import CROP_MODES, prepare
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models.original import SourceOptions

if TYPE_CHECKING:
    import torch

#: What Pillow resizes with.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
#: What images are prepared to where nothing is said: ImageNet's usual.
USUAL: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
#: Channels that images can be turned to: grey, and their own three colours. Of others there are prepared inputs only.
GREY, COLOURS = 1, 3
#: What is said of images in grey where nothing is: half of the range, around its middle.
USUAL_GREY = {**USUAL, "mean": (0.5,), "std": (0.5,)}
#: Images that statistics of random networks are settled on.
SAMPLE = 16


def usual(channels: int) -> dict[str, Any]:
    """Return what images are prepared to where nothing is said, by channels; where no image has as many, nothing is done."""
    known = {COLOURS: USUAL, GREY: USUAL_GREY}
    plain = {**USUAL, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    return {**known.get(channels, plain), "input_size": (channels, *USUAL["input_size"][1:])}


def notes_of(recipe: Preprocess, options: SourceOptions) -> tuple[str, ...]:
    """Return what to tell of images that aren't as most networks take them."""
    if recipe.input_size[0] != GREY:
        return ()
    told = (
        ""
        if options.mean and options.std
        else f"; mean {recipe.mean[0]:g} and std {recipe.std[0]:g} unless --mean and --std say others"
    )
    return (f"one channel: images are turned to grey{told}",)


def class_count(
    options: SourceOptions,
    state: Mapping[str, torch.Tensor] | None,
    classifier: object,
    pretrained: int,
) -> int:
    """Return the size of the head: as asked, else as the checkpoint's head has it, else as the pretrained model has it.

    Args:
        options: Say it outright, or not.
        state: The checkpoint, where there is one.
        classifier: Name of the last layer (or several) in timm's configuration.
        pretrained: Classes of the pretrained model.

    Raises:
        UsageError: Fewer than none were asked for.
    """
    if options.num_classes is not None:
        if options.num_classes < 0:
            raise UsageError(f"--num-classes {options.num_classes}: from 1 (0 leaves the head off)")
        return options.num_classes
    names = [classifier] if isinstance(classifier, str) else [str(name) for name in _listed(classifier)]
    for name in names:
        weight = (state or {}).get(f"{name}.weight")
        if weight is not None:
            return int(weight.shape[0])
    return 0 if state is not None and names else pretrained


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, (tuple, list)) else ()


def labels_of(options: SourceOptions, classes: int) -> tuple[str, ...]:
    """Return the class names: of the file, of ImageNet where the head is its size, else numbered.

    Raises:
        UsageError: The file doesn't exist or names another number of classes.
        BadInputError: It is no text.
    """
    if options.labels is not None:
        path = Path(options.labels)
        paths.check_file(path, "--labels")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise BadInputError(f"{path} is no UTF-8 text: {error}") from error
        names = tuple(line for line in lines if line)
        if len(names) != classes:
            raise UsageError(f"{path} names {len(names)} classes; the model has {classes}")
        if len(set(names)) != len(names):
            raise UsageError(f"{path} names {next(name for name in names if names.count(name) > 1)!r} more than once")
        return names
    return _imagenet(classes) or numbered(classes)


def numbered(classes: int) -> tuple[str, ...]:
    """Return what classes are called that nobody named."""
    return tuple(f"class {index}" for index in range(classes))


def _imagenet(classes: int) -> tuple[str, ...]:
    from timm.data import ImageNetInfo

    sizes = {1000: "imagenet-1k"}
    if classes not in sizes:
        return ()
    info = ImageNetInfo(sizes[classes])
    return tuple(f"{info.index_to_description(index)} ({info.index_to_label_name(index)})" for index in range(classes))


def preprocess_of(config: Mapping[str, Any], options: SourceOptions) -> Preprocess:
    """Return timm's resolved *test* configuration with the caller's changes.

    Raises:
        UsageError: An interpolation, crop mode, size or statistic that isn't supported.
    """
    from timm.data import resolve_data_config

    resolved = resolve_data_config({}, pretrained_cfg=dict(config), use_test_size=True)
    if options.image_size is not None and options.image_size < 1:
        raise UsageError(f"--image-size {options.image_size}: from 1")
    size = (options.image_size, options.image_size) if options.image_size else tuple(resolved["input_size"][1:])
    recipe = Preprocess(
        input_size=(int(resolved["input_size"][0]), *(int(side) for side in size)),
        interpolation=options.interpolation or str(resolved["interpolation"]),
        crop_pct=float(options.crop_pct if options.crop_pct is not None else resolved["crop_pct"]),
        crop_mode=str(resolved["crop_mode"]),
        mean=tuple(float(value) for value in options.mean or resolved["mean"]),
        std=tuple(float(value) for value in options.std or resolved["std"]),
    )
    if not 0 < recipe.crop_pct <= 1 or any(value <= 0 for value in recipe.std):
        raise UsageError(f"crop_pct must be in (0, 1] and std above 0, found {recipe.crop_pct} and {recipe.std}")
    if recipe.interpolation not in INTERPOLATIONS or recipe.crop_mode not in CROP_MODES:
        raise UsageError(
            f"interpolation {recipe.interpolation!r} with crop mode {recipe.crop_mode!r} isn't supported: "
            f"one of {', '.join(INTERPOLATIONS)}, with {', '.join(CROP_MODES)}"
        )
    channels = recipe.input_size[0]
    if not len(recipe.mean) == len(recipe.std) == channels or not all(map(math.isfinite, recipe.mean + recipe.std)):
        example = ",".join(["0.5"] * channels)
        raise UsageError(
            f"mean and std are {channels} finite numbers each, found {recipe.mean} and {recipe.std}",
            Hint(f"--mean {example} --std {example}", "as the network was trained"),
        )
    return recipe


def sample_images(recipe: Preprocess) -> torch.Tensor:
    """Return rendered images, prepared: float32 [16, C, H, W]."""
    import torch

    size = max(80, *recipe.resized)
    images = (rendered.render("calib", index, size)[0] for index in range(SAMPLE))
    return torch.from_numpy(prepare(images, recipe))
