"""TensorRT as a target: a strongly typed graph as an engine, with a record beside it. That of RTX is built without a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files, preflight, provenance
from deploykit.export.engines.onnx import write_onnx
from deploykit.export.engines.tensorrt_build import DEVICE, endings_of, options_of, refusals, trtexec
from deploykit.export.engines.tensorrt_process import build_ordered
from deploykit.export.engines.tensorrt_program import statements
from deploykit.export.engines.texts import texts
from deploykit.export.quantize.grid import E4M3, INT8
from deploykit.export.quantize.placement import Placement
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.export.target import PackageOptions, Target
from deploykit.runtime.backends.tensorrt_library import NATIVE, RTX, Flavour, library, version_of
from deploykit.runtime.backends.tensorrt_record import GRAPH_ENDINGS, VERSION, BuildOrder
from deploykit.verdict import Executed, grade_of

if TYPE_CHECKING:
    import onnx

#: Type of weights that a graph of each precision must hold.
_WEIGHTS: Final[Mapping[str, str]] = {
    "fp32": "FLOAT",
    "fp16": "FLOAT16",
    "bf16": "BFLOAT16",
    "int8": "INT8",
    "fp8": "FLOAT8E4M3FN",
}
#: Architectures that TensorRT for RTX builds for: Turing has no float32 products and no bfloat16, and runs int8 in half.
#: fp8 came with Ada.
_GPUS: Final = (80, 86, 89, 120, 121)
CAPABILITIES: Final[Mapping[str, tuple[int, ...]]] = {
    "fp32": _GPUS,
    "fp16": (75, *_GPUS),
    "bf16": _GPUS,
    "int8": _GPUS,
    "fp8": (89, 120, 121),
}
#: Operators that multiply by weights or by one another.
_LAYERS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def _package(flavour: Flavour, inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    path = inputs["graph"].path(onnx_files.MODEL)
    model = onnx_files.load(path)
    weights = check_precision(model, options.precision)
    modules = provenance.read(inputs["graph"].path(onnx_files.MODULES))
    demands = preflight.Demands(
        title=flavour.title,
        opset=library(flavour).opset,
        capabilities=options.capabilities,
        axes=frozenset(options.axes),
        refusals=refusals(flavour, path),
        without_kernels=flavour.without_kernels,
    )
    preflight.require(preflight.check(model, modules, demands), flavour.title)
    order = order_of(flavour, inputs["graph"].digest, options, model)
    named = {node.name: modules.get(node.output[0], "") for node in model.graph.node if node.name}
    asked = options_of(order, named)
    plan, record = build_ordered(path, order, flavour, asked, workspace.progress)
    layers = tuple(layers_of(model, plan))
    check_layers(layers, options.precision)
    record = replace(record, layers=layers)
    engine, beside = endings_of(flavour)
    (workspace.folder / f"{options.stem}{engine}").write_bytes(plan)
    (workspace.folder / f"{options.stem}{beside}").write_bytes(record.to_bytes())
    return {
        "flavour": flavour.module,
        "built_by": version_of(plan),
        "capabilities": list(record.capabilities),
        "profiles": [{spec.name: spec.text for spec in inputs if spec.axes} for inputs in asked.profiles],
        "source": record.source,
        "weights": weights,
        "layers": dict(sorted(Counter(layer.precision for layer in layers).items())),
        "nodes": len(model.graph.node),
    }


def order_of(flavour: Flavour, source: str, options: PackageOptions, model: onnx.ModelProto) -> BuildOrder:
    """Return the order to build the engine of a graph whose content hash is `source`."""
    return BuildOrder(
        version=VERSION,
        flavour=flavour.module,
        precision=options.precision,
        inputs=onnx_files.specs(model.graph.input, options.axes),
        outputs=onnx_files.specs(model.graph.output, options.axes),
        capabilities=options.capabilities,
        source=source,
        texts=texts(options),
        ranges=options.ranges,
    )


def check_precision(model: onnx.ModelProto, precision: str) -> Mapping[str, int]:
    """Return how many weights of each type a graph holds.

    Raises:
        UnsupportedError: None is of the type that was asked for. The builder would take the graph as it is, without a word.
    """
    import onnx

    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        counts[onnx.TensorProto.DataType.Name(tensor.data_type)] += math.prod(tensor.dims)
    if not counts[_WEIGHTS[precision]]:
        found = ", ".join(f"{count:,} {kind.lower()}" for kind, count in counts.items()) or "no weights"
        raise UnsupportedError(f"asked for {precision}, the graph holds {found}")
    return dict(sorted(counts.items()))


def check_layers(layers: Iterable[Executed], precision: str) -> None:
    """Compare what an engine tells of its layers with what was asked for.

    Raises:
        UnsupportedError: None computes so, though some are told of.
    """
    counts = Counter(layer.precision for layer in layers)
    if counts and not counts[grade_of(precision, "f32")]:
        told = ", ".join(f"{count} in {kind}" for kind, count in sorted(counts.items()))
        raise UnsupportedError(f"asked for {precision}, the engine computes its layers otherwise: {told}")


def layers_of(model: onnx.ModelProto, plan: bytes) -> Iterator[Executed]:
    """Yield the graph's layers in the precision that the engine's own program has them in; none where it can't be read."""
    told: dict[str, set[str]] = {}
    for statement in statements(plan):
        for source in statement.sources:
            told.setdefault(source, set()).update(statement.types)
    if not told:
        return
    inferred = onnx_files.with_one_row(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    for node in inferred.node:
        if node.op_type in _LAYERS:
            yield Executed(node.name, node.op_type, _precision(told.get(node.name, ())), _macs(node, shapes))


def _precision(types: Iterable[str]) -> str:
    """Return the one precision of a layer; "unknown" where operands or programs differ, or nothing is known."""
    distinct = set(types)
    return distinct.pop() if len(distinct) == 1 else "unknown"


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return a layer's multiply-adds for one row of an open batch: those of one output value, times the outputs."""
    data, weight, made = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if not weight or not made:
        return 0
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(weight[1:])
    transposed = next((attribute.i for attribute in node.attribute if attribute.name == "transA"), 0)
    return math.prod(made) * data[-2 if transposed else -1]


def _defer(inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    """Write the graph that TensorRT builds, and the order to build it."""
    model = onnx_files.load(inputs["graph"].path(onnx_files.MODEL))
    weights = check_precision(model, options.precision)
    modules = provenance.read(inputs["graph"].path(onnx_files.MODULES))
    demands = preflight.Demands(NATIVE.title, max(NATIVE.opsets.values()), axes=frozenset(options.axes))
    preflight.require(preflight.check(model, modules, demands), NATIVE.title)
    order = order_of(NATIVE, inputs["graph"].digest, options, model)
    graph, beside = GRAPH_ENDINGS
    facts = write_onnx(inputs, options, workspace, graph)
    (workspace.folder / f"{options.stem}{beside}").write_bytes(order.to_bytes())
    command = trtexec(f"{options.stem}{graph}", f"{options.stem}{NATIVE.suffixes[0]}", options_of(order))
    return {**facts, "weights": weights, "command": command}


def _stage(flavour: Flavour) -> Stage[PackageOptions]:
    return Stage(
        name=f"package-{flavour.module.replace('_', '-')}",
        version=2,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx", flavour.module),
        run=partial(_package, flavour),
    )


_PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8", "fp8")
#: Name of the target whose artifact is the typed graph itself.
_GRAPH: Final = "trt-graph"
#: Operators that stay float32 among bfloat16.
_WITHOUT: Final = {
    "bf16": tuple(sorted(operator for operator, kind in NATIVE.without_kernels if kind == "BFLOAT16")),
}
_PLACEMENTS: Final = {
    "int8": Placement(INT8, residuals=("Conv",), rest="fp16", keys=INT8),
    # Sums aren't rounded for it: floats of three digits would cost the residual more than they could win.
    "fp8": Placement(E4M3, rest="fp16", weights=E4M3, depthwise=False, keys=E4M3),
}
TARGET = Target(
    name="trt-rtx",
    title=RTX.title,
    format=RTX.module,
    endings=endings_of(RTX),
    stage=_stage(RTX),
    runs=dict.fromkeys(_PRECISIONS, (RunConfig(RTX.module, device=DEVICE),)),
    placements=_PLACEMENTS,
    typed=True,
    without=_WITHOUT,
    capabilities=CAPABILITIES,
    bounded=True,
    graph=_GRAPH,
)
NATIVE_TARGET = Target(
    name="trt",
    title=NATIVE.title,
    format=NATIVE.module,
    endings=endings_of(NATIVE),
    stage=_stage(NATIVE),
    runs=dict.fromkeys(_PRECISIONS, (RunConfig(NATIVE.module, device=DEVICE),)),
    placements=_PLACEMENTS,
    typed=True,
    without=_WITHOUT,
    bounded=True,
    builds_on=RunConfig(NATIVE.module, device=DEVICE),
    deferred=_GRAPH,
    graph=_GRAPH,
)
#: What `NATIVE_TARGET` is built from elsewhere: the very graph, whose numbers are judged here.
GRAPH_TARGET = Target(
    name=_GRAPH,
    title=f"{NATIVE.title}, built elsewhere",
    format="onnx",
    endings=GRAPH_ENDINGS,
    stage=Stage(
        name="defer-tensorrt",
        version=1,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx",),
        run=_defer,
    ),
    runs={
        name: (RunConfig("emulator", precision=ran),)
        for name, ran in (("fp32", "f32"), ("fp16", "f16"), ("bf16", "bf16"), ("int8", "f16"), ("fp8", "f16"))
    },
    placements=_PLACEMENTS,
    typed=True,
    without=_WITHOUT,
    bounded=True,
)
