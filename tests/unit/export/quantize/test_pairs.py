"""Weights whose products can be added in pairs of 16 bits: right on every processor, at half a bit's cost at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.export.cast_support import Array, hub, model, node
from tests.unit.export.quantize.test_stage import PLACEMENTS, options, quantized

from deploykit.artifact import EXACT, RunConfig
from deploykit.export import onnx_files
from deploykit.export.quantize.emit import round_weights
from deploykit.export.quantize.pairs import fitted
from deploykit.export.rewrites.linears import Linear, linear_of
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.pairs import MOST_PAIR, largest_pairs

RNG = np.random.default_rng(3)


def layer(weight: NDArray[Any], **attributes: int) -> Linear:
    nodes = [node("Conv" if weight.ndim == 4 else "MatMul", "x,w", "y", **attributes)]
    channels = weight.shape[1] * attributes.get("group", 1)
    shape = (1, channels, 8, 8) if weight.ndim == 4 else (4, len(weight))
    graph = ir.serde.deserialize_model(model(nodes, {"w": weight.astype(np.float32)}, shape)).graph
    found = linear_of(graph[0])
    assert found is not None
    return found


def test_neighbours_are_channels_of_a_place_and_of_the_whole_row() -> None:
    codes = np.zeros((5, 3, 1, 2), np.int8)  # as a row: channels 0, 1, 2 of the first place, then of the second
    codes[0, 0, 0, 0], codes[0, 1, 0, 0] = 100, 90  # together in both
    codes[1, 1, 0, 0], codes[1, 2, 0, 0] = 100, 90  # apart in both: 1 | 2
    codes[2, 2, 0, 0], codes[2, 0, 0, 1] = -100, -90  # together in the row
    codes[3, 0, 0, 1], codes[3, 1, 0, 1] = -100, -90  # together in the place
    codes[4, 0, 0, 0], codes[4, 1, 0, 0] = 100, -90  # of two signs
    assert largest_pairs(codes, 0, 1).tolist() == [190, 100, 190, 190, 100]


@given(st.integers(1, 9), st.sampled_from([(1, 1), (3, 3)]), st.integers(0, 2**32 - 1), st.floats(0.0, 3.0))
def test_no_pair_saturates_and_no_weight_loses_more_than_a_bit(
    channels: int, kernel: tuple[int, int], seed: int, mean: float
) -> None:
    weight = np.random.default_rng(seed).standard_normal((6, channels, *kernel)) + mean
    linear = layer(weight)
    fine = round_weights(linear)
    made = fitted(linear, fine)
    assert largest_pairs(made.rounded, 0, 1).max() <= MOST_PAIR
    assert np.all((made.scales >= fine.scales) & (made.scales <= 2.02 * fine.scales))
    errors = np.abs(made.rounded * made.scales.reshape(-1, 1, 1, 1) - linear.weight)
    assert np.all(errors <= made.scales.reshape(-1, 1, 1, 1) * 0.5001)
    untouched = largest_pairs(fine.rounded, 0, 1) <= MOST_PAIR
    assert np.array_equal(made.rounded[untouched], fine.rounded[untouched])


def test_channels_that_are_convolved_by_themselves_keep_all_bits() -> None:
    for weight, group, is_kept in (((8, 1, 3, 3), 8, True), ((16, 1, 3, 3), 8, False), ((8, 1, 3, 3), 1, False)):
        linear = layer(np.abs(RNG.standard_normal(weight)) + 1, group=group)
        fine = round_weights(linear)
        assert (fitted(linear, fine) is fine) == is_kept


def bright(kind: str) -> Array:
    """Return weights of one sign near the end of their range, by which answers are as large as data."""
    shape = {"Conv": (32, 16, 3, 3), "Conv of 3": (32, 3, 3, 3), "MatMul": (48, 32)}[kind]
    terms = np.prod(shape) / 32
    return np.asarray(RNG.uniform(0.8, 1.0, shape) / terms, np.float32)


@pytest.mark.parametrize("backend", list(PLACEMENTS))
@pytest.mark.parametrize("kind", ["Conv", "Conv of 3", "MatMul"])
def test_kernels_answer_as_the_graph_says_where_products_are_largest(kind: str, backend: str, tmp_path: Path) -> None:
    weight = bright(kind)
    shape = (1, weight.shape[1], 9, 9) if kind != "MatMul" else (10, 48)
    nodes = [node(kind.partition(" ")[0], "x,w", "a"), node("Relu", "a", "y")]
    graph = hub(model(nodes, {"w": weight}, shape), tmp_path / "graph")
    made = quantized(graph, options(backend), tmp_path).path(onnx_files.MODEL)
    feed = {"x": RNG.uniform(7.0, 8.0, shape).astype(np.float32)}
    with get_backend("onnxruntime").open(str(made), RunConfig("onnxruntime", arithmetic=EXACT)) as session:
        exact = session.infer(feed)["y"]
    with get_backend(backend).open(str(made), RunConfig(backend, precision="f32", threads=1)) as session:
        found = session.infer(feed)["y"]
        assert {one.precision for one in session.executed(feed)} == {"int8"}
    assert drift.sqnr_db(exact, found) > 45.0
    with get_backend("onnxruntime").open(str(graph.path(onnx_files.MODEL)), RunConfig("onnxruntime")) as session:
        assert drift.sqnr_db(session.infer(feed)["y"], exact) > 35.0
