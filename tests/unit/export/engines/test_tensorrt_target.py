"""The target TensorRT for RTX: graphs of the cast and quantize stages become engines that hold what was asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support import RECIPE
from tests.unit.export.cast_support import Array, hub, item, model, node, table_of

from deploykit.artifact import Axis, RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import cast, onnx_files
from deploykit.export.engines import tensorrt as target
from deploykit.export.engines.tensorrt import check_layers, check_precision
from deploykit.export.quantize import stage as quantize
from deploykit.export.stage import Item, Workspace
from deploykit.export.target import PackageOptions
from deploykit.models.precision import Int8Recipe
from deploykit.optional import COMPONENTS
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.runtime.backends.tensorrt_record import read_engine
from deploykit.verdict import Executed, int8_share

needs_rtx = pytest.mark.skipif(
    COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"
)

RNG = np.random.default_rng(5)
WEIGHTS: dict[str, Array] = {
    "stem.weight": RNG.standard_normal((16, 8, 3, 3)).astype(np.float32) / 8,
    "block.weight": RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12,
    "block.bias": RNG.standard_normal(16).astype(np.float32),
    "fc.weight": RNG.standard_normal((16, 10)).astype(np.float32) / 4,
}
NODES = [
    node("Conv", "x,stem.weight", "a", pads=[1, 1, 1, 1], name="stem"),
    node("Relu", "a", "b"),
    node("Conv", "b,block.weight,block.bias", "c", pads=[1, 1, 1, 1], name="block"),
    node("Add", "c,b", "d"),
    node("GlobalAveragePool", "d", "e"),
    node("Flatten", "e", "f"),
    node("Gemm", "f,fc.weight", "y", name="fc"),
]
MODULES = {"a": "stem", "c": "blocks.0.conv", "y": "head.fc"}
OPTIONS = PackageOptions("net", "fp32", ("a", "b"), RECIPE, capabilities=(86, 89))


def graph(folder: Path, batch: int | str = 1) -> Item:
    return hub(model(NODES, WEIGHTS, (batch, 8, 8, 8)), folder, MODULES)


def workspace(folder: Path) -> Workspace:
    folder.mkdir()
    return Workspace(folder, lambda _done, _total: None)


def half(made: Item, ranges: Item, folder: Path, precision: str = "fp16") -> Item:
    space = workspace(folder)
    options = cast.CastOptions(precision, without=target.TARGET.without.get(precision, ()))
    return item("graph", folder, cast.STAGE.run({"graph": made, "ranges": ranges}, options, space))


def rounded(made: Item, ranges: Item, folder: Path, precision: str = "int8") -> Item:
    options = quantize.QuantizeOptions(Int8Recipe(method="minmax"), target.TARGET.placements[precision])
    space = workspace(folder)
    return item("graph", folder, quantize.STAGE.run({"graph": made, "ranges": ranges}, options, space))


def package(made: Item, folder: Path, options: PackageOptions = OPTIONS) -> Item:
    space = workspace(folder)
    return item("artifact", folder, target.TARGET.stage.run({"graph": made}, options, space))


@pytest.mark.parametrize(
    ("precision", "found"), [("fp16", "float"), ("bf16", "float"), ("int8", "float"), ("fp8", "float")]
)
def test_a_graph_of_another_precision_is_refused_before_anything_is_built(
    tmp_path: Path, precision: str, found: str
) -> None:
    loaded = onnx_files.load(graph(tmp_path / "graph").path(onnx_files.MODEL))
    with pytest.raises(UnsupportedError, match=rf"asked for {precision}, the graph holds [\d,]+ {found}"):
        check_precision(loaded, precision)


def test_an_engine_none_of_whose_layers_is_as_asked_for_is_refused() -> None:
    layers = [Executed("a", "Conv", "f16", 1), Executed("b", "Conv", "f16", 1), Executed("c", "Gemm", "unknown", 1)]
    with pytest.raises(UnsupportedError, match=r"asked for int8, .*otherwise: 2 in f16, 1 in unknown"):
        check_layers(layers, "int8")
    check_layers(layers, "fp16")
    check_layers([], "int8")


def test_what_is_added_to_a_layer_is_rounded_too_and_biases_stay_float(tmp_path: Path) -> None:
    hub_graph = graph(tmp_path / "graph")
    made = rounded(hub_graph, table_of(hub_graph, tmp_path / "table", {}), tmp_path / "int8")
    structure = onnx_files.load(made.path(onnx_files.MODEL)).graph
    by_output = {one.output[0]: one for one in structure.node}
    add = by_output["d"]
    assert [by_output[name].op_type for name in add.input] == ["Conv", "DequantizeLinear"]
    shared = by_output["c"].input[0]
    assert shared == add.input[1], "one rounding for both users"
    kinds = {tensor.name: tensor.data_type for tensor in structure.initializer}
    assert kinds["block.bias"] == onnx.TensorProto.FLOAT
    zeros = [onnx.numpy_helper.to_array(one) for one in structure.initializer if "zero" in one.name]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)


def test_one_side_of_a_sum_of_two_layers_is_rounded(tmp_path: Path) -> None:
    weights = {"left": WEIGHTS["stem.weight"], "right": WEIGHTS["stem.weight"] / 2}
    nodes = [
        node("Conv", "x,left", "a", pads=[1, 1, 1, 1]),
        node("Conv", "x,right", "b", pads=[1, 1, 1, 1]),
        node("Add", "a,b", "y"),
    ]
    hub_graph = hub(model(nodes, weights, (1, 8, 8, 8)), tmp_path / "graph")
    made = rounded(hub_graph, table_of(hub_graph, tmp_path / "table", {}), tmp_path / "int8")
    by_output = {one.output[0]: one for one in onnx_files.load(made.path(onnx_files.MODEL)).graph.node}
    assert sorted(by_output[name].op_type for name in by_output["y"].input) == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize("backend", ["onnxruntime", "emulator"])
@pytest.mark.parametrize(("precision", "least"), [("int8", 25.0), ("fp8", 22.0)])
def test_the_placement_answers_as_the_float_graph_does(
    tmp_path: Path, precision: str, least: float, backend: str
) -> None:
    hub_graph = graph(tmp_path / "graph")
    table = table_of(hub_graph, tmp_path / "table", {"b": (0.0, 8.0), "e": (-4.0, 4.0)}, rest=(-8.0, 8.0))
    made = half(rounded(hub_graph, table, tmp_path / "rounded", precision), table, tmp_path / "half")
    feed = {"x": RNG.uniform(-2, 2, (1, 8, 8, 8)).astype(np.float32)}
    answers = []
    for one in (hub_graph, made):
        with get_backend(backend).open(str(one.path(onnx_files.MODEL)), RunConfig(backend)) as session:
            answers.append(session.infer(feed)["y"])
    assert least < drift.sqnr_db(*answers) < 60.0, "rounded, and not too much"


def test_sums_and_depthwise_convolutions_are_not_rounded_to_fp8(tmp_path: Path) -> None:
    deep = [node("Conv", "d,deep.weight", "dd", group=16, name="deep"), node("GlobalAveragePool", "dd", "e")]
    weights = {**WEIGHTS, "deep.weight": WEIGHTS["block.weight"][:, :1]}
    proto = model([*NODES[:4], *deep, *NODES[5:]], weights, (1, 8, 8, 8))
    hub_graph = hub(proto, tmp_path / "graph", {**MODULES, "dd": "blocks.0.deep"})
    made = rounded(hub_graph, table_of(hub_graph, tmp_path / "table", {}), tmp_path / "fp8", "fp8")
    structure = onnx_files.load(made.path(onnx_files.MODEL)).graph
    by_output = {one.output[0]: one for one in structure.node}
    assert [by_output[name].op_type for name in by_output["d"].input] == ["Conv", "Relu"]
    assert by_output["dd"].input[0] == "d"
    (left,) = quantize.STAGE.run(
        {"graph": hub_graph, "ranges": table_of(hub_graph, tmp_path / "again", {})},
        quantize.QuantizeOptions(Int8Recipe(), target.TARGET.placements["fp8"]),
        workspace(tmp_path / "facts"),
    )["left"]
    assert (left["module"], left["reason"]) == ("blocks.0.deep", "depthwise: this target has no such kernel in 8 bits")
    kinds = Counter(tensor.data_type for tensor in structure.initializer)
    assert kinds[onnx.TensorProto.INT8] == kinds[onnx.TensorProto.UINT8] == 0
    assert kinds[onnx.TensorProto.FLOAT8E4M3FN] == 9, "weights, their zeros, zeros of what they take"


@needs_rtx
@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "f32"), ("fp16", "f16"), ("bf16", "bf16"), ("int8", "int8"), ("fp8", "fp8")]
)
def test_engines_compute_in_what_was_asked_for(tmp_path: Path, precision: str, kind: str) -> None:
    made = graph(tmp_path / "graph", "batch")
    table = table_of(made, tmp_path / "table", {})
    if precision in target.TARGET.placements:
        made = rounded(made, table, tmp_path / "rounded", precision)
    if precision != "fp32":
        made = half(made, table, tmp_path / "half", {"int8": "fp16", "fp8": "fp16"}.get(precision, precision))
    rows = Axis("batch", 1, 4, 16)
    gpus = (89, 120) if precision == "fp8" else (86, 89)
    options = replace(OPTIONS, precision=precision, axes={"batch": rows}, capabilities=gpus)
    artifact = package(made, tmp_path / "made", options)
    assert sorted(record.path for record in artifact.files) == ["net.trt-rtx.engine", "net.trt-rtx.json"]
    record, plan = read_engine(artifact.path("net.trt-rtx.engine"), RTX)
    assert hashlib.sha256(plan).hexdigest() == record.sha256
    assert (record.precision, record.capabilities, record.source) == (precision, gpus, made.digest)
    assert record.inputs[0].shape == (rows, 8, 8, 8)
    assert record.outputs[0].shape == (rows, 10)
    assert Counter(layer.precision for layer in record.layers if layer.name in {"stem", "block"}) == {kind: 2}
    assert {layer.name: layer.macs for layer in record.layers} == {"stem": 64 * 1152, "block": 64 * 2304, "fc": 160}
    if precision in target.TARGET.placements:
        assert int8_share(record.layers) > 0.99
    facts = artifact.facts
    assert facts["built_by"] == COMPONENTS[RTX.module].version()
    assert facts["profiles"] == [{"x": "[batch 1..16, 8, 8, 8]"}]
    assert facts["capabilities"] == list(gpus)


@needs_rtx
def test_all_that_cannot_be_built_is_told_at_once_with_modules(tmp_path: Path) -> None:
    made = graph(tmp_path / "graph", "batch")
    with pytest.raises(UnsupportedError) as caught:
        package(made, tmp_path / "made", replace(OPTIONS, capabilities=(75,)))
    assert caught.value.message.splitlines() == [
        "2 things in the graph TensorRT for RTX can't build:",
        "  axis 'batch' of 'x': is open and has no range",
        "  Gemm 'fc' of module 'head.fc': a float32 product has no kernel for SM 75",
    ]
    assert [hint.action.split()[0] for hint in caught.value.hints] == ["--dynamic", "--fp16,"]


@needs_rtx
def test_what_has_no_bfloat16_kernel_is_float32_in_a_bfloat16_engine(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x,stem.weight", "a", pads=[1, 1, 1, 1], name="stem"),
        node("HardSwish", "a", "b"),
        *NODES[2:],
    ]
    made = hub(model(nodes, WEIGHTS, (1, 8, 8, 8), opset=22), tmp_path / "graph", MODULES)
    table = table_of(made, tmp_path / "table", {})
    typed = half(made, table, tmp_path / "half", "bf16")
    artifact = package(typed, tmp_path / "made", replace(OPTIONS, precision="bf16"))
    record, _ = read_engine(artifact.path("net.trt-rtx.engine"), RTX)
    assert Counter(layer.precision for layer in record.layers if layer.name in {"stem", "block"}) == {"bf16": 2}
    whole = item(
        "graph",
        tmp_path / "whole",
        cast.STAGE.run({"graph": made, "ranges": table}, cast.CastOptions("bf16"), workspace(tmp_path / "whole")),
    )
    with pytest.raises(UnsupportedError, match=r"HardSwish '.*': TensorRT for RTX has no kernel of it for bfloat16"):
        package(whole, tmp_path / "refused", replace(OPTIONS, precision="bf16"))


@needs_rtx
def test_bfloat16_is_not_for_turing(tmp_path: Path) -> None:
    made = graph(tmp_path / "graph")
    typed = half(made, table_of(made, tmp_path / "table", {}), tmp_path / "half", "bf16")
    with pytest.raises(UnsupportedError, match="bfloat16 is not for SM 75") as caught:
        package(typed, tmp_path / "made", replace(OPTIONS, precision="bf16", capabilities=(75, 86)))
    assert caught.value.exit_code == 8


@needs_rtx
def test_fp8_is_for_ada_and_newer(tmp_path: Path) -> None:
    made = graph(tmp_path / "graph")
    table = table_of(made, tmp_path / "table", {})
    typed = half(rounded(made, table, tmp_path / "rounded", "fp8"), table, tmp_path / "half")
    with pytest.raises(UnsupportedError, match="float8e4m3fn is not for SM 86") as caught:
        package(typed, tmp_path / "made", replace(OPTIONS, precision="fp8", capabilities=(86, 89)))
    assert caught.value.exit_code == 8
