"""RangeTable: what calibration images showed of every tensor of one graph, gathered image by image."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import paths, serde
from deploykit.bundle import load_tensors, save_tensors
from deploykit.errors import BadInputError, Hint, UnsupportedError, UsageError

RANGES = "ranges.npz"
#: Bins of a histogram over [-limit, limit]; limits are powers of two, so that a histogram grows by joining bins exactly.
BINS = 8192
#: Images whose median mean square says what is ordinary for a tensor.
FIRST_IMAGES = 16
VERSION = 1
#: How a calibration cache of TensorRT begins, and a line of one: a name, and a float32 as eight digits. So much is looked at.
CACHE, SCALE, CACHE_BYTES = b"TRT-", re.compile(rb".*: [0-9a-fA-F]{8}\s*"), 1 << 20

Floats = NDArray[np.float32]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class TensorRange:
    """What the images showed of one tensor.

    Attributes:
        min: Smallest value in any image.
        max: Largest value in any image.
        image_min: Mean over the images of the smallest value in one.
        image_max: Mean over the images of the largest value in one.
        limit: The histogram covers [-limit, limit].
        histogram: float64 [BINS], sampled values by size. One weighs 1 / (1 + e), e being its image's mean square over an
            ordinary image's, so that a single image of large values doesn't count for more than all others.
        channel_min: float32 [C], smallest value of each channel; C is 0 where channels have no meaning.
        channel_max: float32 [C], largest value of each channel.
        channel_mean: float32 [C], mean value of each channel.
    """

    min: float
    max: float
    image_min: float
    image_max: float
    limit: float
    histogram: Weights
    channel_min: Floats
    channel_max: Floats
    channel_mean: Floats

    @property
    def absmax(self) -> float:
        """Largest magnitude in any image."""
        return max(abs(self.min), abs(self.max))

    @property
    def channel_absmax(self) -> Floats:
        """Largest magnitude of each channel: float32 [C]."""
        return np.maximum(np.abs(self.channel_min), np.abs(self.channel_max))

    @property
    def centers(self) -> NDArray[np.float64]:
        """The value in the middle of each bin: float64 [BINS]."""
        steps: NDArray[np.float64] = np.arange(BINS, dtype=np.float64) + 0.5
        return steps * (2 * self.limit / BINS) - self.limit

    def quantiles(self, outside: float) -> tuple[float, float]:
        """Return bounds that leave the share `outside` of the weight below and as much above; never beyond min and max."""
        left_out = outside * self.histogram.sum()
        # Summed up from either end: what weighs little there would be lost beside all the rest.
        below, above = (
            int(np.searchsorted(np.cumsum(h), left_out, side="right")) for h in (self.histogram, self.histogram[::-1])
        )
        if below == BINS:
            return self.min, self.max
        width = 2 * self.limit / BINS
        return max(self.min, -self.limit + width * below), min(self.max, self.limit - width * above)


@dataclass(frozen=True)
class RangeTable:
    """The ranges of one graph over one set of images.

    Attributes:
        graph: Content hash of the graph.
        images: Content hash of the images.
        count: How many images.
        tensors: Every floating tensor that is computed, and the inputs, by name.
        unbounded: Names of those that reached infinity, as attention does where a mask of -inf was added: they have no range.
    """

    graph: str
    images: str
    count: int
    tensors: Mapping[str, TensorRange]
    unbounded: tuple[str, ...] = ()

    def of(self, name: str) -> TensorRange:
        """Return the range of the tensor called `name`.

        Raises:
            UnsupportedError: It has none, for it reaches infinity.
            BadInputError: The table doesn't know it: it belongs to another graph.
        """
        if name in self.unbounded:
            raise UnsupportedError(
                f"tensor {name!r} reaches infinity on the calibration images: no 8 bits hold that",
                Hint("--fp16 or --int8-weights", "leaves activations in floating point"),
            )
        if name not in self.tensors:
            raise BadInputError(f"the range table knows no tensor {name!r}: it was made of another graph")
        return self.tensors[name]

    def check(self, graph: str) -> None:
        """Refuse another graph.

        Raises:
            UsageError: The table was made of another graph.
        """
        if self.graph != graph:
            raise UsageError(
                f"this range table belongs to graph {self.graph[:12]}…, not to {graph[:12]}…",
                Hint("--calib IMAGES", "calibrates this graph"),
            )

    def save(self, path: Path) -> None:
        """Write the table, the same bytes for the same table."""
        names = list(self.tensors)
        ranges = list(self.tensors.values())
        head = {
            "version": VERSION,
            "graph": self.graph,
            "images": self.images,
            "count": self.count,
            "tensors": names,
            "channels": [len(entry.channel_min) for entry in ranges],
            "unbounded": list(self.unbounded),
        }
        scalars = [[r.min, r.max, r.image_min, r.image_max, r.limit] for r in ranges]
        save_tensors(
            path,
            {
                "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
                "scalars": np.asarray(scalars, np.float64).reshape(len(names), 5),
                "histograms": np.asarray([r.histogram for r in ranges], np.float64).reshape(len(names), BINS),
                "channel_min": _joined([r.channel_min for r in ranges]),
                "channel_max": _joined([r.channel_max for r in ranges]),
                "channel_mean": _joined([r.channel_mean for r in ranges]),
            },
        )

    @classmethod
    def load(cls, path: Path) -> RangeTable:
        """Read a table.

        Raises:
            BadInputError: The file is no range table, or a damaged one.
            UsageError: It is TensorRT's own.
        """
        _refuse_cache(path)
        arrays = load_tensors(path)
        try:
            head = serde.parse(arrays["head"].tobytes())
            if head["version"] != VERSION:
                raise BadInputError(f"{path} is a range table of version {head['version']}; this is {VERSION}")
            return cls._of(head, arrays)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInputError(f"{path} is no range table: {told}") from error

    @classmethod
    def _of(cls, head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RangeTable:
        """Return what a file holds. Raises ValueError and its like where that is no table."""
        names, graph, images, count = (head[key] for key in ("tensors", "graph", "images", "count"))
        unbounded = head.get("unbounded", [])
        texts = (*names, *unbounded, graph, images)
        is_told = isinstance(count, int) and count > 0 and all(isinstance(text, str) for text in texts)
        is_told = is_told and isinstance(names, list) and isinstance(unbounded, list)
        if not is_told or len({*names, *unbounded}) != len(names) + len(unbounded):
            raise ValueError("its head names no tensors, graph and images")
        ranges = dict(zip(names, _ranges(arrays, head["channels"]), strict=True))
        return cls(graph, images, count, ranges, tuple(unbounded))


def _refuse_cache(path: Path) -> None:
    """Say what a calibration cache of TensorRT is: a scale for each tensor of another graph, and nothing that lies beneath it.

    Raises:
        UsageError: It is one.
    """
    if paths.fault(path):
        return
    with path.open("rb") as stream:
        if stream.read(len(CACHE)) != CACHE:
            return
        lines = stream.read(CACHE_BYTES).splitlines()
    kind = (CACHE + lines[0]).decode("ascii", "replace").strip()[:80] if lines else CACHE.decode()
    scales = [line for line in lines[1:] if SCALE.fullmatch(line)]
    raise UsageError(
        f"{path} is a calibration cache of TensorRT ({kind}, {len(scales)} scales): it belongs to the graph and the TensorRT "
        "that it was made with, and holds no ranges",
        Hint("--calib IMAGES", "measures the ranges of this graph; the images of that calibration do"),
    )


def _joined(pieces: Sequence[Floats]) -> Floats:
    return np.concatenate([np.empty(0, np.float32), *pieces]).astype(np.float32)


def _ranges(arrays: Mapping[str, NDArray[Any]], channels: Sequence[Any]) -> Iterator[TensorRange]:
    """Yield what a file's arrays hold, after checking that they fit one another and can be ranges at all."""
    wanted = (len(channels), 5), (len(channels), BINS)
    if (arrays["scalars"].shape, arrays["histograms"].shape) != wanted:
        raise ValueError(f"{len(channels)} tensors need scalars and histograms of {wanted}")
    if any(not isinstance(count, int) or count < 0 for count in channels):
        raise ValueError("its numbers of channels are no numbers")
    pieces = [arrays[key].astype(np.float32) for key in ("channel_min", "channel_max", "channel_mean")]
    if any(piece.shape != (sum(channels),) for piece in pieces):
        raise ValueError(f"{sum(channels)} channels need as many values")
    tables: list[Weights] = [arrays[key].astype(np.float64) for key in ("scalars", "histograms")]
    finite = all(bool(np.isfinite(values).all()) for values in tables) and all(
        bool(np.isfinite(values).all()) for values in pieces
    )
    if not finite or tables[1].min(initial=0.0) < 0:
        raise ValueError("its values are not finite, or weigh less than nothing")
    if not channels:
        return
    ends = np.cumsum(channels, dtype=np.int64)[:-1]
    for scalars, histogram, *split in zip(*tables, *(np.split(piece, ends) for piece in pieces), strict=True):
        low, high, image_low, image_high, limit = (float(value) for value in scalars)
        if low > high or limit <= 0:
            raise ValueError(f"no tensor has values from {low:g} to {high:g}, within {limit:g}")
        yield TensorRange(low, high, image_low, image_high, limit, histogram, *split)


@dataclass(frozen=True)
class Seen:
    """What one image showed of one tensor.

    Attributes:
        min: Smallest value.
        max: Largest value.
        samples: float32 [S], some of its values.
        channel_min: float32 [C].
        channel_max: float32 [C].
        channel_mean: float32 [C].
    """

    min: float
    max: float
    samples: Floats
    channel_min: Floats
    channel_max: Floats
    channel_mean: Floats

    @property
    def has_infinity(self) -> bool:
        """Whether a value, or the mean of a channel, is infinite."""
        return math.isinf(self.min) or math.isinf(self.max) or bool(np.isinf(self.channel_mean).any())

    @property
    def has_nan(self) -> bool:
        """Whether a value is NaN as far as this tells: reductions may skip it, and infinities of both signs have no mean."""
        values = self.samples if self.has_infinity else np.concatenate([self.samples, self.channel_mean])
        return math.isnan(self.min) or math.isnan(self.max) or bool(np.isnan(values).any())


class Collector:
    """Gathers the range of one tensor; what it holds doesn't grow with the number of images."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.is_unbounded = False
        self._low, self._high = math.inf, -math.inf
        self._sums = np.zeros(2)
        self._histogram: Weights = np.zeros(BINS)
        self._limit = self._ordinary = 0.0
        self._waiting: list[Floats] = []
        self._channel_min = self._channel_max = np.empty(0, np.float32)
        self._channel_sum = np.empty(0, np.float64)

    def add(self, seen: Seen) -> None:
        """Take in one image. After one that reached infinity there is nothing left to gather.

        Raises:
            BadInputError: A value is NaN.
        """
        if seen.has_nan:
            raise BadInputError(f"tensor {self.name!r} is NaN on calibration image {self.count}")
        self.is_unbounded |= seen.has_infinity
        if self.is_unbounded:
            self.count += 1
            return
        if self.count == 0:
            self._channel_min, self._channel_max = seen.channel_min.copy(), seen.channel_max.copy()
            self._channel_sum = np.zeros(len(seen.channel_mean))
        self._low, self._high = min(self._low, seen.min), max(self._high, seen.max)
        self._sums += (seen.min, seen.max)
        self._channel_min = np.minimum(self._channel_min, seen.channel_min)
        self._channel_max = np.maximum(self._channel_max, seen.channel_max)
        self._channel_sum += seen.channel_mean
        self._sample(seen.samples, max(abs(seen.min), abs(seen.max)))
        self.count += 1

    def _sample(self, values: Floats, most: float) -> None:
        """Keep the first images until it is known what is ordinary; then weigh them, and each further one as it comes."""
        if self._limit == 0.0 and most > 0.0:
            self._limit = _power_above(most)
        while most > self._limit:
            self._histogram, self._limit = _halved(self._histogram), 2 * self._limit
        self._waiting.append(values)
        if self._ordinary > 0.0 or len(self._waiting) == FIRST_IMAGES:
            self._weigh()

    def _weigh(self) -> None:
        energies = [float(np.square(values, dtype=np.float64).mean()) for values in self._waiting]
        if self._ordinary == 0.0:
            self._ordinary = float(np.median(energies)) or float(np.mean(energies)) or 1.0
        scale = BINS / (2 * self._limit) if self._limit else 0.0
        for values, energy in zip(self._waiting, energies, strict=True):
            index = np.floor(values.astype(np.float64) * scale).astype(np.int64) + BINS // 2
            counts = np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)
            self._histogram += counts / (1.0 + energy / self._ordinary)
        self._waiting.clear()

    def range(self) -> TensorRange:
        """Return what was gathered.

        Raises:
            BadInputError: No image was taken in.
        """
        if self.count == 0:
            raise BadInputError("there are no calibration images")
        self._weigh()
        image_low, image_high = (self._sums / self.count).tolist()
        return TensorRange(
            min=self._low,
            max=self._high,
            image_min=image_low,
            image_max=image_high,
            limit=self._limit or 1.0,
            histogram=self._histogram,
            channel_min=self._channel_min,
            channel_max=self._channel_max,
            channel_mean=(self._channel_sum / self.count).astype(np.float32),
        )


def _power_above(value: float) -> float:
    """Return the smallest power of two that is not below a positive `value`."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)


def _halved(histogram: Weights) -> Weights:
    """Return the histogram over twice the limit: neighbouring bins joined, the outer quarters empty."""
    joined = histogram.reshape(-1, 2).sum(axis=1)
    return np.concatenate([np.zeros(BINS // 4), joined, np.zeros(BINS // 4)])
