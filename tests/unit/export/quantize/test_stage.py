"""The quantize stage on small graphs: what it refuses, what it writes, and what the runtimes make of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.unit.export.cast_support import Array, hub, item, model, node, table_of

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError, UsageError
from deploykit.export import onnx_files, provenance
from deploykit.export.engines import onnx as ort_target
from deploykit.export.engines import openvino as openvino_target
from deploykit.export.quantize.grid import INT8, UINT8
from deploykit.export.quantize.placement import Placement
from deploykit.export.quantize.stage import STAGE, QuantizeOptions
from deploykit.export.stage import Item, Workspace
from deploykit.models.precision import Int8Recipe
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.gate import share_gate
from deploykit.verdict import Verdict, grade_of, int8_share

RNG = np.random.default_rng(7)
WEIGHTS: dict[str, Array] = {
    "conv.weight": RNG.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8,
    "conv.bias": RNG.standard_normal(16).astype(np.float32),
    "deep.weight": RNG.standard_normal((16, 1, 3, 3)).astype(np.float32) / 3,
    "fc.weight": RNG.standard_normal((16, 10)).astype(np.float32) / 4,
}
NODES = [
    node("Conv", "x,conv.weight,conv.bias", "a", pads=[1, 1, 1, 1]),
    node("Relu", "a", "b"),
    node("Conv", "b,deep.weight", "c", pads=[1, 1, 1, 1], group=16),
    node("GlobalAveragePool", "c", "d"),
    node("Flatten", "d", "e"),
    node("Gemm", "e,fc.weight", "y"),
]
MODULES = {"a": "stem.conv", "c": "blocks.0.deep", "y": "head.fc"}
PLACEMENTS = {
    "onnxruntime": ort_target.TARGET.placements["int8"],
    "openvino": openvino_target.TARGET.placements["int8"],
}


def options(backend: str, recipe: Int8Recipe | None = None) -> QuantizeOptions:
    placement = PLACEMENTS[backend]
    return QuantizeOptions(recipe or Int8Recipe(method="minmax"), placement)


def network(folder: Path) -> Item:
    return hub(model(NODES, WEIGHTS, (1, 8, 8, 8)), folder, MODULES)


def quantized(graph: Item, chosen: QuantizeOptions, tmp_path: Path) -> Item:
    table = table_of(graph, tmp_path / "table", {"b": (0.0, 8.0), "d": (-2.0, 6.0)}, rest=(-8.0, 8.0))
    folder = tmp_path / "int8"
    folder.mkdir()
    inputs = {"graph": graph, "ranges": table}
    made = item("graph", folder, STAGE.run(inputs, chosen, Workspace(folder, lambda _done, _total: None)))
    STAGE.ensure(inputs, chosen, made)
    return item("graph", folder, made.facts)


def test_a_quantized_graph_is_refused(tmp_path: Path) -> None:
    once = quantized(network(tmp_path / "graph"), options("openvino"), tmp_path)
    (tmp_path / "again").mkdir()
    with pytest.raises(UsageError, match="quantized already"):
        quantized(once, options("openvino"), tmp_path / "again")


def test_the_table_of_another_graph_is_refused(tmp_path: Path) -> None:
    graph = network(tmp_path / "graph")
    other = hub(model(NODES, {**WEIGHTS, "conv.bias": np.zeros(16, np.float32)}, (1, 8, 8, 8)), tmp_path / "other")
    table = table_of(other, tmp_path / "table", {})
    folder = tmp_path / "int8"
    folder.mkdir()
    with pytest.raises(UsageError, match="belongs to graph"):
        STAGE.run({"graph": graph, "ranges": table}, options("openvino"), Workspace(folder, lambda _done, _total: None))


def test_nothing_to_quantize_is_refused_with_the_reason(tmp_path: Path) -> None:
    chosen = options("openvino", Int8Recipe(method="minmax", floats=("*",)))
    with pytest.raises(UnsupportedError, match="no layer can be int8: the family keeps it"):
        quantized(network(tmp_path / "graph"), chosen, tmp_path)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    graph = hub(model(NODES, WEIGHTS, (1, 8, 8, 8), opset=12), tmp_path / "graph")
    with pytest.raises(UnsupportedError, match="needs opset 13; the graph has 12"):
        quantized(graph, options("openvino"), tmp_path)


@pytest.mark.parametrize("backend", list(PLACEMENTS))
def test_every_layer_runs_in_8_bits_and_answers_as_before(backend: str, tmp_path: Path) -> None:
    graph = network(tmp_path / "graph")
    made = quantized(graph, options(backend), tmp_path)
    feed = {"x": RNG.uniform(-4, 4, (1, 8, 8, 8)).astype(np.float32)}
    runtime, config = get_backend(backend), RunConfig(backend, precision="f32", threads=1)
    with runtime.open(str(graph.path(onnx_files.MODEL)), config) as before:
        expected = before.infer(feed)["y"]
        assert int8_share(before.executed(feed)) == 0.0
    with runtime.open(str(made.path(onnx_files.MODEL)), config) as after:
        found = after.infer(feed)["y"]
        layers = after.executed(feed)
    assert int8_share(layers) == 1.0
    assert sum(layer.macs for layer in layers) == 16 * 64 * 72 + 16 * 64 * 9 + 160
    assert drift.sqnr_db(expected, found) > 25.0


def test_what_stays_is_told_with_module_and_reason(tmp_path: Path) -> None:
    recipe = Int8Recipe(method="minmax", floats=("head.*",), depthwise=False)
    made = quantized(network(tmp_path / "graph"), options("openvino", recipe), tmp_path)
    assert {(left["module"], left["reason"]) for left in made.facts["left"]} == {
        ("blocks.0.deep", "depthwise: bound by memory, not by arithmetic"),
        ("head.fc", "the family keeps it"),
    }
    graph = onnx_files.load(made.path(onnx_files.MODEL)).graph
    stored = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert {tuple(tensor.dims) for tensor in stored if len(tensor.dims) > 1} == {(16, 8, 3, 3)}
    assert provenance.read(made.path(onnx_files.MODULES))["a"] == "stem.conv"


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_layers_that_stay_run_in_the_precision_of_the_run(precision: str, tmp_path: Path) -> None:
    """Either is judged as int8."""
    runtime, config = get_backend("openvino"), RunConfig("openvino", precision=precision, threads=1)
    if reason := runtime.unavailable(config):
        pytest.skip(reason)
    made = quantized(
        network(tmp_path / "graph"), options("openvino", Int8Recipe(method="minmax", floats=("head.*",))), tmp_path
    )
    feed = {"x": RNG.uniform(-4, 4, (1, 8, 8, 8)).astype(np.float32)}
    with runtime.open(str(made.path(onnx_files.MODEL)), config) as session:
        assert Counter(layer.precision for layer in session.executed(feed)) == {"int8": 2, precision: 1}
        assert session.ran.precision == precision
    assert grade_of("int8", precision) == "int8"


def test_integer_biases_are_on_the_grid_of_what_is_moved(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "flat"), node("Gemm", "flat,weight,bias", "y")]
    weights = {"weight": RNG.standard_normal((16, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}
    graph = hub(model(nodes, weights, (1, 4, 2, 2)), tmp_path / "graph")
    placement = Placement(UINT8, integer_bias=True, moves=("Flatten",))
    made = quantized(graph, QuantizeOptions(Int8Recipe(method="minmax"), placement), tmp_path)
    proto = onnx_files.load_whole(made.path(onnx_files.MODEL))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes_by_output = {given.output[0]: given for given in proto.graph.node}
    data, weight, bias = (nodes_by_output[f"{name}.dequantized"] for name in ("x", "weight", "bias"))
    codes, scales = (values[name].astype(np.float64) for name in bias.input[:2])
    assert np.allclose(scales, values[data.input[1]] * values[weight.input[1]], rtol=1e-6)
    assert np.all(np.abs(codes * scales - 1) <= scales / 2)


def test_layers_named_by_the_caller_stay(tmp_path: Path) -> None:
    made = quantized(network(tmp_path / "graph"), replace(options("openvino"), kept=("a",)), tmp_path)
    assert [left["node"] for left in made.facts["left"]] == ["a"]


def test_a_float_network_fails_the_gate_of_8_bits_by_name(tmp_path: Path) -> None:
    graph = network(tmp_path / "graph")
    feed = {"x": RNG.uniform(-4, 4, (1, 8, 8, 8)).astype(np.float32)}
    config = RunConfig("onnxruntime", precision="f32", threads=1)
    with get_backend("onnxruntime").open(str(graph.path(onnx_files.MODEL)), config) as session:
        result = share_gate(session.executed(feed), 0.9)
    assert (result.verdict, result.kind.exit_code, result.value) == (Verdict.FAIL, 8, 0.0)
    assert "too little runs in 8 bits" in result.reason


TOKENS, WIDTH, HEADS = 12, 16, 2
DRAWN = np.random.default_rng(0)
#: Attention as ViTs are exported: queries, keys and values from one layer, heads by reshape and transpose.
ATTENTION = [
    node("MatMul", "x,qkv.weight", "qkv"),
    node("Reshape", "qkv,heads", "cut"),
    node("Transpose", "cut", "first", perm=[2, 0, 3, 1, 4]),
    node("Split", "first", "q1,k1,v1", axis=0, num_outputs=3),
    *(node("Squeeze", f"{name}1,axes", name) for name in "qkv"),
    node("Transpose", "k", "turned", perm=[0, 1, 3, 2]),
    node("MatMul", "q,turned", "scores"),
    node("Softmax", "scores", "shares", axis=-1),
    node("MatMul", "shares,v", "mixed"),
    node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
    node("Reshape", "back,whole", "joined"),
    node("MatMul", "joined,proj.weight", "y"),
]
ATTENTION_WEIGHTS: dict[str, Array] = {
    "qkv.weight": DRAWN.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32) / 4,
    "heads": np.array([1, TOKENS, 3, HEADS, WIDTH // HEADS]),
    "axes": np.array([0]),
    "whole": np.array([1, TOKENS, WIDTH]),
    "proj.weight": DRAWN.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4,
}


def attention(folder: Path) -> Item:
    return hub(model(ATTENTION, ATTENTION_WEIGHTS, (1, TOKENS, WIDTH)), folder, {"scores": "attn", "mixed": "attn"})


def quantized_attention(chosen: QuantizeOptions, tmp_path: Path) -> tuple[Item, Item]:
    graph = attention(tmp_path / "graph")
    table = table_of(graph, tmp_path / "table", {"shares": (0.0, 1.0)}, rest=(-4.0, 4.0))
    folder = tmp_path / "int8"
    folder.mkdir()
    inputs = {"graph": graph, "ranges": table}
    return graph, item("graph", folder, STAGE.run(inputs, chosen, Workspace(folder, lambda _done, _total: None)))


def test_products_of_activations_stay_where_the_target_has_no_grid_for_them(tmp_path: Path) -> None:
    _, made = quantized_attention(options("onnxruntime"), tmp_path)
    assert (made.facts["layers"], made.facts["products"]) == (2, 0)
    reason = "a product of two activations, which this target doesn't round"
    assert [(left["node"], left["module"], left["reason"]) for left in made.facts["left"]] == [
        ("scores", "attn", reason),
        ("mixed", "attn", reason),
    ]


def test_a_product_in_another_precision_stays(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "long", to=onnx.TensorProto.DOUBLE),
        node("MatMul", "long,long", "square"),
        node("Cast", "square", "short", to=onnx.TensorProto.FLOAT),
        node("MatMul", "short,weight", "y"),
    ]
    graph = hub(model(nodes, {"weight": np.eye(4, dtype=np.float32)}, (4, 4)), tmp_path / "graph")
    made = quantized(graph, options("openvino"), tmp_path)
    assert [(left["node"], left["reason"]) for left in made.facts["left"]] == [
        ("square", "its weights are not constant float32")
    ]


def test_a_product_named_by_the_caller_stays(tmp_path: Path) -> None:
    _, made = quantized_attention(replace(options("openvino"), kept=("scores",)), tmp_path)
    assert made.facts["products"] == 1
    assert [left["node"] for left in made.facts["left"]] == ["scores"]


def test_attention_is_rounded_without_zero_points_before_it_is_moved(tmp_path: Path) -> None:
    apart = replace(PLACEMENTS["openvino"], joint=False)
    graph, made = quantized_attention(replace(options("openvino"), placement=apart), tmp_path)
    assert (made.facts["layers"], made.facts["products"], made.facts["left"]) == (2, 2, [])
    proto = onnx_files.load_whole(made.path(onnx_files.MODEL))
    rounded = {given.input[0]: given for given in proto.graph.node if given.op_type == "QuantizeLinear"}
    assert set(rounded) == {"x", "q1", "k1", "v1", "shares", "mixed"}
    zeros = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    kinds = {name: zeros[rounded[name].input[2]] for name in ("q1", "k1", "v1", "shares")}
    assert {name: (zero.dtype.name, int(zero)) for name, zero in kinds.items()} == {
        **dict.fromkeys(("q1", "k1", "v1"), ("int8", 0)),
        "shares": ("uint8", 0),
    }
    feed = {"x": np.random.default_rng(1).uniform(-2, 2, (1, TOKENS, WIDTH)).astype(np.float32)}
    answers = {}
    for backend, which in (("onnxruntime", graph), ("onnxruntime", made), ("openvino", made)):
        config = RunConfig(backend, precision="f32", threads=1)
        with get_backend(backend).open(str(which.path(onnx_files.MODEL)), config) as session:
            answers[backend, which is made] = session.infer(feed)["y"]
    assert drift.sqnr_db(answers["onnxruntime", True], answers["openvino", True]) > 30.0
    assert drift.sqnr_db(answers["onnxruntime", False], answers["openvino", True]) > 15.0


KEYS = replace(Placement(INT8), keys=INT8)
#: The same with one layer for all three: its output is taken apart, then moved.
JOINED = [
    node("MatMul", "x,qkv.weight", "qkv"),
    node("Add", "qkv,qkv.bias", "biased"),
    node("Split", "biased", "q,k,v", axis=-1, num_outputs=3),
    node("Reshape", "k,whole", "k1"),
    node("Transpose", "k1", "keys", perm=[0, 2, 1]),
    node("MatMul", "q,keys", "scores"),
    node("Mul", "scores,half", "scaled"),
    node("Softmax", "scaled", "shares"),
    node("MatMul", "shares,v", "mixed"),
    node("MatMul", "mixed,proj.weight", "y"),
]
JOINED_WEIGHTS: dict[str, Array] = {
    "qkv.weight": DRAWN.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32) / 4,
    "qkv.bias": DRAWN.standard_normal(3 * WIDTH).astype(np.float32),
    "whole": np.array([1, TOKENS, WIDTH]),
    "half": np.array(0.5, np.float32),
    "proj.weight": DRAWN.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 4,
}


def rounded_tensors(graph: Item, chosen: QuantizeOptions, folder: Path) -> list[str]:
    folder.mkdir()
    proto = onnx_files.load(quantized(graph, chosen, folder).path(onnx_files.MODEL))
    return sorted(given.input[0] for given in proto.graph.node if given.op_type == "QuantizeLinear")


def test_keys_are_rounded_by_themselves_before_they_are_moved(tmp_path: Path) -> None:
    graph = hub(model(JOINED, JOINED_WEIGHTS, (1, TOKENS, WIDTH)), tmp_path / "joined")
    chosen = QuantizeOptions(Int8Recipe(method="minmax"), KEYS)
    assert rounded_tensors(graph, chosen, tmp_path / "keys") == ["k", "mixed", "x"]
    timm = attention(tmp_path / "timm")
    assert rounded_tensors(timm, chosen, tmp_path / "timm int8") == ["joined", "k1", "x"]
    without = replace(chosen, placement=replace(KEYS, keys=None))
    assert rounded_tensors(graph, without, tmp_path / "none") == ["mixed", "x"]


def test_keys_of_a_layer_that_stays_are_not_rounded(tmp_path: Path) -> None:
    graph = hub(model(JOINED, JOINED_WEIGHTS, (1, TOKENS, WIDTH)), tmp_path / "joined")
    kept = QuantizeOptions(Int8Recipe(method="minmax"), KEYS, kept=("qkv",))
    assert rounded_tensors(graph, kept, tmp_path / "kept") == ["mixed"]


def test_keys_that_are_normalized_are_not_rounded_nor_what_meets_no_softmax(tmp_path: Path) -> None:
    weights = {**JOINED_WEIGHTS, "gamma": np.ones(WIDTH, np.float32)}
    normed = [node("LayerNormalization", "k,gamma", "kn"), node("Reshape", "kn,whole", "k1")]
    graphs = {
        "normed": [*JOINED[:3], *normed, *JOINED[4:]],
        "linear": [*JOINED[:7], node("Relu", "scaled", "shares"), *JOINED[8:]],
    }
    for name, nodes in graphs.items():
        graph = hub(model(nodes, weights, (1, TOKENS, WIDTH)), tmp_path / name)
        chosen = QuantizeOptions(Int8Recipe(method="minmax"), KEYS)
        assert rounded_tensors(graph, chosen, tmp_path / f"{name} int8") == ["mixed", "x"]


def test_a_runtime_gets_the_rewrites_that_it_is_faster_with(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "x", "last", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "last,gamma", "normed"),
        node("Transpose", "normed", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first,weight", "y"),
    ]
    weights = {"gamma": np.ones(8, np.float32), "weight": RNG.standard_normal((4, 8, 1, 1)).astype(np.float32)}
    graph = hub(model(nodes, weights, (1, 8, 4, 4)), tmp_path / "graph", {"normed": "norm"})
    table = table_of(graph, tmp_path / "table", {}, rest=(-8.0, 8.0))
    norms, modules = {}, {}
    for backend in PLACEMENTS:
        folder = tmp_path / backend
        folder.mkdir()
        STAGE.run({"graph": graph, "ranges": table}, options(backend), Workspace(folder, lambda _done, _total: None))
        proto = onnx_files.load(folder / onnx_files.MODEL)
        norms[backend] = sum(given.op_type == "LayerNormalization" for given in proto.graph.node)
        modules[backend] = provenance.read(folder / onnx_files.MODULES)
    assert norms == {"onnxruntime": 1, "openvino": 0}
    assert modules["openvino"]["first"] == "norm"
