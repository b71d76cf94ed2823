"""The emulator rounds where half hardware rounds: number by number, beside PyTorch's half kernels, where it must overflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as make
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch.nn import functional

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import BadInputError, MissingComponentError, UnsupportedError, UsageError
from deploykit.runtime.backends.base import Session
from deploykit.runtime.backends.emulator import BACKEND

Array = NDArray[Any]
Halves = NDArray[np.float16]

CONFIG = RunConfig("emulator", threads=1)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return make.make_node(operator, inputs.split(","), output.split(","), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Sequence[int | str]],
    output: str = "y",
    weights: Mapping[str, Array] | None = None,
    *,
    kind: int = TensorProto.FLOAT16,
    kind_out: int | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """Make a model whose inputs and output are of type `kind`."""
    inputs = [make.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    outputs = [make.make_tensor_value_info(output, kind_out or kind, None)]
    constants = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    built = make.make_graph(list(nodes), "g", inputs, outputs, constants)
    made = make.make_model(built, opset_imports=[make.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def opened(proto: onnx.ModelProto, folder: Path, config: RunConfig = CONFIG) -> Session:
    path = folder / "net.onnx"
    onnx.save(proto, path)
    return BACKEND.open(str(path), config)


def emulated(proto: onnx.ModelProto, folder: Path, **feeds: Array) -> Array:
    with opened(proto, folder) as session:
        (found,) = session.infer(feeds).values()
    return found


def halves(seed: int, *shape: int, scale: float = 1.0) -> Halves:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float16)


def ulps(reference: Array, found: Array, *terms: Array) -> float:
    """Return the largest distance in units in the last place: of the result, or of the largest of its terms."""
    assert reference.shape == found.shape
    assert reference.dtype == found.dtype == np.float16
    size = np.abs(reference).astype(np.float16)
    for term in terms:
        size = np.maximum(size, np.abs(term).astype(np.float16))
    unit = np.spacing(size).astype(np.float64)
    return float((np.abs(reference.astype(np.float64) - found.astype(np.float64)) / unit).max())


# What is refused


def test_another_precision_than_the_graphs_is_refused(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": [4]})
    for precision in ("f32", "bf16"):
        with pytest.raises(UnsupportedError, match=rf"asked to compute .*net\.onnx in {precision}, the graph says f16"):
            opened(proto, tmp_path, RunConfig("emulator", precision=precision))
    with pytest.raises(UnsupportedError, match="computes in f32, f16, bf16, not in 'int4'"):
        opened(proto, tmp_path, RunConfig("emulator", precision="int4"))


def test_a_float32_graph_is_no_half_graph(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": [4]}, kind=TensorProto.FLOAT)
    with pytest.raises(UnsupportedError, match="in f16, the graph says f32"):
        opened(proto, tmp_path, RunConfig("emulator", precision="f16"))


def test_what_cannot_be_emulated_is_named(tmp_path: Path) -> None:
    branch = make.make_graph(
        [node("Relu", "x", "z")], "b", [], [make.make_tensor_value_info("z", TensorProto.FLOAT16, [4])]
    )
    conditional = make.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    inside = make.make_graph(
        [conditional, node("Relu", "y", "w")],
        "g",
        [
            make.make_tensor_value_info("x", TensorProto.FLOAT16, [4]),
            make.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [make.make_tensor_value_info("w", TensorProto.FLOAT16, [4])],
    )
    cases = {
        "If 'y' can't be emulated in half: it holds graphs": make.make_model(
            inside, opset_imports=[make.make_opsetid("", 20)], ir_version=10
        ),
        "LpNormalization 'y' .*takes squares within": model([node("LpNormalization", "x", "y")], {"x": [2, 4]}),
        "SplitToSequence 's' .*makes 's', whose type is not known": model(
            [node("SplitToSequence", "x", "s"), node("ConcatFromSequence", "s", "y", axis=0)], {"x": [2, 4]}
        ),
        "LayerNormalization 'y' .*computes in half within": model(
            [node("LayerNormalization", "x,s", "y", stash_type=TensorProto.BFLOAT16)],
            {"x": [2, 4]},
            weights={"s": halves(0, 4)},
        ),
    }
    for words, proto in cases.items():
        with pytest.raises(UnsupportedError, match=words):
            opened(proto, tmp_path)


def test_an_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "r"), node("Abs", "r", "y")], {"x": [4]})
    proto.graph.node[0].domain = "com.microsoft"
    proto.graph.node[0].op_type = "QuickGelu"
    proto.opset_import.append(make.make_opsetid("com.microsoft", 1))
    with pytest.raises(
        UnsupportedError, match=r"QuickGelu 'r' can't be emulated in half: it is an operator of 'com\.microsoft'"
    ):
        opened(proto, tmp_path)


def test_wrong_requests(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": [4]})
    with pytest.raises(MissingComponentError, match="cuda:0"):
        opened(proto, tmp_path, RunConfig("emulator", device="cuda:0"))
    with pytest.raises(UsageError, match="nonsense"):
        opened(proto, tmp_path, RunConfig("emulator", hints={"nonsense": "1"}))
    (tmp_path / "torn.onnx").write_bytes(proto.SerializeToString()[:-9])
    with pytest.raises(BadInputError, match=r"torn\.onnx"):
        BACKEND.open(str(tmp_path / "torn.onnx"), CONFIG)


# The session


def test_it_says_what_it_is(tmp_path: Path) -> None:
    with opened(model([node("Relu", "x", "y")], {"x": ["rows", 4]}), tmp_path) as session:
        assert (session.ran.backend, session.ran.precision, session.ran.threads) == ("emulator", "f16", 1)
        assert session.inputs == (TensorSpec("x", "float16", (Axis.unbounded("rows"), 4)),)
        with pytest.raises(UnsupportedError, match="emulator doesn't tell"):
            session.executed({"x": halves(0, 3, 4)})
    with pytest.raises(UsageError, match="closed"):
        session.infer({"x": halves(0, 3, 4)})


def test_weights_beside_the_graph_are_read_where_they_lie(tmp_path: Path) -> None:
    weight = halves(1, 64, 64)
    proto = model([node("MatMul", "x,w", "y")], {"x": [3, 64]}, weights={"w": weight})
    onnx.save(proto, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data", size_threshold=0)
    with BACKEND.open(str(tmp_path / "apart.onnx"), CONFIG) as session:
        found = session.infer({"x": halves(2, 3, 64)})["y"]
    np.testing.assert_array_equal(found, emulated(proto, tmp_path, x=halves(2, 3, 64)))


def test_the_code_that_is_printed_runs(tmp_path: Path) -> None:
    onnx.save(model([node("Relu", "x", "y")], {"x": [4]}), tmp_path / "net.onnx")
    code = BACKEND.code(str(tmp_path / "net.onnx"), CONFIG)
    assert "get_backend('emulator')" in code
    assert "threads=1" in code
    compile(code, "code", "exec")


# Roundings


ROUND = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "y", to=TensorProto.FLOAT)]
floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.fixture(scope="module")
def rounding(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return opened(model(ROUND, {"x": ["n"]}, kind=TensorProto.FLOAT), tmp_path_factory.mktemp("round"))


@given(st.lists(floats32, min_size=1, max_size=64))
@settings(max_examples=300, deadline=None)
def test_a_rounding_is_numpys(rounding: Session, values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounding.infer({"x": array})["y"], expected)


def test_all_halves_and_what_lies_between_them_round_as_numpy_rounds(rounding: Session) -> None:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (finite[:-1].astype(np.float64) + finite[1:]) / 2
    values = np.concatenate([finite, middle, np.nextafter(middle.astype(np.float32), 0), [65519.996, 65520.0, 1e30]])
    array = np.concatenate([values, -values]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(rounding.infer({"x": array})["y"], expected)


def test_bfloat16_rounds_to_nearest_even(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.BFLOAT16), node("Cast", "h", "y", to=TensorProto.FLOAT)]
    bits = np.random.default_rng(0).integers(0, 0x7F000000, 20000, dtype=np.uint32)
    ties = np.arange(0x3F808000, 0x3F908000, 0x10000, dtype=np.uint32)
    array = np.concatenate([bits, ties]).view(np.float32)
    proto = model(nodes, {"x": ["n"]}, kind=TensorProto.FLOAT)
    with opened(proto, tmp_path) as session:
        assert session.ran.precision == "bf16"
        found = session.infer({"x": array})["y"]
    np.testing.assert_array_equal(found, array.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_no_rounding_is_optimized_away(kind: int, tmp_path: Path) -> None:
    """x + 1 - 1 in half steps: each sum is rounded, though the steps follow one another and end in float32."""
    one = numpy_helper.from_array(np.ones((), np.float32), "one")
    nodes = [
        node("Cast", "x", "h", to=kind),
        node("Cast", "one", "c", to=kind),
        node("Add", "h,c", "a"),
        node("Sub", "a,c", "b"),
        node("Add", "b,c", "d"),
        node("Sub", "d,c", "e"),
        node("Cast", "e", "y", to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": ["n"]}, kind=TensorProto.FLOAT)
    proto.graph.initializer.append(one)
    array = np.linspace(-3, 3, 1001, dtype=np.float32)
    half = np.float16 if kind == TensorProto.FLOAT16 else ml_dtypes.bfloat16
    expected = array.astype(half).astype(np.float32)
    for shift in (1, -1, 1, -1):
        expected = (expected + shift).astype(half).astype(np.float32)
    assert np.abs(expected - array).max() > 1e-4
    np.testing.assert_array_equal(emulated(proto, tmp_path, x=array), expected)


@pytest.mark.parametrize("value", [6e-8, 1e-7, 3e-6, 6e-5])
def test_subnormals_are_kept(value: float, tmp_path: Path) -> None:
    proto = model([node("Mul", "x,w", "y")], {"x": [1]}, weights={"w": np.ones(1, np.float16)})
    array = np.array([value], np.float16)
    assert array[0] != 0
    np.testing.assert_array_equal(emulated(proto, tmp_path, x=array), array)


@pytest.mark.parametrize(("operator", "factor"), [("Mul", 300.0), ("Add", 65000.0)])
def test_what_is_too_large_is_infinite(operator: str, factor: float, tmp_path: Path) -> None:
    proto = model([node(operator, "x,w", "y")], {"x": [2]}, weights={"w": np.array([factor], np.float16)})
    found = emulated(proto, tmp_path, x=np.array([1000.0, -1000.0], np.float16))
    assert np.isinf(found[0])


def test_long_sums_are_float32(tmp_path: Path) -> None:
    """Half sums would stop at 2048, where 1 is below the last place, and the square of 300 alone overflows."""
    proto = model([node("MatMul", "x,w", "y")], {"x": [1, 8000]}, weights={"w": np.ones((8000, 1), np.float16)})
    assert emulated(proto, tmp_path, x=np.ones((1, 8000), np.float16)).item() == 8000
    both = np.array([[300.0, 300.0]], np.float16)
    cancel = model(
        [node("MatMul", "x,w", "y")], {"x": [1, 2]}, weights={"w": np.array([[300.0], [-300.0]], np.float16)}
    )
    assert emulated(cancel, tmp_path, x=both).item() == 0


def test_float32_islands_are_left_as_they_are(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "f", to=TensorProto.FLOAT),
        node("Mul", "f,f", "square"),
        node("Sqrt", "square", "root"),
        node("Cast", "root", "y", to=TensorProto.FLOAT16),
    ]
    found = emulated(model(nodes, {"x": [1]}), tmp_path, x=np.array([3000.0], np.float16))
    assert found.item() == 3000.0


@pytest.mark.parametrize("operator", ["ReduceL2", "ReduceSumSquare"])
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_squares_are_rounded_before_they_are_summed(operator: str, opset: int, tmp_path: Path) -> None:
    axes = {"axes": [1]} if opset < 18 else {}
    names, weights = ("x", {}) if axes else ("x,axes", {"axes": np.array([1], np.int64)})
    proto = model([node(operator, names, "y", **axes)], {"x": [3, 50]}, weights=weights, opset=opset)
    small = halves(3, 3, 50)
    squares = np.square(small.astype(np.float32)).astype(np.float16).astype(np.float32)
    expected = squares.sum(axis=1, keepdims=True).astype(np.float16)
    if operator == "ReduceL2":
        expected = np.sqrt(expected.astype(np.float32)).astype(np.float16)
    assert ulps(expected, emulated(proto, tmp_path, x=small)) <= 1
    assert not np.isfinite(emulated(proto, tmp_path, x=np.full((3, 50), 300, np.float16))).any()


def grn(side: int, channels: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Global Response Normalization as timm's is exported: x + bias + weight * x * norm / mean norm."""
    nodes = [
        node("ReduceL2", "x,map", "norm", keepdims=1),
        node("ReduceMean", "norm,channel", "mean", keepdims=1),
        node("Add", "mean,eps", "shifted"),
        node("Div", "norm,shifted", "ratio"),
        node("Mul", "x,ratio", "scaled"),
        node("Mul", "scaled,weight", "weighted"),
        node("Add", "weighted,x", "y"),
    ]
    weights: dict[str, Array] = {
        "map": np.array([2, 3], np.int64),
        "channel": np.array([1], np.int64),
        "eps": np.array(1e-6, np.float16),
        "weight": halves(9, 1, channels, 1, 1),
    }
    return nodes, weights


def test_grn_over_a_large_map_is_no_number(tmp_path: Path) -> None:
    nodes, weights = grn(56, 8)
    proto = model(nodes, {"x": [1, 8, 56, 56]}, weights=weights)
    found = emulated(proto, tmp_path, x=halves(4, 1, 8, 56, 56, scale=10))
    assert np.isnan(found).all()


def test_instance_norm_is_blank_where_its_variance_overflows(tmp_path: Path) -> None:
    """Divided by an infinite deviation, everything is zero: finite, and wrong."""
    weights = {"s": np.ones(4, np.float16), "b": np.zeros(4, np.float16)}
    proto = model([node("InstanceNormalization", "x,s,b", "y")], {"x": [1, 4, 8, 8]}, weights=weights)
    assert not emulated(proto, tmp_path, x=halves(5, 1, 4, 8, 8, scale=900)).any()
    found = emulated(proto, tmp_path, x=halves(5, 1, 4, 8, 8, scale=10)).astype(np.float32)
    np.testing.assert_allclose(found.std(axis=(2, 3)), 1, atol=2e-3)


@pytest.mark.parametrize(("opset", "blank"), [(20, True), (21, False)])
def test_group_norm_is_safe_since_it_says_in_what_it_computes(opset: int, blank: bool, tmp_path: Path) -> None:
    count = 2 if blank else 4
    weights = {"s": np.ones(count, np.float16), "b": np.zeros(count, np.float16)}
    nodes = [node("GroupNormalization", "x,s,b", "normal", num_groups=2), node("Abs", "normal", "y")]
    proto = model(nodes, {"x": [1, 4, 8, 8]}, weights=weights, opset=opset)
    found = emulated(proto, tmp_path, x=halves(6, 1, 4, 8, 8, scale=900))
    assert found.any() != blank


# Beside PyTorch's half kernels on the CPU. They also sum in float32 and round once per operator, but sum in another order, so
# a value that lies near the middle of two halves may fall to either side: one unit in the last place per rounding.


def conv(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, torch.from_numpy(KERNEL), torch.from_numpy(BIAS), padding=1)


def norm(x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, (24,), torch.from_numpy(GAMMA), torch.from_numpy(BETA), 1e-5)


KERNEL, BIAS = halves(10, 16, 8, 3, 3, scale=0.2), halves(11, 16)
GAMMA, BETA = halves(12, 24), halves(13, 24)
SIZES = np.array([1, 8, 18, 18], np.int64)
ONE_OPERATOR: dict[
    str, tuple[onnx.NodeProto, dict[str, Array], tuple[int, ...], Callable[[torch.Tensor], torch.Tensor]]
] = {
    "Conv": (node("Conv", "x,k,b", "y", pads=[1] * 4), {"k": KERNEL, "b": BIAS}, (2, 8, 9, 9), conv),
    "LayerNormalization": (
        node("LayerNormalization", "x,g,b", "y", axis=-1),
        {"g": GAMMA, "b": BETA},
        (2, 7, 24),
        norm,
    ),
    "Gelu": (node("Gelu", "x", "y"), {}, (4, 200), functional.gelu),
    "Softmax": (node("Softmax", "x", "y", axis=-1), {}, (5, 64), lambda x: x.softmax(-1)),
    "Sigmoid": (node("Sigmoid", "x", "y"), {}, (4, 200), torch.sigmoid),
    "HardSwish": (node("HardSwish", "x", "y"), {}, (4, 200), functional.hardswish),
    "GlobalAveragePool": (
        node("GlobalAveragePool", "x", "y"),
        {},
        (2, 8, 16, 16),
        lambda x: x.mean((2, 3), keepdim=True),
    ),
    "Resize": (
        node("Resize", "x,,,sizes", "y", mode="linear", coordinate_transformation_mode="half_pixel"),
        {"sizes": SIZES},
        (1, 8, 9, 9),
        lambda x: functional.interpolate(x, size=(18, 18), mode="bilinear", align_corners=False),
    ),
}


@pytest.mark.parametrize("operator", ONE_OPERATOR)
def test_one_operator_is_within_one_unit_of_pytorchs(operator: str, tmp_path: Path) -> None:
    made, weights, shape, function = ONE_OPERATOR[operator]
    x = halves(20, *shape)
    expected = function(torch.from_numpy(x)).numpy()
    assert ulps(expected, emulated(model([made], {"x": shape}, weights=weights), tmp_path, x=x)) <= 1


def test_a_product_and_a_sum_are_within_two_units(tmp_path: Path) -> None:
    """Units of the product: the sum may cancel, which leaves its last place where it is."""
    x, w, b = halves(21, 6, 48), halves(22, 48, 20, scale=0.3), halves(23, 20)
    product = (torch.from_numpy(x) @ torch.from_numpy(w)).numpy()
    expected = (torch.from_numpy(product) + torch.from_numpy(b)).numpy()
    proto = model([node("MatMul", "x,w", "p"), node("Add", "p,b", "y")], {"x": x.shape}, weights={"w": w, "b": b})
    assert ulps(expected, emulated(proto, tmp_path, x=x), product) <= 2


def test_grn_is_within_a_few_units_where_it_does_not_overflow(tmp_path: Path) -> None:
    """Its norm is rounded three times here and once in PyTorch, then the ratio, two products and the sum."""
    nodes, weights = grn(8, 12)
    x = halves(24, 2, 12, 8, 8)
    given = torch.from_numpy(x)
    size = given.norm(p=2, dim=(2, 3), keepdim=True)
    ratio = size / (size.mean(dim=1, keepdim=True) + 1e-6)
    weighted = given * ratio * torch.from_numpy(weights["weight"])
    found = emulated(model(nodes, {"x": x.shape}, weights=weights), tmp_path, x=x)
    assert ulps((weighted + given).numpy(), found, weighted.numpy()) <= 4
