"""Decode image files to RGB, safely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import BadInputError
from deploykit.optional import require

#: A file that would decode to more pixels than this is refused unread (a decompression bomb).
MAX_PIXELS = 178_956_970
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def decode(path: Path) -> NDArray[np.uint8]:
    """Read an image as a viewer would show it: first frame, EXIF orientation applied, converted to RGB.

    Returns:
        uint8 [height, width, 3].

    Raises:
        MissingComponent: Pillow is not installed.
        BadInputError: The file is missing, truncated, no image, or too large.
    """
    require("PIL")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInputError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded")
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing") from None
    except UnidentifiedImageError:
        raise BadInputError(f"{path} is no image that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path} can't be decoded: {error}") from error
