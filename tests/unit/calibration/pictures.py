"""Images for tests of calibration: natural-like ones from a seed, and noise as people make it."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploykit.artifact import Preprocess

RECIPE = Preprocess((3, 32, 32), "bicubic", 0.875, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def natural(seed: int, size: int = 32) -> NDArray[np.uint8]:
    """Draw an image with the spectrum of photographs, amplitude over frequency, and channels that go together."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    shared, *own = (np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real for _ in range(4))
    planes = np.stack([shared + 0.4 * plane for plane in own], -1)
    planes = planes / planes.std() * rng.uniform(30, 60) + rng.uniform(90, 160)
    image: NDArray[np.uint8] = np.clip(planes, 0, 255).astype(np.uint8)
    return image


def uniform(seed: int, size: int, *, is_grey: bool = False) -> NDArray[np.uint8]:
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 1 if is_grey else 3), np.uint8)
    return np.repeat(values, 3, 2) if is_grey else values


def compressed(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def crops(count: int, size: int = 32, start: int = 0) -> NDArray[np.uint8]:
    return np.stack([natural(start + seed, size) for seed in range(count)])


def titles(count: int) -> list[str]:
    return [f"image {index}" for index in range(count)]
