"""Cast: a float32 graph to one that computes in float16 or bfloat16, with float32 islands where half can't hold the values.

Inputs and outputs of the graph stay float32. Weights become half one by one as they are written, so both precisions are never
held whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.errors import Hint, InternalError, UnsupportedError, UsageError
from deploykit.export import onnx_files, provenance
from deploykit.export.halves import Caster, lost
from deploykit.export.islands import Question, find, get_rule
from deploykit.export.kernels import INDIFFERENT
from deploykit.export.overflow import ROUNDING
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: Precisions to ONNX's names of their types.
PRECISIONS: Final[Mapping[str, str]] = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
#: Least opset of a graph. From 18 on nothing that a checked graph may hold changes its meaning up to `BFLOAT16_OPSET`.
LEAST_OPSET: Final[Mapping[str, int]] = {"fp16": 13, "bf16": 18}
#: The opset since which Conv and most others take bfloat16.
BFLOAT16_OPSET: Final = 22
#: The opset that a graph comes to by being cast, where that is more than it had.
RAISED_OPSET: Final[Mapping[str, int]] = {"bf16": BFLOAT16_OPSET}
#: Q/DQ take scales in half since this opset.
ROUNDING_OPSET: Final = 19


@dataclass(frozen=True)
class CastOptions:
    """What becomes half.

    Attributes:
        precision: "fp16" or "bf16".
        islands: Names of `deploykit.export.islands.RULES`, chosen by the family.
        without: Operators that the target has no half of: they stay float32.
    """

    precision: str
    islands: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def check_model(model: ir.Model, precision: str, modules: Mapping[str, str]) -> None:
    """Refuse graphs that can't become half.

    Raises:
        UsageError: An unknown precision, or the graph holds half precision already.
        UnsupportedError: Its opset is too old, a node holds graphs of its own, or a tensor's type is unknown.
    """
    import onnx_ir as ir

    graph = model.graph
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r} of a cast; there are: {', '.join(PRECISIONS)}")
    halves = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    found = next((value for value in values if value.dtype in halves), None)
    if found is not None and found.dtype is not None:
        raise UsageError(
            f"the graph is already {halves[found.dtype]}: {found.name!r} is", Hint("--fp32", "takes it as it is")
        )
    opset = graph.opset_imports.get("", 0)
    if opset < LEAST_OPSET[precision]:
        raise UnsupportedError(f"{precision} needs opset {LEAST_OPSET[precision]}; the graph has {opset}")
    for node in graph:
        if any(
            attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
            for attribute in node.attributes.values()
        ):
            raise UnsupportedError(f"{_where(node, modules)} holds graphs of its own, which can't become {precision}")
        if node.op_type in ROUNDING and opset < ROUNDING_OPSET:
            raise UnsupportedError(
                f"{_where(node, modules)} takes no {precision} scale in opset {opset}: that needs opset {ROUNDING_OPSET}"
            )
        if any(output.dtype is None for output in node.outputs if output.name):
            raise UnsupportedError(f"the type of what {_where(node, modules)} makes is unknown")


def _where(node: ir.Node, modules: Mapping[str, str]) -> str:
    name = str(node.outputs[0].name)
    module = modules.get(name, "")
    return f"{node.op_type} {name!r}" + (f" of module {module!r}" if module else "")


def _run(inputs: Inputs, options: CastOptions, workspace: Workspace) -> Facts:
    import onnx_ir as ir
    from onnx_ir.passes import common

    source, sidecar = (inputs["graph"].path(name) for name in (onnx_files.MODEL, onnx_files.MODULES))
    before, modules = onnx_files.load(source), provenance.read(sidecar)
    model = ir.load(source)
    for name in options.islands:
        get_rule(name)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(strict_mode=False)(model)
    check_model(model, options.precision, modules)
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], RAISED_OPSET.get(options.precision, 0))
    half = ir.DataType[PRECISIONS[options.precision]]
    table = _table(inputs, options, model.graph)
    islands = find(model.graph, Question(half, options.islands, table, modules, frozenset(options.without)))
    caster = Caster(model.graph, half, islands)
    caster.run()
    common.RemoveUnusedNodesPass()(model)
    made = onnx_files.write(model, workspace.folder)
    known = provenance.carry(modules, caster.origins)
    provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(made.graph, known))
    return {
        "weight_bytes_before": onnx_files.weight_bytes(before),
        "weight_bytes": onnx_files.weight_bytes(made),
        "nodes": dict(sorted(Counter(_node_types(made).values()).items())),
        "casts": caster.casts,
        "islands": [asdict(island) for island in islands.values()],
        "weights": asdict(lost(caster.weights, half)),
    }


def _table(inputs: Inputs, options: CastOptions, graph: ir.Graph) -> RangeTable | None:
    """Return the ranges, of which some may be too large for float16; None for bfloat16, which reaches as far as float32.

    Raises:
        UsageError: They are another graph's. Ranges of an int8 graph are those of the graph that it was made from.
    """
    if options.precision != "fp16":
        return None
    table = RangeTable.load(inputs["ranges"].path(RANGES))
    if not any(node.op_type in ROUNDING for node in graph):
        table.check(inputs["graph"].digest)
    return table


def _node_types(model: onnx.ModelProto) -> dict[str, str]:
    """Return the type that each node computes in, by its first output: that of the first floating tensor it makes or takes."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    found = {}
    for node in inferred.node:
        looked_at = node.output if node.op_type in INDIFFERENT else (*node.output, *node.input)
        known = [types.get(name, 0) for name in looked_at if name]
        kind = next((one for one in known if one in floats), known[0])
        found[node.output[0]] = onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "unknown"
    return found


def _ensure(_inputs: Inputs, options: CastOptions, made: Item) -> None:
    """Count what the graph holds.

    Raises:
        InternalError: Nodes compute in float32 that no island holds.
        UnsupportedError: No weights are half.
    """
    model = onnx_files.load(made.path(onnx_files.MODEL))
    kept = {island["node"] for island in made.facts["islands"]}
    casts = {node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    types = _node_types(model)
    outside = [
        name for name, kind in types.items() if kind in {"float32", "float64", "unknown"} and name not in kept | casts
    ]
    if outside:
        raise InternalError(f"asked for {options.precision}, these nodes compute in float32: {', '.join(outside[:5])}")
    wanted = PRECISIONS[options.precision]
    if not any(_is(tensor, wanted) for tensor in model.graph.initializer):
        rules: Mapping[str, int] = Counter(island["rule"] for island in made.facts["islands"])
        told = ", ".join(f"{rule} {count}" for rule, count in rules.items())
        raise UnsupportedError(f"asked for {options.precision}, no weight can be: islands are {told or 'none'}")


def _is(tensor: Any, kind: str) -> bool:  # noqa: ANN401 - protobuf has no types here
    import onnx

    return bool(tensor.data_type == onnx.TensorProto.DataType.Value(kind))


STAGE = Stage(
    name="cast",
    version=1,
    takes={"graph": "graph", "ranges": "ranges"},
    makes="graph",
    libraries=("onnx", "onnx_ir"),
    run=_run,
    ensure=_ensure,
)
