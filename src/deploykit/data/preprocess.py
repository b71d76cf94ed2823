"""From an RGB image to the input tensor, exactly as Pillow and timm's test transform do it.

Two halves: `crop` (resize and cut, uint8, needs Pillow) and `normalize` (uint8 to float32, numpy alone), so that prepared
images can be stored small and be judged where Pillow is absent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.errors import UsageError
from deploykit.optional import require


def crop(image: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.uint8]:
    """Resize the short side and cut the centre.

    The output size of the long side is truncated and the offset of the crop rounded half to even, as torchvision does.

    Args:
        image: uint8 RGB [height, width, 3].
        recipe: What the model was trained for.

    Returns:
        uint8 [height, width, 3] of the recipe's input size.

    Raises:
        MissingComponentError: Pillow is not installed.
        UsageError: The recipe names an interpolation or crop mode that isn't known.
    """
    require("PIL")
    from PIL import Image

    filters = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    if recipe.interpolation not in filters or recipe.crop_mode != "center":
        raise UsageError(
            f"unknown preprocessing {recipe.interpolation!r} / {recipe.crop_mode!r}; known: {sorted(filters)}"
        )
    out_height, out_width = recipe.input_size[1:]
    if out_height != out_width:
        raise UsageError(f"inputs of {out_height}x{out_width} pixels: only square ones are prepared")
    height, width = image.shape[:2]
    short = recipe.resized_short_side
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    resized = Image.fromarray(image).resize(size, filters[recipe.interpolation], reducing_gap=None)
    left, top = round((size[0] - out_width) / 2), round((size[1] - out_height) / 2)
    return np.asarray(resized.crop((left, top, left + out_width, top + out_height)))


def normalize(crops: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.float32]:
    """Scale to 0..1, subtract the mean, divide by the standard deviation.

    Args:
        crops: uint8 [N, height, width, 3].
        recipe: Holds mean and std.

    Returns:
        float32 [N, 3, height, width], contiguous.
    """
    mean = np.asarray(recipe.mean, np.float32)
    std = np.asarray(recipe.std, np.float32)
    scaled = (crops.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def prepare(images: Iterable[NDArray[np.uint8]], recipe: Preprocess) -> NDArray[np.float32]:
    """Crop and normalize a few images: uint8 [height, width, 3] each, to float32 [N, 3, height, width]."""
    return normalize(np.stack([crop(image, recipe) for image in images]), recipe)
