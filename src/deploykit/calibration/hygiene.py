"""What makes a set of images unfit to calibrate on: too few, the same twice, constant, noise, values that no image gives.

Ranges measured on such a set are not those of images, and an int8 model made of them fails without saying why. So each is a
hard stop. Everything works on crops, uint8 [height, width, channels]; prepared inputs are checked for their values first and
turned back into crops.

What can't be told from pixels: blue and red changed places, and images of another kind than the model will see.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError, Hint, UsageError

Pixels = NDArray[np.float32]  # [height, width, channels], values 0..1

#: Fewer images leave the extremes of ranges to chance.
MIN_IMAGES: Final = 32
USUAL_IMAGES: Final = 300
#: Offenders of a kind that are named; the rest is counted.
NAMED: Final = 5
#: Smallest standard deviation of an image's liveliest channel, values 0..1: one grey level.
MIN_DEVIATION: Final = 1 / 255
#: Where a set's channel means must lie, values 0..1, and what its channels must vary by at least. Wide on purpose: sketches on
#: white, night and microscopy are images. What lies outside is no light at all, such as values 0..1 that were stored as uint8.
MEAN_BOUNDS: Final = (0.02, 0.98)
MIN_SET_DEVIATION: Final = 0.02
#: How far prepared inputs may leave what pixels 0..1 become: interpolation in floating point overshoots at edges.
OVERSHOOT: Final = 0.25
#: Noise below this standard deviation, values 0..1, is a camera's in front of a plain wall; random data is stronger.
MIN_NOISE: Final = 0.04
#: See `Grain`. An image is noise below `FLAT` and either of the others; a set is, where most images are below `FLAT_SET`.
FLAT: Final = 2.0
FINE: Final = 1.3
HUE: Final = 0.2
FLAT_SET: Final = 2.5
PEAK: Final = 0.07
MIN_SIDE: Final = 16


@dataclass(frozen=True)
class Grain:
    """How variance is spread over scales and channels, as means over blocks of pixels show it.

    The mean of n independent values has 1/n of their variance, while neighbours in an image go together. So `flat` and `fine`
    are 1 for white noise. Of the photographs of CIFAR-10, 98 in 100 have a `flat` of 3 to 14, a `fine` of 2.9 to 3.9 and a
    `hue` above 0.45; sharp foliage has a `fine` down to 1.5. Noise that was resized keeps a `flat` of 1 to 2 though its
    neighbours are alike; JPEG makes its channels alike and leaves `flat` nearly as it is.

    Attributes:
        flat: Variance of a grid of 4 by 4 blocks over that of 16 by 16 blocks, times the ratio of block sizes; 16 at most.
        fine: Variance of blocks of 2 by 2 pixels over that of pixels, times 4; 4 at most.
        hue: Mean correlation, without its sign, of the channels over the 16 by 16 blocks; 1 where there is one channel.
        peak: Largest share of the variance at one frequency, which tells meshes and checks from noise; 1 where `flat` says
            enough.
        deviation: Standard deviation of all values about their channel's mean.
    """

    flat: float
    fine: float
    hue: float
    peak: float
    deviation: float

    @classmethod
    def of(cls, pixels: Pixels) -> Grain:
        """Measure an image. One that is too small or constant shows the opposite of noise."""
        side, total = min(pixels.shape[:2]), _variance(pixels)
        small, large = max(1, side // 16), side // 4
        cells = _blocks(pixels, small)
        if side < MIN_SIDE or min(total, _variance(cells)) <= 0.0:
            return cls(math.inf, math.inf, 1.0, 1.0, math.sqrt(total))
        flat = _variance(_blocks(pixels, large)) / _variance(cells) * (large / small) ** 2
        fine = 4 * _variance(_blocks(pixels, 2)) / total
        return cls(flat, fine, _hue(cells), _peak(pixels) if flat < FLAT_SET else 1.0, math.sqrt(total))

    @property
    def is_noise(self) -> bool:
        """Tell whether no photograph looks like this."""
        return self.is_flat and self.flat < FLAT and (self.fine < FINE or self.hue < HUE)

    @property
    def is_flat(self) -> bool:
        """Tell whether this may be noise that was resized, or a fine texture without a period."""
        return self.deviation >= MIN_NOISE and self.flat < FLAT_SET and self.peak < PEAK


def _blocks(pixels: Pixels, size: int) -> Pixels:
    """Return means over blocks; what is left over at the right and at the bottom is cut."""
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    whole = pixels[: rows * size, : columns * size]
    means: Pixels = whole.reshape(rows, size, columns, size, -1).mean((1, 3))
    return means


def _variance(pixels: Pixels) -> float:
    """Return the mean over channels of each channel's variance."""
    return float(pixels.var((0, 1), dtype=np.float64).mean())


def _hue(cells: Pixels) -> float:
    values = cells.reshape(-1, cells.shape[-1]).astype(np.float64)
    values = values[:, values.std(0) > 0.0]
    channels = values.shape[1]
    if channels < 2:
        return 1.0
    pairs = np.abs(np.corrcoef(values.T))[np.triu_indices(channels, 1)]
    return float(pairs.mean())


def _peak(pixels: Pixels) -> float:
    """Return the largest share of the variance at one frequency, which is stored once or as two halves that are alike."""
    waves = np.abs(np.fft.fft2(pixels - pixels.mean((0, 1)), axes=(0, 1))) ** 2
    shares = waves.sum(-1) / waves.sum()
    return 2 * float(shares.max())


@dataclass(frozen=True)
class Look:
    """What one image shows.

    Attributes:
        pixels: Hash of its pixels.
        means: Of each channel, values 0..1.
        squares: Means of each channel's squares.
        grain: How its variance is spread.
    """

    pixels: str
    means: tuple[float, ...]
    squares: tuple[float, ...]
    grain: Grain

    @classmethod
    def at(cls, crop: NDArray[np.uint8]) -> Look:
        """Look at uint8 [height, width, channels]."""
        pixels = crop.astype(np.float32) / np.float32(255)
        means = pixels.mean((0, 1), dtype=np.float64)
        squares = means**2 + pixels.var((0, 1), dtype=np.float64)
        return cls(_hash(crop), tuple(means.tolist()), tuple(squares.tolist()), Grain.of(pixels))

    @property
    def deviation(self) -> float:
        """Standard deviation of the channel that varies most, values 0..1."""
        return max(math.sqrt(max(0.0, s - m * m)) for m, s in zip(self.means, self.squares, strict=True))


def _hash(crop: NDArray[np.uint8]) -> str:
    return hashlib.sha256(crop.tobytes()).hexdigest()


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Attributes:
        kind: "duplicates", "constant", "noise", "overlap", "statistics", "not finite" or "range".
        total: How many.
        told: What is wrong, with numbers.
        named: The first of what is at fault.
        hint: What to do.
    """

    kind: str
    total: int
    told: str
    named: tuple[str, ...]
    hint: Hint

    @property
    def text(self) -> str:
        """The finding as people read it."""
        rest = self.total - len(self.named)
        more = [f"{rest} more"] if rest else []
        return f"{self.told}: {', '.join([*self.named, *more])}"


@dataclass(frozen=True)
class Examination:
    """What a set of images shows, and what is wrong with it.

    Attributes:
        count: Number of images.
        means: Of each channel over the set, values 0..1; none where values could not be looked at.
        deviations: Standard deviation of each channel over all pixels of the set.
        findings: One for each kind of fault.
    """

    count: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    findings: tuple[Finding, ...]

    def refuse(self, place: str) -> None:
        """Raise BadInputError with all findings; do nothing where there are none."""
        if not self.findings:
            return
        told = [finding.text for finding in self.findings]
        message = (
            f"{place}: {told[0]}" if len(told) == 1 else "\n  ".join([f"{place} is not fit to calibrate on:", *told])
        )
        raise BadInputError(message, *dict.fromkeys(finding.hint for finding in self.findings))


def check_count(place: str, count: int, available: int, *, few: bool) -> None:
    """Refuse fewer than `MIN_IMAGES` images unless `few` are asked for.

    Raises:
        UsageError: `count` of `available` images are too few.
    """
    if count >= MIN_IMAGES or few:
        return
    if available >= MIN_IMAGES:
        hint = Hint(f"--calib-size {min(USUAL_IMAGES, available)}", f"takes as many; there are {available}")
    else:
        hint = Hint("--calib DIR", f"takes images from another place; {USUAL_IMAGES} are usual")
    told = f"{place}: {count} images are too few to calibrate on; at least {MIN_IMAGES} show what ranges are"
    raise UsageError(told, hint, Hint("--calib-few", "takes them all the same"))


def examine(
    crops: Iterable[NDArray[np.uint8]],
    titles: Sequence[str],
    recipe: Preprocess,
    evaluation: Iterable[NDArray[np.uint8]] = (),
) -> Examination:
    """Look at crops, one at a time.

    Args:
        crops: uint8 [height, width, channels] each, or all of them as an array.
        titles: What people know each by.
        recipe: Its mean and std say what the statistics are after normalization.
        evaluation: Crops that are judged on, prepared alike.

    Raises:
        BadInputError: There are no images.
    """
    looks = tuple(Look.at(crop) for crop in crops)
    if not looks:
        raise BadInputError("there are no calibration images")
    means = np.mean([look.means for look in looks], 0)
    deviations = np.sqrt(np.maximum(np.mean([look.squares for look in looks], 0) - means**2, 0.0))
    found = (
        _constant(looks, titles),
        _duplicates(looks, titles),
        _noise(looks, titles),
        _statistics(means.tolist(), deviations.tolist(), recipe),
        _overlap(looks, titles, evaluation),
    )
    findings = tuple(finding for finding in found if finding is not None)
    return Examination(len(looks), tuple(means.tolist()), tuple(deviations.tolist()), findings)


def examine_inputs(
    inputs: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    titles: Sequence[str],
    recipe: Preprocess,
    evaluation: Iterable[NDArray[np.uint8]] = (),
) -> Examination:
    """Look at inputs that were prepared already: float32 [channels, height, width] each. See `examine`.

    Where values are not finite, or not what the recipe makes of pixels, nothing else is looked at.
    """
    found = _values(inputs, titles, recipe)
    if found is not None:
        return Examination(len(inputs), (), (), (found,))
    return examine((to_crop(one, recipe) for one in inputs), titles, recipe, evaluation)


def to_crop(one: NDArray[np.float32], recipe: Preprocess) -> NDArray[np.uint8]:
    """Return the crop that `one`, float32 [channels, height, width], was normalized from: uint8 [height, width, channels]."""
    pixels = one.transpose(1, 2, 0) * np.asarray(recipe.std, np.float32) + np.asarray(recipe.mean, np.float32)
    return np.ascontiguousarray(np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(255)), np.uint8)


# ---- findings --------------------------------------------------------------------------------------------------------


def _finding(kind: str, told: str, offenders: Sequence[str], hint: Hint) -> Finding | None:
    if not offenders:
        return None
    return Finding(kind, len(offenders), told, tuple(offenders[:NAMED]), hint)


def _images(count: int, total: int) -> str:
    return f"{count} of {total} image{'s' if total > 1 else ''} {'is' if count == 1 else 'are'}"


def _constant(looks: Sequence[Look], titles: Sequence[str]) -> Finding | None:
    which = [title for look, title in zip(looks, titles, strict=True) if look.deviation < MIN_DEVIATION]
    told = f"{_images(len(which), len(looks))} of one colour, with deviations below one grey level"
    return _finding("constant", told, which, Hint("remove them", "an image that shows nothing adds nothing to ranges"))


def _duplicates(looks: Sequence[Look], titles: Sequence[str]) -> Finding | None:
    first, pairs = dict[str, int](), []
    for index, look in enumerate(looks):
        earlier = first.setdefault(look.pixels, index)
        if earlier != index:
            pairs.append(f"{titles[index]} = {titles[earlier]}")
    told = f"{_images(len(pairs), len(looks))} there already, with the same pixels"
    return _finding("duplicates", told, pairs, Hint("remove the copies", "an image that is taken twice weighs twice"))


def _overlap(looks: Sequence[Look], titles: Sequence[str], evaluation: Iterable[NDArray[np.uint8]]) -> Finding | None:
    judged = dict[str, int]()
    for index, crop in enumerate(evaluation):
        judged.setdefault(_hash(crop), index)
    same = [
        f"{title} = {judged[look.pixels]}" for look, title in zip(looks, titles, strict=True) if look.pixels in judged
    ]
    told = f"{_images(len(same), len(looks))} among those that are judged on, whose indices follow"
    hint = Hint(
        "--calib DIR or --data", "takes others: accuracy on images that a model was calibrated on proves little"
    )
    return _finding("overlap", told, same, hint)


def _noise(looks: Sequence[Look], titles: Sequence[str]) -> Finding | None:
    """Find images that are noise by themselves, or, where most of the set is flat, those that are."""
    which = [index for index, look in enumerate(looks) if look.grain.is_noise]
    flat = [index for index, look in enumerate(looks) if look.grain.is_flat]
    if 2 * len(flat) > len(looks):
        which = sorted({*which, *flat})
    if not which:
        return None
    worst = [looks[index].grain for index in which]
    numbers = f"between {min(grain.flat for grain in worst):.1f} and {max(grain.flat for grain in worst):.1f}"
    told = (
        f"{_images(len(which), len(looks))} noise: large blocks vary as independent pixels would "
        f"({numbers} times; random data about 1, photographs 3 to 14)"
    )
    hint = Hint("--calib DIR", "takes images such as the model will see; random data never shows what ranges are")
    return _finding("noise", told, [titles[index] for index in which], hint)


def _statistics(means: Sequence[float], deviations: Sequence[float], recipe: Preprocess) -> Finding | None:
    low, high = MEAN_BOUNDS
    which = []
    for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        if low <= mean <= high and deviation >= MIN_SET_DEVIATION:
            continue
        normal = (mean - recipe.mean[channel]) / recipe.std[channel], deviation / recipe.std[channel]
        which.append(
            f"channel {channel} {mean:.4f} ± {deviation:.4f} ({normal[0]:.2f} ± {normal[1]:.2f} once normalized)"
        )
    told = (
        f"the set's channels are not those of images, with means {low}..{high} and deviations from {MIN_SET_DEVIATION}"
    )
    hint = Hint("uint8 images", "hold 0 to 255; 0..1 or normalized values are for float32 inputs")
    return _finding("statistics", told, which, hint)


# ---- values of prepared inputs ---------------------------------------------------------------------------------------


def _values(inputs: Iterable[NDArray[np.float32]], titles: Sequence[str], recipe: Preprocess) -> Finding | None:
    mean, std = (np.asarray(values, np.float64)[:, None] for values in (recipe.mean, recipe.std))
    edges = np.concatenate([(0.0 - mean) / std, (1.0 - mean) / std], 1)
    spare = OVERSHOOT / std[:, 0]
    broken, outside = [], []
    lowest, highest = math.inf, -math.inf
    for one, title in zip(inputs, titles, strict=True):
        if not np.isfinite(one).all():
            broken.append(title)
            continue
        low, high = one.min((1, 2)), one.max((1, 2))
        lowest, highest = min(lowest, float(low.min())), max(highest, float(high.max()))
        if (low < edges[:, 0] - spare).any() or (high > edges[:, 1] + spare).any():
            outside.append(title)
    told = f"{_images(len(broken), len(titles))} not finite (NaN or infinity)"
    if broken:
        return _finding("not finite", told, broken, Hint("np.isfinite(array).all()", "is what must hold"))
    guess = _guess(lowest, highest, edges)
    if not (outside or guess):
        return None
    told = (
        f"values from {lowest:.3g} to {highest:.3g} are not what this model's mean {_row(recipe.mean)} and std "
        f"{_row(recipe.std)} make of pixels, {edges[:, 0].min():.3g} to {edges[:, 1].max():.3g}{guess}"
    )
    hint = Hint("(pixels / 255 - mean) / std", "is what inputs are; or give uint8 images [N, height, width, 3]")
    return _finding("range", told, outside or titles, hint)


def _guess(lowest: float, highest: float, edges: NDArray[Any]) -> str:
    """Return what values look like that were prepared otherwise; "" where nothing speaks for it."""
    first, last = float(edges[:, 0].min()), float(edges[:, 1].max())
    if lowest >= 0.0 and 16.0 < highest <= 255.0 and last < 16.0:
        return "; they look like pixels 0..255"
    if lowest >= 0.0 and highest <= 1.0 and first < -OVERSHOOT:
        return "; they look like pixels 0..1 that were not normalized"
    if -1.0 <= lowest < -0.9 and 0.9 < highest <= 1.0 and first < -1.5:
        return "; they look like pixels scaled to -1..1"
    return ""


def _row(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
