"""A labelled image set that renders itself from seeds, with numpy alone.

Every image shows one flat shape in front of a textured background, with clutter behind it, sometimes a bar or a blob
in front of it, and then what a camera does: exposure, colour cast, blur, noise. `render(split, index)` is a pure
function of `(VERSION, split, index)`, so the set needs no files, no download and no licence, and a held-out image
can't leak into training: the splits draw from disjoint seeds.

Difficulty is graded: each image draws how hard it may get, and that bounds how far contrast, size, blur, noise,
texture, clutter and occlusion go. No label is ever wrong, but some images are near the limit of what can be told, and
those are the ones that a quantised model flips first.

Only raw bits of the PCG64 generator are used, whose stream numpy promises to keep. Pixels may still differ by a grey
level between machines, where `exp` or `sin` round differently. Geometry is in units of the image side, which spans
-0.5 to 0.5, x to the right and y downwards.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "SPLITS", "VERSION", "label", "render"]

Field = NDArray[np.float32]  # (H, W) one value per pixel, (3, H, W) one per pixel and colour, or (3, 1, 1) one colour

SPLITS: Final[tuple[str, ...]] = ("train", "calib", "test")
VERSION: Final[int] = 1

_MAX_INDEX: Final = 2**31
_MIN_SIZE, _MAX_SIZE = 16, 1024
_REACH: Final = 0.43  # an object stays within this of the centre, which a 7/8 centre crop keeps
_LINE: Final = (0.05, 0.3), (0.005, 0.014)  # clutter: half length from, to; half width from, to
_BLOB: Final = (0.0, 0.05), (0.015, 0.05)
_IMAGES, _LABELS = 0, 1  # the two uses of a seed


class _Draws:
    """Random numbers from one seed, made of raw bits; `hardness`, 0 … 1, is how hard the image may get."""

    def __init__(self, entropy: Sequence[int]) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))
        self._queue: Iterator[float] = iter(())
        self.hardness = self.unit()

    def unit(self) -> float:
        """Draw from [0, 1)."""
        for value in self._queue:
            return value
        raw = np.asarray(self._bits.random_raw(128), dtype=np.uint64)
        self._queue = iter(((raw >> np.uint64(11)) * 2.0**-53).tolist())
        return self.unit()

    def between(self, low: float, high: float) -> float:
        """Draw from [low, high)."""
        return low + (high - low) * self.unit()

    def graded(self, easy: float, hard: float) -> float:
        """Draw between `easy` and, as far as the hardness lets it go, `hard`."""
        return easy + (hard - easy) * self.hardness * math.sqrt(self.unit())

    def pick(self, n: int) -> int:
        """Draw one of 0 … n-1, all equally likely."""
        return int(self.unit() * n)

    def direction(self) -> NDArray[np.float64]:
        """Draw a vector (3,) of root mean square 1: a contrast that is mostly brightness, partly hue."""
        vector = np.array([self.between(0.1, 1.9) for _ in range(3)])
        sign = 1.0 if self.unit() < 0.5 else -1.0
        unit: NDArray[np.float64] = vector * (sign * math.sqrt(3.0 / float(vector @ vector)))
        return unit

    def noise(self, shape: tuple[int, ...]) -> Field:
        """Draw float32 noise of mean 0 and variance 1: the sum of four 16-bit uniforms, nearly normal."""
        raw = np.asarray(self._bits.random_raw(math.prod(shape)), dtype=np.uint64)
        total: Field = raw.view(np.uint16).reshape(4, *shape).sum(axis=0, dtype=np.int32).astype(np.float32)
        return (total - np.float32(131070.0)) * np.float32(math.sqrt(3.0) / 65536.0)


# ---- shapes: signed distance (negative inside) in units of the shape's radius; v in [0, 1) varies the shape ----------


def _length(x: Field, y: Field) -> Field:
    length: Field = np.sqrt(x * x + y * y)
    return length


def _both(a: Field, b: Field) -> Field:
    """Intersect two distances."""
    larger: Field = np.maximum(a, b)
    return larger


def _either(a: Field, b: Field) -> Field:
    """Unite two distances."""
    smaller: Field = np.minimum(a, b)
    return smaller


def _star(x: Field, y: Field, points: int, inner: float, rounding: float) -> Field:
    """Give the distance to a star with `points` tips at radius 1, valleys at `inner`, and rounded tips."""
    half = math.pi / points
    angle: Field = np.arctan2(y, x)
    angle -= np.round(angle * (0.5 / half)) * (2 * half)
    radius = _length(x, y)
    tip = 1.0 - rounding / math.cos(half)
    along: Field = radius * np.cos(angle) - tip
    across: Field = radius * np.abs(np.sin(angle))
    edge_x, edge_y = inner * tip * math.cos(half) - tip, inner * tip * math.sin(half)
    t: Field = np.clip((along * edge_x + across * edge_y) / (edge_x**2 + edge_y**2), 0.0, 1.0)
    gap_x: Field = along - t * np.float32(edge_x)
    gap_y: Field = across - t * np.float32(edge_y)
    signed: Field = np.copysign(_length(gap_x, gap_y), along * edge_y - across * edge_x)
    return signed - np.float32(rounding)


def _polygon(sides: int, x: Field, y: Field, v: float) -> Field:
    return _star(x, y, sides, math.cos(math.pi / sides), 0.02 + 0.16 * v**2)


def _pointed_star(points: int, x: Field, y: Field, v: float) -> Field:
    return _star(x, y, points, 0.12 + 0.06 * points + 0.18 * v, 0.03)


def _circle(x: Field, y: Field, v: float) -> Field:
    return _length(x, y) - np.float32(0.88 + 0.08 * v)


def _ring(x: Field, y: Field, v: float) -> Field:
    width = 0.16 + 0.16 * v
    from_line: Field = np.abs(_length(x, y) - np.float32(0.95 - width))
    return from_line - np.float32(width)


def _box(x: Field, y: Field, half_x: float, half_y: float) -> Field:
    return _both(np.abs(x) - np.float32(half_x), np.abs(y) - np.float32(half_y))


def _cross(x: Field, y: Field, v: float) -> Field:
    arm = 0.22 + 0.18 * v
    return _either(_box(x, y, 0.92, arm), _box(x, y, arm, 0.92))


def _crescent(x: Field, y: Field, v: float) -> Field:
    bite = np.float32(0.78) - _length(x - np.float32(0.40 + 0.2 * v), y)
    return _both(_length(x, y) - np.float32(0.95), bite)


def _heart(x: Field, y: Field, v: float) -> Field:
    """Unite a square on its corner with a disc on each of its two upper sides."""
    half = np.float32(0.46 + 0.06 * v)
    root = np.float32(math.sqrt(0.5))
    lowered = np.float32(0.15) - y
    a, b = (lowered + x) * root, (lowered - x) * root
    discs = _either(_length(a - half, b), _length(a, b - half)) - half
    return _either(discs, _both(np.abs(a), np.abs(b)) - half)


def _arrow(x: Field, y: Field, v: float) -> Field:
    shaft = _box(x + np.float32(0.35), y, 0.6, 0.14 + 0.12 * v)
    slope = math.hypot(0.9, 0.72)
    side = np.abs(y) * np.float32(0.9 / slope) + (x - np.float32(0.95)) * np.float32(0.72 / slope)
    return _either(shaft, _both(np.float32(0.05) - x, side))


_SHAPES: Final[dict[str, Callable[[Field, Field, float], Field]]] = {
    "circle": _circle,
    "ring": _ring,
    "triangle": partial(_polygon, 3),
    "square": partial(_polygon, 4),
    "pentagon": partial(_polygon, 5),
    "hexagon": partial(_polygon, 6),
    "five-pointed star": partial(_pointed_star, 5),
    "six-pointed star": partial(_pointed_star, 6),
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
}

CLASSES: Final[tuple[str, ...]] = tuple(_SHAPES)


# ---- building blocks of a scene --------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Field, Field]:
    """Give the pixel centres as x, y of shape (size, size)."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    x: Field = np.tile(axis.astype(np.float32), (size, 1))
    y: Field = np.ascontiguousarray(x.T)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=64)
def _upsampler(size: int, cells: int) -> Field:
    """Give the (size, cells) matrix that interpolates `cells` values to `size` pixels, smoothly."""
    pixel = (np.arange(size) + 0.5) / size * (cells - 1)
    weight = np.exp(-2.0 * (pixel[:, None] - np.arange(cells)[None, :]) ** 2)
    matrix: Field = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _blur(image: Field, sigma: float) -> Field:
    """Blur a (3, H, W) image by a Gaussian of `sigma` pixels, renormalised where it meets the border."""
    pixel = np.arange(image.shape[-1])
    exponent = (pixel[:, None] - pixel[None, :]) ** 2 * (-0.5 / sigma**2)
    weight = np.where(exponent > -10.0, np.exp(np.maximum(exponent, -10.0)), 0.0)
    matrix: Field = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    blurred: Field = np.matmul(np.matmul(matrix, image), matrix.T)
    return blurred


def _half_range(pattern: Field) -> Field:
    clipped: Field = np.clip(pattern, np.float32(-0.5), np.float32(0.5))
    return clipped


def _texture(draws: _Draws, size: int) -> Field | None:
    """Draw a pattern of shape (size, size) within -0.5 … 0.5; None is plain."""
    kind = draws.pick(5)
    if kind == 0:
        return None
    x, y = _grid(size)
    turn, phase = draws.between(0.0, 2 * math.pi), draws.between(0.0, 2 * math.pi)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    if kind == 1:
        return (x * cos + y * sin) * np.float32(0.7)
    if kind == 2:
        cells = 3 + draws.pick(8)
        up = _upsampler(size, cells)
        smooth: Field = np.matmul(np.matmul(up, draws.noise((cells, cells))), up.T)
        return _half_range(smooth * np.float32(0.45))
    frequency = np.float32(2 * math.pi * draws.between(3.0, 11.0))
    sharpness = np.float32(draws.between(0.5, 3.0))
    wave: Field = np.sin((x * cos + y * sin) * frequency + np.float32(phase))
    if kind == 3:
        return _half_range(wave * sharpness)
    other: Field = np.sin((y * cos - x * sin) * frequency)
    return _half_range(wave * other * (2 * sharpness))


def _moved(colour: NDArray[np.float64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move a colour (3,) by `step`, the other way in each channel that would leave 0 … 1."""
    there = colour + step
    moved: NDArray[np.float64] = np.clip(np.where((there < 0.02) | (there > 0.98), colour - step, there), 0.0, 1.0)
    return moved


def _colour(values: NDArray[np.float64]) -> Field:
    planes: Field = values.astype(np.float32).reshape(3, 1, 1)
    return planes


def _layer(draws: _Draws, size: int, colour: NDArray[np.float64], amplitude: float) -> Field:
    """Draw a surface: `colour` (3,) with a pattern of the given peak-to-peak amplitude; (3, H, W) or (3, 1, 1)."""
    pattern = _texture(draws, size)
    if pattern is None:
        return _colour(colour)
    return pattern * _colour(draws.direction() * amplitude) + _colour(colour)


def _cover(image: Field, distance: Field, layer: Field, scale: float) -> None:
    """Paint `layer` on the (3, H, W) image in place where distance * scale, in pixels, is below zero."""
    alpha = np.clip(np.float32(0.5) - distance * np.float32(scale), 0.0, 1.0)
    image += alpha * (layer - image)


def _stroke(draws: _Draws, size: int, centre: tuple[float, float], half: tuple[float, float]) -> Field:
    """Give the distance (size, size), in image sides, to a box or a capsule of the given half sizes, turned anyhow."""
    x, y = _grid(size)
    turn, rounded = draws.between(0.0, math.pi), draws.unit() < 0.5
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u = (x - np.float32(centre[0])) * cos + (y - np.float32(centre[1])) * sin
    v = (y - np.float32(centre[1])) * cos - (x - np.float32(centre[0])) * sin
    if rounded:
        return _length(np.maximum(np.abs(u) - np.float32(half[0]), 0.0), v) - np.float32(half[1])
    return _box(u, v, *half)


# ---- the scene -------------------------------------------------------------------------------------------------------


def _add_clutter(draws: _Draws, image: Field, ground: NDArray[np.float64], contrast: float) -> None:
    """Paint up to seven lines, blobs and fragments on the (3, H, W) image, in place."""
    size = image.shape[-1]
    for _ in range(int(draws.graded(0.0, 8.0))):
        centre = draws.between(-0.5, 0.5), draws.between(-0.5, 0.5)
        length, width = _LINE if draws.unit() < 0.5 else _BLOB
        half = draws.between(*length), draws.between(*width)
        colour = _moved(ground, draws.direction() * contrast * draws.between(0.3, 1.1))
        _cover(image, _stroke(draws, size, centre, half), _colour(colour), size)


def _add_object(draws: _Draws, image: Field, label: int, fill: Field) -> tuple[float, float, float]:
    """Paint the object of class `label` on the image, in place; returns its centre x, y and its radius."""
    size = image.shape[-1]
    radius = draws.graded(0.34, 0.15) * draws.between(0.85, 1.0)
    stretch, shear = math.exp(draws.between(-0.13, 0.13)), draws.between(-0.12, 0.12)
    turn = draws.between(0.0, 2 * math.pi)
    room = _REACH - 1.2 * radius
    cx, cy = draws.between(-room, room), draws.between(-room, room)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    x, y = _grid(size)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    u = (dx * cos + dy * sin) * np.float32(stretch / radius)
    v = (dy * cos - dx * sin) * np.float32(1.0 / (stretch * radius))
    distance = _SHAPES[CLASSES[label]](u + v * np.float32(shear), v, draws.unit())
    _cover(image, distance, fill, radius * size)
    return cx, cy, radius


def _add_occluder(draws: _Draws, image: Field, place: tuple[float, float, float], colour: NDArray[np.float64]) -> None:
    """Paint a bar across the object, or a blob over a part of its outline, in place."""
    cx, cy, radius = place
    size = image.shape[-1]
    angle = draws.between(0.0, 2 * math.pi)
    is_bar = draws.unit() < 0.5
    away = radius * (draws.between(0.0, 0.6) if is_bar else draws.between(0.6, 1.0))
    half = (
        (radius * 2.0, radius * draws.between(0.05, 0.15))
        if is_bar
        else (radius * draws.between(0.0, 0.3), radius * draws.between(0.15, 0.35))
    )
    centre = cx + away * math.cos(angle), cy + away * math.sin(angle)
    _cover(image, _stroke(draws, size, centre, half), _colour(colour), size)


def _photograph(draws: _Draws, image: Field) -> NDArray[np.uint8]:
    """Turn a (3, H, W) scene of 0 … 1 into (H, W, 3) bytes: blur, gamma, colour cast, noise."""
    size = image.shape[-1]
    sigma = draws.graded(0.2, 1.5) * size / 80.0
    gamma = math.exp(draws.between(-0.35, 0.35))
    gain = np.array([draws.between(0.72, 1.1) for _ in range(3)])
    grain = draws.graded(0.0, 0.065) * draws.unit()
    light = np.maximum(_blur(image, sigma), np.float32(1e-3))
    exposed = np.exp(np.log(light) * np.float32(gamma)) * _colour(gain)
    exposed += draws.noise(image.shape) * np.float32(grain)
    pixels = np.clip(exposed * np.float32(255.0) + np.float32(0.5), 0.0, 255.0).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _scene(draws: _Draws, label: int, size: int) -> Field:
    """Draw the scene of one object of class `label`: (3, size, size), linear 0 … 1."""
    contrast = draws.graded(0.5, 0.08) * draws.between(0.85, 1.0)
    ground = np.array([draws.between(0.15, 0.85) for _ in range(3)])
    front = _moved(ground, draws.direction() * contrast)
    image = np.empty((3, size, size), dtype=np.float32)
    image[:] = _layer(draws, size, ground, contrast * draws.graded(0.0, 0.85))
    _add_clutter(draws, image, ground, contrast)
    place = _add_object(draws, image, label, _layer(draws, size, front, contrast * draws.graded(0.0, 0.65)))
    if draws.unit() < 0.65 * draws.hardness:
        _add_occluder(draws, image, place, _moved(ground, draws.direction() * contrast * draws.between(0.0, 1.0)))
    return image


@lru_cache(maxsize=256)
def _labels(split: int, block: int) -> tuple[int, ...]:
    """Shuffle the classes for one block of len(CLASSES) consecutive images."""
    draws = _Draws((VERSION, split, _LABELS, block))
    return tuple(sorted(range(len(CLASSES)), key=lambda _: draws.unit()))


def label(split: str, index: int) -> int:
    """Return the label of an image without rendering it: an index into `CLASSES`.

    Args:
        split: One of `SPLITS`.
        index: Which image, from 0 to 2**31 - 1.

    Raises:
        ValueError: The split is unknown, or the index is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    index = operator.index(index)
    if not 0 <= index < _MAX_INDEX:
        raise ValueError(f"index {index} is out of range; it must be from 0 to {_MAX_INDEX - 1}")
    block, position = divmod(index, len(CLASSES))
    return _labels(SPLITS.index(split), block)[position]


def render(split: str, index: int, size: int = 80) -> tuple[NDArray[np.uint8], int]:
    """Render one labelled image.

    The result depends on `VERSION` and the arguments alone, not on what was rendered before. Labels are shuffled
    within blocks of `len(CLASSES)` consecutive indices, so every run of images is balanced. The same index at another
    size is the same scene with other noise.

    Args:
        split: One of `SPLITS`.
        index: Which image, from 0 to 2**31 - 1.
        size: Height and width in pixels, from 16 to 1024.

    Returns:
        The image, (size, size, 3) uint8 RGB, and its label, an index into `CLASSES`.

    Raises:
        ValueError: The split is unknown, or the index or the size is out of range.
    """
    chosen, size = label(split, index), operator.index(size)
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise ValueError(f"size {size} is out of range; it must be from {_MIN_SIZE} to {_MAX_SIZE} pixels")
    draws = _Draws((VERSION, SPLITS.index(split), _IMAGES, operator.index(index)))
    return _photograph(draws, _scene(draws, chosen, size)), chosen
