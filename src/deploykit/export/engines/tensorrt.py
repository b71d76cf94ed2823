"""TensorRT as a target: a strongly typed graph as an engine, with a record beside it. That of RTX is built without a GPU."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files, preflight, provenance
from deploykit.export.engines.tensorrt_build import BuildOptions, build, refusals
from deploykit.export.engines.tensorrt_program import statements
from deploykit.export.engines.texts import texts
from deploykit.export.quantize.grid import INT8
from deploykit.export.quantize.placement import Placement
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.export.target import PackageOptions, Target
from deploykit.runtime.backends.tensorrt_library import RTX, Flavour, library, version_of
from deploykit.runtime.backends.tensorrt_record import VERSION, EngineRecord, here
from deploykit.verdict import Executed, grade_of

if TYPE_CHECKING:
    import onnx

ENDINGS = (".trt-rtx.engine", ".trt-rtx.json")
#: Type of weights that a graph of each precision must hold.
_WEIGHTS: Final[Mapping[str, str]] = {"fp32": "FLOAT", "fp16": "FLOAT16", "int8": "INT8"}
#: Architectures that TensorRT for RTX builds for: Turing has no float32 products, and runs int8 convolutions in half.
_GPUS: Final = (80, 86, 89, 120, 121)
CAPABILITIES: Final[Mapping[str, tuple[int, ...]]] = {"fp32": _GPUS, "fp16": (75, *_GPUS), "int8": _GPUS}
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
    specs = onnx_files.specs(model.graph.input, options.axes)
    named = {node.name: modules.get(node.output[0], "") for node in model.graph.node if node.name}
    plan = build(flavour, path, BuildOptions(specs, options.capabilities, named), workspace.progress)
    layers = tuple(_layers(model, plan))
    check_layers(layers, options.precision)
    record = EngineRecord(
        version=VERSION,
        flavour=flavour.module,
        built_by=library(flavour).version,
        platform=here(),
        capabilities=options.capabilities,
        precision=options.precision,
        inputs=specs,
        outputs=onnx_files.specs(model.graph.output, options.axes),
        size=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        source=inputs["graph"].digest,
        texts=texts(options),
        layers=layers,
    )
    (workspace.folder / f"{options.stem}{ENDINGS[0]}").write_bytes(plan)
    (workspace.folder / f"{options.stem}{ENDINGS[1]}").write_bytes(record.to_bytes())
    return {
        "flavour": flavour.module,
        "built_by": version_of(plan),
        "capabilities": list(options.capabilities),
        "profiles": {spec.name: spec.text for spec in specs if spec.axes},
        "source": record.source,
        "weights": weights,
        "layers": dict(sorted(Counter(layer.precision for layer in layers).items())),
        "nodes": len(model.graph.node),
    }


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


def _layers(model: onnx.ModelProto, plan: bytes) -> Iterator[Executed]:
    """Yield the graph's layers in the precision that the engine's own program has them in; none where it can't be read."""
    import onnx

    told: dict[str, set[str]] = {}
    for statement in statements(plan):
        for source in statement.sources:
            told.setdefault(source, set()).update(statement.types)
    if not told:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
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


def _rtx(inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    return _package(RTX, inputs, options, workspace)


TARGET = Target(
    name="trt-rtx",
    title="TensorRT for RTX",
    format="tensorrt_rtx",
    endings=ENDINGS,
    stage=Stage(
        name="package-tensorrt-rtx",
        version=1,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx", RTX.module),
        run=_rtx,
    ),
    runs=dict.fromkeys(("fp32", "fp16", "int8"), (RunConfig(RTX.module, device="cuda:0"),)),
    placement=Placement(INT8, residuals=("Conv",), rest="fp16"),
    capabilities=CAPABILITIES,
    bounded=True,
)
