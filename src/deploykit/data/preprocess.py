"""From an RGB image to the input tensor, exactly as Pillow and timm's test transform do it.

Two halves: `crop` (resize and cut, uint8, needs Pillow) and `normalize` (uint8 to float32, numpy alone), so that prepared
images can be stored small and be judged where Pillow is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from deploykit import optional
from deploykit.artifact import Preprocess
from deploykit.data.images import MAX_PIXELS
from deploykit.errors import BadInputError, Hint, UsageError

Size = tuple[int, int]


def _shorter_side(image: Size, wanted: Size) -> Size:
    """Bring the shorter side to its size and keep the aspect ratio; what is longer is cut."""
    (height, width), (short, across) = image, wanted
    if short == across:
        return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
    ratio = min(height / short, width / across)
    return round(height / ratio), round(width / ratio)


def _longer_side(image: Size, wanted: Size) -> Size:
    """Bring the longer side to its size and keep the aspect ratio; a border fills what is shorter."""
    ratio = max(image[0] / wanted[0], image[1] / wanted[1])
    return round(image[0] / ratio), round(image[1] / ratio)


def _both_sides(_image: Size, wanted: Size) -> Size:
    """Bring both sides to their sizes, whatever becomes of the aspect ratio."""
    return wanted


#: By crop mode, as timm calls them: (height, width) of an image and wanted, to what it is resized to before the centre is cut.
CROP_MODES: Mapping[str, Callable[[Size, Size], Size]] = {
    "center": _shorter_side,
    "squash": _both_sides,
    "border": _longer_side,
}


#: Of images: grey, and their three colours.
CHANNELS = (1, 3)


def check_channels(recipe: Preprocess) -> None:
    """Refuse a number of channels that no image has.

    Raises:
        UsageError: It is one.
    """
    channels = recipe.input_size[0]
    if channels not in CHANNELS:
        raise UsageError(
            f"{channels} channels: images have 1 or 3, so that inputs of {channels} can't be made of any",
            Hint("--golden FILE.npz", f"takes prepared inputs, float32 [N, {', '.join(map(str, recipe.input_size))}]"),
        )


def crop(image: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.uint8]:
    """Resize and cut the centre, as timm's test transform and torchvision do, to the pixel.

    Args:
        image: uint8 RGB [height, width, 3].
        recipe: What the model was trained for.

    Returns:
        uint8 [height, width, channels] of the recipe's input size; one channel is grey, as ITU-R 601 weighs the colours.

    Raises:
        MissingComponentError: Pillow is not installed.
        UsageError: The recipe names an interpolation or crop mode that isn't known, or channels that no image has.
        BadInputError: The image is so narrow that its long side would be resized to more than can be held.
    """
    optional.check("PIL")
    from PIL import Image

    filters = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    if recipe.interpolation not in filters or recipe.crop_mode not in CROP_MODES:
        known = f"{', '.join(filters)} and {', '.join(CROP_MODES)}"
        raise UsageError(f"unknown preprocessing {recipe.interpolation!r} / {recipe.crop_mode!r}; known: {known}")
    check_channels(recipe)
    size = image.shape[0], image.shape[1]
    height, width = CROP_MODES[recipe.crop_mode](size, recipe.resized)
    if not 0 < height * width <= MAX_PIXELS:
        told = f"resized to {width}x{height} before the crop"
        raise BadInputError(f"{size[1]}x{size[0]} pixels are too narrow: {told}")
    picture = Image.fromarray(image)
    coloured = picture.convert("L") if recipe.input_size[0] == 1 else picture
    resized = coloured.resize((width, height), filters[recipe.interpolation], reducing_gap=None)
    return _centre(np.atleast_3d(np.asarray(resized)), recipe)


def _centre(image: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.uint8]:
    """Cut the centre, after adding a border of the mean's colour where an image is too small; offsets round half to even."""
    height, width = recipe.input_size[1:]
    missing = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if any(missing):
        colour = np.asarray([round(255 * value) for value in recipe.mean], np.uint8)
        framed = np.empty((image.shape[0] + missing[0], image.shape[1] + missing[1], image.shape[2]), np.uint8)
        framed[:] = colour
        top, left = missing[0] // 2, missing[1] // 2
        framed[top : top + image.shape[0], left : left + image.shape[1]] = image
        image = framed
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def normalize(crops: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.float32]:
    """Scale to 0..1, subtract the mean, divide by the standard deviation.

    Args:
        crops: uint8 [N, height, width, channels].
        recipe: Holds mean and std.

    Returns:
        float32 [N, channels, height, width], contiguous.
    """
    mean = np.asarray(recipe.mean, np.float32)
    std = np.asarray(recipe.std, np.float32)
    scaled = (crops.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def prepare(images: Iterable[NDArray[np.uint8]], recipe: Preprocess) -> NDArray[np.float32]:
    """Crop and normalize a few images: uint8 [height, width, 3] each, to float32 [N, channels, height, width]."""
    return normalize(np.stack([crop(image, recipe) for image in images]), recipe)


def stretched(crops: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return crops at another size, uint8 [N, height, width, channels]: bicubic, antialiased, whatever their proportions."""
    from PIL import Image

    pictures = (Image.fromarray(crop[..., 0] if crop.shape[2] == 1 else crop) for crop in crops)
    resized = (picture.resize((width, height), Image.Resampling.BICUBIC) for picture in pictures)
    return np.stack([np.atleast_3d(np.asarray(picture)) for picture in resized])
