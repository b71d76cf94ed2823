"""Grids of 8 bits: what they can hold, and how far they round."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from deploykit.calibration.ranges import Collector, Seen, TensorRange
from deploykit.errors import UsageError
from deploykit.export.quantize import grid

REACH = st.floats(-1e4, 1e4, width=32)


def range_of(values: NDArray[np.float32]) -> TensorRange:
    collector, nothing = Collector("t"), np.empty(0, np.float32)
    collector.add(Seen(float(values.min()), float(values.max()), values, nothing, nothing, nothing))
    return collector.range()


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown range method 'guess'; there are: minmax"):
        grid.activation_grid(range_of(np.ones(4, np.float32)), grid.UINT8, "guess")


@pytest.mark.parametrize("kind", [grid.INT8, grid.UINT8])
@given(low=REACH, high=REACH, share=st.floats(0, 1))
def test_values_in_reach_move_by_half_a_step_at_most(kind: grid.Kind, low: float, high: float, share: float) -> None:
    low, high = min(low, high), max(low, high)
    made = grid.grid_over(kind, low, high)
    value = np.array([low + share * (high - low)])
    slack = 1.0 if not kind.symmetric else 0.5  # a rounded zero point moves the ends of the grid by half a step
    assert abs(made.rounded(value) - value)[0] <= slack * made.scale * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("kind", [grid.INT8, grid.UINT8, grid.UINT8_FROM_ZERO])
@given(low=REACH, high=REACH)
def test_zero_is_on_every_grid(kind: grid.Kind, low: float, high: float) -> None:
    made = grid.grid_over(kind, min(low, high), max(low, high))
    assert made.rounded(np.zeros(1))[0] == 0.0
    assert kind.low <= made.zero_point <= kind.high


@pytest.mark.parametrize("method", list(grid.METHODS))
def test_what_is_never_negative_takes_the_whole_of_uint8(method: str) -> None:
    values = np.linspace(0, 6, 1000, dtype=np.float32)
    made = grid.activation_grid(range_of(values), grid.UINT8, method)
    assert (made.kind, made.zero_point) == (grid.UINT8_FROM_ZERO, 0)


def test_least_error_gives_up_a_lone_outlier() -> None:
    values = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    values[0] = 30.0
    found = range_of(values)
    errors = {
        method: float(np.square(grid.activation_grid(found, grid.INT8, method).rounded(values) - values).sum())
        for method in ("minmax", "mse")
    }
    assert errors["mse"] <= errors["minmax"]


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)))
def test_weights_move_by_half_a_step_of_their_channel(weight: NDArray[np.float32]) -> None:
    scales = grid.weight_scales(weight, 0)
    back = grid.quantized_weight(weight, scales, 0) * scales[:, None]
    assert np.all(np.abs(back - weight) <= 0.5001 * scales[:, None] + 1e-30)


@given(values=hnp.arrays(np.float32, 16, elements=st.floats(-(2.0**12), 2.0**12, width=32)))
def test_floats_of_8_bits_keep_four_digits_whatever_the_size(values: NDArray[np.float32]) -> None:
    made = grid.activation_grid(range_of(values), grid.E4M3, "mse")
    found, reach = made.rounded(values), float(np.abs(values).max())
    assert made.zero_point == 0
    assert np.abs(found).max() <= reach * (1 + 1e-6)
    normal = np.abs(values) >= made.scale * 2.0**-6
    assert (np.abs(found - values)[normal] <= np.abs(values)[normal] * 2.0**-4 * (1 + 1e-6)).all()
    assert (np.abs(found - values)[~normal] <= made.scale * 2.0**-10 * (1 + 1e-6)).all()


@pytest.mark.parametrize("low", [-1e-30, -(2.0**-40)])
def test_scales_of_floats_are_normal_in_float16(low: float) -> None:
    scale = np.float16(grid.grid_over(grid.E4M3, low, 0.0).scale)
    assert scale == np.float16(2.0**-14) == np.finfo(np.float16).smallest_normal


def test_floats_beyond_the_range_become_the_outermost() -> None:
    codes = grid.E4M3.codes(np.array([1e9, -1e9, 448.0, 464.1, 0.0]))
    assert codes.astype(np.float32).tolist() == [448.0, -448.0, 448.0, 448.0, 0.0]


def test_codes_of_floats_are_those_of_onnx_runtime() -> None:
    made = grid.grid_over(grid.E4M3, -3.0, 5.0)
    values = np.random.default_rng(0).normal(0, 2, 5000).astype(np.float32)
    rounding = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])
    back = onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"])
    weights = {"scale": np.float32(made.scale), "zero": np.zeros((), grid.E4M3.numpy)}
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [rounding, back],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5000])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [5000])],
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": values})
    np.testing.assert_allclose(made.rounded(values), found, rtol=1e-6, atol=0)
