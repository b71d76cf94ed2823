"""Decode image files to RGB, safely."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import optional, paths
from deploykit.errors import BadInputError, ResourceError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: A file that would decode to more pixels than this is refused unread (a decompression bomb).
MAX_PIXELS = 178_956_970
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
#: What the content may be, whatever the suffix says. Pillow knows more, and runs a program of its own for some (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
#: TIFF's tags for the bits of a sample, and for whether 0 is white or black.
_BITS, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def decode(path: Path) -> NDArray[np.uint8]:
    """Read an image as a viewer would show it: first frame, EXIF orientation applied, converted to RGB.

    Transparency is dropped and the colours beneath it stay, as in training. 16 bits of grey are scaled to 8.

    Returns:
        uint8 [height, width, 3].

    Raises:
        MissingComponentError: Pillow is not installed.
        BadInputError: The file is missing, unreadable, truncated, none of `FORMATS`, too large, or of 32-bit samples.
        ResourceError: There is no memory for it.
    """
    optional.check("PIL")
    from PIL import Image, ImageOps, UnidentifiedImageError

    reason = paths.fault(path)
    if reason:
        raise BadInputError(f"{paths.shown(path)} {reason.replace('does not exist', 'is missing')}")
    try:
        # Given the path, Pillow 13 maps TIFFs into memory, and those with an orientation of 5 to 8 by the wrong width.
        with _quiet(), path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            _check_size(path, image)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                return _from_16_bits(upright, getattr(image, "tag_v2", {}))
            return _rgb(upright)
    except BadInputError:
        raise
    except UnidentifiedImageError:
        raise BadInputError(f"{path} is no image, or none of {', '.join(FORMATS)}") from None
    except MemoryError as error:
        raise ResourceError(f"{path}: not enough memory to decode it") from error
    except Exception as error:  # a damaged file leads Pillow's parsers to any error there is
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInputError(f"{path} can't be decoded: {reason}") from error


def _check_size(path: Path, image: Picture) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadInputError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded")


def _rgb(image: Picture) -> NDArray[np.uint8]:
    """Convert as a viewer would, where Pillow's own conversion cuts off what exceeds 255."""
    if image.mode in {"I", "F"}:
        raise ValueError(f"samples of mode {image.mode!r} don't say what is white")
    return np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))


def _from_16_bits(image: Picture, tags: Mapping[int, Any]) -> NDArray[np.uint8]:
    """Scale 16 bits of grey, or the 12 that a TIFF may hold, to 8; Pillow leaves TIFF's inverted grey as it is."""
    bits = tags.get(_BITS, (16,))[0]
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    shown = ~grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
    return np.repeat(shown[..., None], 3, axis=2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings to itself: of metadata that it skips, and of sizes that are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
