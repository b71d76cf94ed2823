"""Islands: what stays float32 and why, by name, by range, and always; and what half makes of it where nothing keeps it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.unit.export.cast_support import (
    CONV,
    FP16,
    KERNEL,
    Array,
    Range,
    cast,
    cast_model,
    hub,
    item,
    model,
    node,
    operators,
    random,
    rules,
    run,
    table_of,
    types,
)

from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.errors import DeploykitError
from deploykit.export import onnx_files, provenance
from deploykit.export.cast import CastOptions
from deploykit.export.stage import Item
from deploykit.runtime import drift


def test_weights_that_vanish_are_counted_and_large_ones_never_clamped(tmp_path: Path) -> None:
    kernel = KERNEL.copy()
    kernel.flat[:20] = 1e-9
    kernel.flat[20:50] = 1e-6
    nodes = [CONV, node("Add", "conv,large", "moved"), node("Sub", "moved,large", "y")]
    proto = model(nodes, {"kernel": kernel, "large": np.full((6, 1, 1), 7e4, np.float32)})
    made = cast_model(proto, tmp_path)
    lost = made.facts["weights"]
    assert lost["count"] == kernel.size
    assert lost["zero"] == pytest.approx(20 / kernel.size)
    assert lost["subnormal"] == pytest.approx(30 / kernel.size, abs=3 / kernel.size)
    assert rules(made) == {"moved": "constant", "y": "constant"}
    assert made.facts["islands"][0]["detail"] == "Add: large holds 70000, above 65504"


def test_an_infinite_mask_is_no_reason(tmp_path: Path) -> None:
    mask = np.array([0.0, -np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.float32)
    nodes = [CONV, node("Add", "conv,mask", "masked"), node("Softmax", "masked", "y")]
    made = cast_model(model(nodes, {"kernel": KERNEL, "mask": mask}), tmp_path)
    assert not rules(made)
    x = random(7, 2, 4, 8, 8)
    assert (run(made.path(onnx_files.MODEL), x)[..., 1] == 0).all()


def test_a_mask_that_bfloat16_would_make_infinite_stays_float32(tmp_path: Path) -> None:
    """float32's lowest number, a usual mask, is nearer to the next power of two than to bfloat16's lowest."""
    nodes = [CONV, node("Add", "conv,mask", "masked"), node("Softmax", "masked", "y")]
    weights = {"kernel": KERNEL, "mask": np.array([np.finfo(np.float32).min] + 7 * [0], np.float32)}
    made = cast_model(model(nodes, weights), tmp_path, CastOptions("bf16"))
    assert rules(made) == {"masked": "constant"}


def test_bfloat16_needs_no_ranges(tmp_path: Path) -> None:
    proto = model([CONV, node("Mul", "conv,conv", "y")], {"kernel": KERNEL})
    made = cast_model(proto, tmp_path, CastOptions("bf16"), known={"y": (0.0, 1e30)})
    assert not rules(made)
    assert onnx_files.load(made.path(onnx_files.MODEL)).opset_import[0].version == 22


def test_what_a_target_has_no_half_of_stays_float32(tmp_path: Path) -> None:
    nodes = [CONV, node("HardSwish", "conv", "a"), node("Relu", "a", "y")]
    proto = model(nodes, {"kernel": KERNEL})
    made = cast_model(proto, tmp_path / "without", CastOptions("bf16", without=("HardSwish",)))
    assert rules(made) == {"a": "no-kernel"}
    assert made.facts["islands"][0]["detail"] == "the target has no bfloat16 HardSwish"
    assert not rules(cast_model(proto, tmp_path / "with", CastOptions("bf16")))


def test_sizes_and_what_takes_no_half_stay_float32(tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("Shape", "x", "shape", start=2),
        node("Cast", "shape", "sizes", to=TensorProto.FLOAT),
        node("Mul", "sizes,two", "doubled"),
        node("Cast", "doubled", "whole", to=TensorProto.INT64),
        node("Concat", "rows,whole", "target", axis=0),
        node("Resize", "conv,,,target", "larger", mode="nearest"),
        node("Celu", "larger", "bent"),
        node("Resize", "bent,,factors", "y", mode="nearest"),
    ]
    weights: dict[str, Array] = {
        "kernel": KERNEL,
        "two": np.array([2.0], np.float32),
        "rows": np.array([2, 6], np.int64),
        "factors": np.array([1, 1, 0.5, 0.5], np.float32),
    }
    made = cast_model(model(nodes, weights, (2, 4, 8, 8)), tmp_path)
    assert rules(made) == {"sizes": "shapes", "doubled": "shapes", "whole": "shapes", "bent": "no-kernel"}
    found = types(made)
    assert found["factors"] == found["two"] == TensorProto.FLOAT
    assert found["larger"] == TensorProto.FLOAT16
    assert operators(made).count("Cast") == 2 + 2 + 2  # the graph's ends, those of the graph before, Celu's ends


def grn(weight: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A layer with GRN between two convolutions."""
    nodes = [
        CONV,
        node("ReduceL2", "conv,map", "norm", keepdims=1),
        node("ReduceMean", "norm,channel", "mean", keepdims=1),
        node("Add", "mean,eps", "shifted"),
        node("Div", "norm,shifted", "ratio"),
        node("Mul", "conv,ratio", "scaled"),
        node("Add", "scaled,conv", "y"),
    ]
    constants = {"map": [2, 3], "channel": [1]}
    weights = {name: np.array(values, np.int64) for name, values in constants.items()}
    return nodes, {**weights, "kernel": weight, "eps": np.array(1e-6, np.float32)}


SIDE = (1, 4, 56, 56)
GRN = ["norm", "mean", "shifted", "ratio"]


@pytest.fixture
def loud(tmp_path: Path) -> tuple[Item, Array, dict[str, Range]]:
    """A graph whose GRN overflows in half, an input, and the ranges on it."""
    nodes, weights = grn(KERNEL * 8)
    graph = hub(model(nodes, weights, SIDE), tmp_path / "loud", dict.fromkeys(GRN, "stages.0.grn"))
    return graph, random(8, *SIDE), {"conv": (-60.0, 60.0), "norm": (300.0, 900.0), "mean": (300.0, 900.0)}


def test_grn_survives_by_its_rule(loud: tuple[Item, Array, dict[str, Range]], tmp_path: Path) -> None:
    graph, x, _ = loud
    made = cast(graph, table_of(graph, tmp_path / "ranges", {}), CastOptions("fp16", ("grn",)), tmp_path / "cast")
    assert rules(made) == dict.fromkeys(GRN, "grn")
    assert {island["module"] for island in made.facts["islands"]} == {"stages.0.grn"}
    assert operators(made) == [
        "Cast",
        "Conv",
        "Cast",
        "ReduceL2",
        "ReduceMean",
        "Add",
        "Div",
        "Cast",
        "Mul",
        "Add",
        "Cast",
    ]
    exact = run(graph.path(onnx_files.MODEL), x, "onnxruntime")
    assert drift.sqnr_db(exact, run(made.path(onnx_files.MODEL), x)) > 60


def test_grn_survives_by_its_range(loud: tuple[Item, Array, dict[str, Range]], tmp_path: Path) -> None:
    graph, x, seen = loud
    made = cast(graph, table_of(graph, tmp_path / "ranges", seen), FP16, tmp_path / "cast")
    assert rules(made) == {"norm": "range"}
    assert made.facts["islands"][0]["detail"] == (
        "ReduceL2: conv reaches 60, the sum of 3136 squares 1.129e+07, above 32752"
    )
    exact = run(graph.path(onnx_files.MODEL), x, "onnxruntime")
    assert drift.sqnr_db(exact, run(made.path(onnx_files.MODEL), x)) > 55


def test_grn_is_infinite_where_the_table_lies(loud: tuple[Item, Array, dict[str, Range]], tmp_path: Path) -> None:
    graph, x, _ = loud
    lie = dict.fromkeys(("conv", "norm", "mean", "shifted", "y"), (-1e-3, 1e-3))
    made = cast(graph, table_of(graph, tmp_path / "ranges", lie), FP16, tmp_path / "cast")
    assert not rules(made)
    assert not drift.is_finite(run(made.path(onnx_files.MODEL), x))
    assert drift.is_finite(run(made.path(onnx_files.MODEL), x, "onnxruntime")), "which is why there is an emulator"


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_a_norm_written_out_stays_float32_from_the_difference_to_the_quotient(square: str, tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("ReduceMean", "conv,channel", "mean"),
        node("Sub", "conv,mean", "difference"),
        node("Pow", "difference,two", "square") if square == "Pow" else node("Mul", "difference,difference", "square"),
        node("ReduceMean", "square,channel", "variance"),
        node("Add", "variance,eps", "shifted"),
        node("Sqrt", "shifted", "deviation"),
        node("Div", "difference,deviation", "normal"),
        node("Mul", "normal,two", "y"),
    ]
    weights: dict[str, Array] = {
        "kernel": KERNEL * 300,
        "channel": np.array([1], np.int64),
        "two": np.array(2.0, np.float32),
        "eps": np.array(1e-6, np.float32),
    }
    made = cast_model(model(nodes, weights), tmp_path, CastOptions("fp16", ("decomposed-norms",)))
    names = ["mean", "difference", "square", "variance", "shifted", "deviation", "normal"]
    assert rules(made) == dict.fromkeys(names, "decomposed-norms")
    assert operators(made).count("Cast") == 4


@pytest.mark.parametrize(("reaches", "kept"), [(150.0, False), (300.0, True)])
def test_an_instance_norm_stays_float32_where_squares_are_too_large(reaches: float, kept: bool, tmp_path: Path) -> None:
    weights: dict[str, Array] = {"kernel": KERNEL, "s": np.ones(6, np.float32), "b": np.zeros(6, np.float32)}
    nodes = [CONV, node("InstanceNormalization", "conv,s,b", "y")]
    made = cast_model(model(nodes, weights), tmp_path, known={"conv": (-reaches, 0.0)})
    assert rules(made) == ({"y": "range"} if kept else {})
    if kept:
        told = "InstanceNormalization: conv reaches 300, its square 90000, above 32752"
        assert made.facts["islands"][0]["detail"] == told


@pytest.mark.parametrize("operator", ["ReduceSumSquare", "ReduceL2", "ReduceSum", "ReduceMean"])
def test_sums_of_squares_over_open_sizes_stay_float32(operator: str, tmp_path: Path) -> None:
    """However small the values are: on a larger map there are more of them."""
    squares = operator in {"ReduceSum", "ReduceMean"}
    first = node("Mul", "conv,conv", "a") if squares else node("Relu", "conv", "a")
    nodes = [CONV, first, node(operator, "a,map", "y")]
    weights: dict[str, Array] = {"kernel": KERNEL, "map": np.array([2, 3], np.int64)}
    made = cast_model(model(nodes, weights, ("batch", 4, "height", "width")), tmp_path)
    assert rules(made) == {"y": "range"}
    assert made.facts["islands"][0]["detail"].endswith("the sum of unknown many squares, above 32752")


def test_what_squares_in_an_unknown_precision_is_never_half(tmp_path: Path) -> None:
    made = cast_model(model([CONV, node("LpNormalization", "conv", "y", axis=1)], {"kernel": KERNEL}), tmp_path)
    assert rules(made) == {"y": "no-kernel"}


@pytest.mark.parametrize(("opset", "kept"), [(20, True), (21, False)])
def test_old_group_norms(opset: int, kept: bool, tmp_path: Path) -> None:
    weights = {"kernel": KERNEL, "s": np.ones(6, np.float32), "b": np.zeros(6, np.float32)}
    nodes = [CONV, node("InstanceNormalization", "conv,s,b", "y")]
    made = cast_model(model(nodes, weights, opset=opset), tmp_path, CastOptions("fp16", ("group-norm-before-21",)))
    assert rules(made) == ({"y": "group-norm-before-21"} if kept else {})


def test_the_angle_of_a_time_step_stays_float32(tmp_path: Path) -> None:
    nodes = [
        node("Mul", "x,frequencies", "angle"),
        node("Sin", "angle", "sine"),
        node("Cos", "angle", "cosine"),
        node("Concat", "sine,cosine", "waves", axis=-1),
        node("MatMul", "waves,matrix", "y"),
    ]
    weights = {"frequencies": (10000.0 ** -np.linspace(0, 1, 16)).astype(np.float32)[None], "matrix": random(9, 32, 8)}
    proto = model(nodes, weights, ("batch", 1))
    made = cast_model(proto, tmp_path, CastOptions("fp16", ("time-embedding",)), known={"x": (0.0, 999.0)})
    assert rules(made) == dict.fromkeys(("angle", "sine", "cosine"), "time-embedding")
    exact = run(tmp_path / "graph" / onnx_files.MODEL, np.array([[731.0]], np.float32), "onnxruntime")
    found = run(made.path(onnx_files.MODEL), np.array([[731.0]], np.float32))
    assert drift.sqnr_db(exact, found) > 60


def test_a_tensor_that_was_not_measured_stays_float32(tmp_path: Path) -> None:
    graph = hub(
        model(
            [CONV, node("Relu", "conv", "a"), node("MatMul", "a,w", "y")],
            {"kernel": KERNEL, "w": KERNEL[0, 0]},
            (1, 4, 3, 3),
        ),
        tmp_path / "graph",
    )
    (tmp_path / "ranges").mkdir()
    whole = table_of(graph, tmp_path / "whole", {})
    table = RangeTable.load(whole.path(RANGES))
    known = {name: entry for name, entry in table.tensors.items() if name != "conv"}
    RangeTable(table.graph, table.images, table.count, known).save(tmp_path / "ranges" / RANGES)
    made = cast(graph, item("ranges", tmp_path / "ranges"), FP16, tmp_path / "cast")
    assert rules(made) == {"conv": "unmeasured", "a": "unmeasured"}


def test_every_error_is_told_in_deploykits_words(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / onnx_files.MODEL).write_bytes(b"no model")
    provenance.write(tmp_path / "graph" / onnx_files.MODULES, {})
    with pytest.raises(DeploykitError, match="is no ONNX model"):
        cast(item("graph", tmp_path / "graph"), item("ranges", tmp_path / "graph"), FP16, tmp_path / "cast")


def test_operators_are_counted_by_what_they_compute_in(tmp_path: Path) -> None:
    nodes, weights = grn(KERNEL)
    made = cast_model(model(nodes, weights, SIDE), tmp_path, CastOptions("fp16", ("grn",)))
    # Four of the island, the Cast into it and the one at the graph's end.
    assert Counter(made.facts["nodes"]) == {"float16": 5, "float32": 6}
