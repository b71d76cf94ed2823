"""Decode image files to RGB, safely."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import BadInputError
from deploykit.optional import require

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: A file that would decode to more pixels than this is refused unread (a decompression bomb).
MAX_PIXELS = 178_956_970
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def decode(path: Path) -> NDArray[np.uint8]:
    """Read an image as a viewer would show it: first frame, EXIF orientation applied, converted to RGB.

    Returns:
        uint8 [height, width, 3].

    Raises:
        MissingComponentError: Pillow is not installed.
        BadInputError: The file is missing, truncated, no image, or too large.
    """
    require("PIL")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _quiet(), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInputError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded")
            return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise BadInputError(f"{path} is missing") from None
    except UnidentifiedImageError:
        raise BadInputError(f"{path} is no image that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path} can't be decoded: {error}") from error


def _rgb(image: Picture) -> NDArray[np.uint8]:
    """Convert as a viewer would, where Pillow's own conversion cuts off what exceeds 255."""
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in {"I", "F"}:
        raise ValueError(f"samples of mode {image.mode!r} don't say what is white")
    return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings to itself: of metadata that it skips, and of sizes that are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
