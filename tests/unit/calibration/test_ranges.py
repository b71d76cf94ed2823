"""Range tables: what they remember of images, and whose they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploykit.bundle import load_tensors, save_tensors
from deploykit.calibration.ranges import BINS, Collector, RangeTable, Seen
from deploykit.errors import BadInputError, UnsupportedError, UsageError

FLOATS = st.floats(-1e6, 1e6, width=32)
IMAGES = st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=8)


def seen(values: NDArray[np.float32]) -> Seen:
    whole = values.reshape(1, -1)
    low, high, mean = whole.min(axis=1), whole.max(axis=1), whole.mean(axis=1)
    return Seen(float(values.min()), float(values.max()), values, low, high, mean)


def gathered(images: list[list[float]]) -> Collector:
    collector = Collector("t")
    for image in images:
        collector.add(seen(np.array(image, np.float32)))
    return collector


def head(tensors: object, unbounded: object) -> NDArray[np.uint8]:
    told = {"version": 1, "graph": "", "images": "", "count": 1, "channels": [1]}
    return np.frombuffer(json.dumps({**told, "tensors": tensors, "unbounded": unbounded}).encode(), np.uint8)


def test_a_table_that_says_nothing_of_infinity_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    RangeTable("g", "i", 1, {"t": gathered([[1.0]]).range()}, ("s",)).save(path)
    arrays = load_tensors(path)
    told = json.loads(arrays["head"].tobytes())
    del told["unbounded"]
    save_tensors(path, {**arrays, "head": np.frombuffer(json.dumps(told).encode(), np.uint8)})
    assert RangeTable.load(path).unbounded == ()


def test_a_tensor_that_holds_nan_is_refused_by_name() -> None:
    collector = Collector("features.3")
    with pytest.raises(BadInputError, match=r"'features\.3' is NaN on calibration image 0"):
        collector.add(seen(np.array([1.0, np.nan], np.float32)))


def test_nan_that_reductions_skipped_is_found() -> None:
    whole = seen(np.array([1.0, 2.0], np.float32))
    nan = np.array([np.nan], np.float32)
    for one in (replace(whole, samples=nan), replace(whole, channel_mean=nan)):
        with pytest.raises(BadInputError, match="is NaN"):
            Collector("t").add(one)
    both = replace(whole, min=-np.inf, max=np.inf, channel_mean=nan)
    collector = Collector("t")
    collector.add(both)
    assert collector.is_unbounded


@pytest.mark.parametrize("value", [-np.inf, np.inf])
def test_a_tensor_that_reaches_infinity_once_has_no_range(value: float, tmp_path: Path) -> None:
    collector = gathered([[1.0, 2.0], [1.0, value], [1.0, 2.0]])
    assert collector.is_unbounded
    assert collector.count == 3
    RangeTable("a" * 64, "images", 3, {"y": gathered([[1.0]]).range()}, ("scores",)).save(tmp_path / "t.npz")
    table = RangeTable.load(tmp_path / "t.npz")
    assert table.unbounded == ("scores",)
    with pytest.raises(UnsupportedError, match="'scores' reaches infinity"):
        table.of("scores")
    assert table.of("y").max == 1.0


def test_no_images_make_no_range() -> None:
    with pytest.raises(BadInputError, match="no calibration images"):
        Collector("t").range()


def test_another_graph_is_refused() -> None:
    table = RangeTable("a" * 64, "images", 1, {})
    with pytest.raises(UsageError, match="belongs to graph"):
        table.check("b" * 64)
    with pytest.raises(BadInputError, match="knows no tensor 'x'"):
        table.of("x")


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.npz", {"a": np.zeros(3)})
    with pytest.raises(BadInputError, match="no range table"):
        RangeTable.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("array", "changed", "told"),
    [
        ("scalars", np.zeros((1, 4)), "need scalars and histograms"),
        ("scalars", np.array([[1.0, -1.0, 0.0, 0.0, 1.0]]), "no tensor has values from 1 to -1"),
        ("scalars", np.array([[0.0, 1.0, 0.0, 1.0, 0.0]]), "within 0"),
        ("scalars", np.array([[0.0, np.inf, 0.0, 1.0, 1.0]]), "not finite"),
        ("histograms", np.zeros((1, 8)), "need scalars and histograms"),
        ("histograms", np.full((1, BINS), -1.0), "weigh less than nothing"),
        ("channel_mean", np.zeros(7, np.float32), "1 channels need as many values"),
        ("channel_mean", np.array(["a"]), "no range table"),
        ("head", np.frombuffer(b"[" * 100_000, np.uint8), "no range table"),
        ("head", np.frombuffer(b'{"version": 1}', np.uint8), "'tensors'"),
        (
            "head",
            np.frombuffer(
                b'{"version":1,"graph":"","images":"","count":1e999,"tensors":["t"],"channels":[1]}', np.uint8
            ),
            "names no tensors, graph and images",
        ),
        (
            "head",
            np.frombuffer(b'{"version":1,"graph":"","images":"","count":1,"tensors":["t"],"channels":["x"]}', np.uint8),
            "are no numbers",
        ),
        *(
            ("head", head(tensors=["t"], unbounded=unbounded), "names no tensors, graph and images")
            for unbounded in ("s", {"s": 1}, ["t"], ["s", "s"], [1], [["s"]])
        ),
        ("head", head(tensors="t", unbounded=[]), "names no tensors, graph and images"),
        ("head", head(tensors=["t"], unbounded=None), "no range table"),
    ],
)
def test_a_table_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, array: str, changed: NDArray[np.generic], told: str
) -> None:
    path = tmp_path / "t.npz"
    RangeTable("g", "i", 1, {"t": gathered([[1.0, 2.0]]).range()}).save(path)
    save_tensors(path, {**load_tensors(path), array: changed})
    with pytest.raises(BadInputError, match=told):
        RangeTable.load(path)


def test_a_calibration_cache_of_tensorrt_is_known_for_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    path.write_text(
        "TRT-8601-EntropyCalibration2\nimages: 3c010a14\n(Unnamed Layer* 1) [Conv]_output: 3d81\nout: 3e0a0b0c\n"
    )
    with pytest.raises(
        UsageError, match=r"x\.cache is a calibration cache of TensorRT \(TRT-8601-EntropyC\w+2, 2 scales\)"
    ):
        RangeTable.load(path)


@given(IMAGES)
@example([[0.0], [185364.0], [0.001953125]])  # one image weighs 1e16 times as much as the other
def test_extremes_and_quantiles_hold_every_value(images: list[list[float]]) -> None:
    found = gathered(images).range()
    flat = np.concatenate([np.array(image, np.float32) for image in images])
    assert (found.min, found.max) == (flat.min(), flat.max())
    low, high = found.quantiles(0.0)
    step = 2 * found.limit / BINS
    assert low <= found.min + step
    assert high >= found.max - step
    assert found.min <= low <= high <= found.max
    assert found.channel_absmax[0] == np.abs(flat).max()


@given(IMAGES)
def test_a_table_comes_back_as_it_was_saved(images: list[list[float]]) -> None:
    import tempfile

    table = RangeTable("g", "i", len(images), {"t": gathered(images).range()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranges.npz"
        table.save(path)
        first = path.read_bytes()
        back = RangeTable.load(path)
        back.save(path)
        assert path.read_bytes() == first
    assert back.tensors["t"].max == table.tensors["t"].max


def test_a_histogram_grows_without_losing_a_value() -> None:
    collector = gathered([[0.1, -0.1], [100.0, 3.0]])
    found = collector.range()
    assert found.limit == 128.0
    assert len(found.histogram) == BINS
    inside = found.histogram[BINS // 2 :].sum()
    assert 0 < inside < found.histogram.sum()


def test_one_image_of_large_values_does_not_outweigh_the_others() -> None:
    ordinary = [[float(np.sin(k)), float(np.cos(k))] for k in range(50)]
    found = gathered([*ordinary, [1000.0, -1000.0]]).range()
    low, high = found.quantiles(0.01)
    assert -2.0 < low < high < 2.0
