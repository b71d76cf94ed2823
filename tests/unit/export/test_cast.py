"""The cast: what is refused, what becomes half, and how few Casts are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as make
import pytest
from onnx import TensorProto, numpy_helper
from tests.unit.export.cast_support import (
    CONV,
    FP16,
    KERNEL,
    Array,
    cast,
    cast_model,
    hub,
    model,
    node,
    operators,
    random,
    rules,
    run,
    structure,
    table_of,
    types,
)

from deploykit.errors import InternalError, UnsupportedError, UsageError
from deploykit.export import onnx_files, provenance
from deploykit.export.cast import STAGE, CastOptions
from deploykit.export.stage import Item
from deploykit.runtime import drift

# What is refused


def test_a_half_graph_is_told_that_it_is_one(tmp_path: Path) -> None:
    made = cast_model(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), tmp_path)
    with pytest.raises(UsageError, match="the graph is already float16: 'kernel' is"):
        cast(made, table_of(made, tmp_path / "again", {}), FP16, tmp_path / "twice")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (CastOptions("fp8"), "unknown precision 'fp8' of a cast; there are: fp16, bf16"),
        (CastOptions("fp16", ("gnr",)), "unknown rule for fp32 islands 'gnr'"),
    ],
)
def test_unknown_options(options: CastOptions, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        cast_model(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), tmp_path, options)


def test_a_table_of_another_graph_is_refused(tmp_path: Path) -> None:
    one = hub(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), tmp_path / "one")
    two = hub(model([CONV, node("Gelu", "conv", "y")], {"kernel": KERNEL}), tmp_path / "two")
    with pytest.raises(UsageError, match="belongs to graph"):
        cast(one, table_of(two, tmp_path / "ranges", {}), FP16, tmp_path / "cast")


def quantized(opset: int, scale: float = 0.05) -> onnx.ModelProto:
    """Conv with int8 activations and weights in Q/DQ."""
    nodes = [
        node("QuantizeLinear", "x,scale,zero", "x.int8"),
        node("DequantizeLinear", "x.int8,scale,zero", "x.dequantized"),
        node("DequantizeLinear", "codes,scales,zeros", "w", axis=0),
        node("Conv", "x.dequantized,w", "conv", pads=[1] * 4),
        node("Relu", "conv", "y"),
    ]
    weights: dict[str, Array] = {
        "scale": np.array(scale, np.float32),
        "zero": np.array(0, np.int8),
        "codes": np.random.default_rng(0).integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
        "scales": np.full(6, 0.002, np.float32),
        "zeros": np.zeros(6, np.int8),
    }
    return model(nodes, weights, opset=opset)


def test_scales_are_float32_below_opset_19(tmp_path: Path) -> None:
    words = r"QuantizeLinear 'x\.int8' of module 'stem' takes no fp16 scale in opset 17: that needs opset 19"
    with pytest.raises(UnsupportedError, match=words):
        cast_model(quantized(17), tmp_path, modules={"x.int8": "stem"})


def test_graphs_within_nodes_and_old_opsets_are_refused(tmp_path: Path) -> None:
    inside = make.make_graph(
        [node("Relu", "x", "z")], "b", [], [make.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    conditional = make.make_node("If", ["flag"], ["y"], then_branch=inside, else_branch=inside)
    proto = model([conditional], {"flag": np.array(True)})
    with pytest.raises(UnsupportedError, match="If 'y' of module 'gate' holds graphs of its own"):
        cast_model(proto, tmp_path / "if", modules={"y": "gate"})
    with pytest.raises(UnsupportedError, match="fp16 needs opset 13; the graph has 11"):
        cast_model(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}, opset=11), tmp_path / "old")
    proto = model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}, opset=17)
    with pytest.raises(UnsupportedError, match="bf16 needs opset 18; the graph has 17"):
        cast_model(proto, tmp_path / "older", CastOptions("bf16"))


def test_nothing_left_to_cast_is_unsupported(tmp_path: Path) -> None:
    proto = model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL})
    with pytest.raises(UnsupportedError, match="asked for fp16, no weight can be: islands are range 2"):
        cast_model(proto, tmp_path, known={"conv": (0.0, 1e5)})


def test_float32_outside_the_islands_is_our_bug(tmp_path: Path) -> None:
    made = cast_model(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), tmp_path)
    hidden = Item("graph", made.root, made.files, {"islands": []})
    onnx_files.save(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), made.root / onnx_files.MODEL)
    with pytest.raises(InternalError, match="asked for fp16, these nodes compute in float32: conv, y"):
        STAGE.ensure({}, FP16, hidden)


# The pass


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_all_becomes_half_between_float32_inputs_and_outputs(precision: str, kind: int, tmp_path: Path) -> None:
    made = cast_model(model([CONV, node("Gelu", "conv", "y")], {"kernel": KERNEL}), tmp_path, CastOptions(precision))
    assert operators(made) == ["Cast", "Conv", "Gelu", "Cast"]
    found = types(made)
    assert (found["x"], found["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert found["kernel"] == found["conv"] == kind
    facts = made.facts
    assert (facts["weight_bytes_before"], facts["weight_bytes"]) == (KERNEL.nbytes, KERNEL.nbytes // 2)
    assert (facts["casts"], facts["islands"]) == (2, [])
    assert sum(facts["nodes"].values()) == 4
    x = random(2, 3, 4, 8, 8)
    exact = run(tmp_path / "graph" / onnx_files.MODEL, x, "onnxruntime")
    assert drift.sqnr_db(exact, run(made.path(onnx_files.MODEL), x)) > (60 if precision == "fp16" else 40)


def test_the_same_graph_gives_the_same_bytes_and_the_input_is_not_touched(tmp_path: Path) -> None:
    graph = hub(model([CONV, node("Gelu", "conv", "y")], {"kernel": KERNEL}), tmp_path / "graph")
    ranges = table_of(graph, tmp_path / "ranges", {})
    one, two = (cast(graph, ranges, FP16, tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    graph.check()


def test_modules_are_carried_over(tmp_path: Path) -> None:
    proto = model([CONV, node("Gelu", "conv", "y")], {"kernel": KERNEL})
    made = cast_model(proto, tmp_path, modules={"conv": "stem", "y": "head"})
    assert provenance.read(made.path(onnx_files.MODULES)) == {
        "x.float16": "stem",
        "conv": "stem",
        "y.float16": "head",
        "y": "head",
    }


def test_weights_of_both_sides_are_there_twice_and_shared_ones_once(tmp_path: Path) -> None:
    """One scale in an island and outside: no Cast of a constant is computed as the graph runs."""
    nodes = [node("Mul", "x,scale", "a"), node("Mul", "a,scale", "b"), node("Mul", "b,scale", "y")]
    proto = model(nodes, {"scale": random(3, 64, 4, 8, 8)}, (64, 4, 8, 8))
    made = cast_model(proto, tmp_path, known={"a": (0.0, 1e5), "x": (0.0, 1e5), "b": (0.0, 4.0)})
    assert operators(made) == ["Mul", "Mul", "Cast", "Mul", "Cast"]
    found = types(made)
    assert (found["scale"], found["scale.float16"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)


def test_neighbouring_islands_are_one_with_a_cast_at_either_end(tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("Mul", "conv,conv", "square"),
        node("Transpose", "square", "turned", perm=[0, 2, 3, 1]),
        node("Sqrt", "turned", "root"),
        node("Transpose", "root", "back", perm=[0, 3, 1, 2]),
        node("Conv", "back,second", "y", pads=[1] * 4),
    ]
    proto = model(nodes, {"kernel": KERNEL, "second": random(4, 4, 6, 3, 3)})
    large = {"square": (0.0, 9e4), "turned": (0.0, 9e4)}
    made = cast_model(proto, tmp_path, known=large)
    assert operators(made) == ["Cast", "Conv", "Cast", "Mul", "Transpose", "Sqrt", "Cast", "Transpose", "Conv", "Cast"]
    assert rules(made) == {"square": "range", "turned": "range", "root": "range"}


def test_what_only_moves_values_between_islands_stays_with_them(tmp_path: Path) -> None:
    """Its own values are small, but as half it would need a Cast on either side."""
    nodes = [
        CONV,
        node("Mul", "conv,large", "a"),
        node("Div", "a,large", "b"),
        node("Transpose", "b", "turned", perm=[0, 2, 3, 1]),
        node("Reshape", "turned,flat", "row"),
        node("Mul", "row,large", "c"),
        node("Div", "c,large", "d"),
        node("MatMul", "d,matrix", "y"),
    ]
    weights: dict[str, Array] = {
        "kernel": KERNEL,
        "large": np.array(3e4, np.float32),
        "flat": np.array([0, -1], np.int64),
        "matrix": random(5, 384, 3),
    }
    made = cast_model(model(nodes, weights), tmp_path, known={"a": (-1e5, 1e5), "c": (-1e5, 1e5)})
    assert rules(made) == {
        "a": "range",
        "b": "range",
        "turned": "between",
        "row": "between",
        "c": "range",
        "d": "range",
    }
    assert operators(made).count("Cast") == 4


def test_an_island_at_the_end_gives_out_its_float32(tmp_path: Path) -> None:
    nodes = [CONV, node("Mul", "conv,conv", "y")]
    made = cast_model(model(nodes, {"kernel": KERNEL}), tmp_path, known={"y": (0.0, 1e6)})
    assert operators(made) == ["Cast", "Conv", "Cast", "Mul"]


def test_an_output_that_is_also_used_within(tmp_path: Path) -> None:
    nodes = [CONV, node("Relu", "conv", "features"), node("Gelu", "features", "y")]
    made = cast_model(model(nodes, {"kernel": KERNEL}, outputs=("y", "features")), tmp_path)
    assert operators(made) == ["Cast", "Conv", "Relu", "Cast", "Gelu", "Cast"]
    assert [value.name for value in structure(made).output] == ["y", "features"]
    assert list(structure(made).node[4].input) == ["features.float16"]


def test_constants_that_are_nodes_and_types_that_are_attributes(tmp_path: Path) -> None:
    nodes = [
        make.make_node("Constant", [], ["kernel"], value=numpy_helper.from_array(KERNEL)),
        CONV,
        node("Greater", "conv,conv2", "mask"),
        node("Cast", "mask", "ones", to=TensorProto.FLOAT),
        node("Shape", "conv", "shape"),
        node("ConstantOfShape", "shape", "twos", value=make.make_tensor("v", TensorProto.FLOAT, [1], [2.0])),
        node("Add", "ones,twos", "sum"),
        node("Mul", "sum,conv", "y"),
    ]
    made = cast_model(model(nodes, {"conv2": np.zeros(1, np.float32)}), tmp_path)
    found = types(made)
    assert {found[name] for name in ("kernel", "ones", "twos", "sum")} == {TensorProto.FLOAT16}
    x = random(6, 2, 4, 8, 8)
    exact = run(tmp_path / "graph" / onnx_files.MODEL, x, "onnxruntime")
    assert drift.sqnr_db(exact, run(made.path(onnx_files.MODEL), x)) > 60


def test_int8_graphs_take_half_scales(tmp_path: Path) -> None:
    made = cast_model(quantized(19), tmp_path)
    found = types(made)
    assert found["scale"] == found["scales"] == found["w"] == TensorProto.FLOAT16
    assert found["codes"] == TensorProto.INT8
    x = random(7, 2, 4, 8, 8)
    exact = run(tmp_path / "graph" / onnx_files.MODEL, x, "onnxruntime")
    assert drift.sqnr_db(exact, run(made.path(onnx_files.MODEL), x)) > 25


def test_scales_that_half_cannot_hold_stay_float32(tmp_path: Path) -> None:
    made = cast_model(quantized(19, scale=1e-8), tmp_path)
    assert rules(made) == {"x.int8": "scale", "x.dequantized": "scale"}


def test_int8_graphs_take_the_ranges_of_the_graph_they_were_made_from(tmp_path: Path) -> None:
    graph = hub(quantized(19), tmp_path / "graph")
    origin = hub(model([CONV, node("Relu", "conv", "y")], {"kernel": KERNEL}), tmp_path / "origin")
    made = cast(graph, table_of(origin, tmp_path / "ranges", {"x": (0.0, 1e5)}), FP16, tmp_path / "cast")
    assert rules(made) == {"x.int8": "range", "x.dequantized": "range", "conv": "range"}
