"""Preflight: everything for which TensorRT would refuse a graph, or misread it, found at once before anything is built.

The parser itself is asked node by node; what it lets pass and the builder stumbles over, or takes in silence, are rules here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from deploykit.errors import Hint, UnsupportedError

if TYPE_CHECKING:
    import onnx

#: Findings that an error names; the others are counted.
SHOWN: Final = 20
#: Types that GPUs have since an architecture.
TYPES_SINCE: Final[Mapping[str, int]] = {"BFLOAT16": 80, "FLOAT8E4M3FN": 89, "FLOAT8E5M2": 89}
#: Float32 products have kernels since this architecture.
FLOAT_PRODUCTS_SINCE: Final = 80
_PRODUCTS: Final = ("MatMul", "Gemm")
_ROUNDING: Final = ("QuantizeLinear", "DequantizeLinear")
_SYMMETRIC: Final = Hint("deploykit export MODEL --int8 --trt-rtx", "rounds the float original as TensorRT needs it")


@dataclass(frozen=True)
class Refusal:
    """A node that the parser doesn't take.

    Attributes:
        node: Its index in the graph.
        reason: The parser's own words, "" where it has none.
    """

    node: int
    reason: str


@dataclass(frozen=True)
class Demands:
    """What a graph is asked to fit.

    Attributes:
        title: The library, as people write it.
        opset: The last opset that it is known to take.
        capabilities: Compute capabilities of the GPUs, as 86 for 8.6.
        axes: Names of the axes that have bounds.
        refusals: What the parser says.
        without_kernels: Operators and types that the parser takes and the builder doesn't.
    """

    title: str
    opset: int
    capabilities: tuple[int, ...] = ()
    axes: frozenset[str] = frozenset()
    refusals: tuple[Refusal, ...] = ()
    without_kernels: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Finding:
    """One reason why a graph can't be built.

    Attributes:
        rule: Which kind of reason.
        where: Operator, node or tensor.
        module: Path of the nn.Module that it comes from, "" where that isn't known.
        reason: What is wrong.
        hint: What to do.
    """

    rule: str
    where: str
    module: str
    reason: str
    hint: Hint

    @property
    def text(self) -> str:
        """As one line."""
        module = f" of module {self.module!r}" if self.module else ""
        return f"{self.where}{module}: {self.reason}"


@dataclass
class _Graph:
    """A model, looked at once: types of tensors, constants, modules."""

    model: onnx.ModelProto
    modules: Mapping[str, str]
    types: Mapping[str, str] = field(init=False)
    constants: Mapping[str, onnx.TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        name_of = onnx.TensorProto.DataType.Name
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        types = {value.name: name_of(value.type.tensor_type.elem_type) for value in values}
        self.constants = {tensor.name: tensor for tensor in inferred.initializer}
        self.types = types | {name: name_of(tensor.data_type) for name, tensor in self.constants.items()}

    def kind(self, node: onnx.NodeProto, index: int) -> str:
        """Return the type of a node's input, "" where it has none or it isn't known."""
        return self.types.get(node.input[index], "") if index < len(node.input) else ""

    def finding(self, rule: str, node: onnx.NodeProto, reason: str, hint: Hint) -> Finding:
        name = node.name or node.output[0]
        return Finding(rule, f"{node.op_type} {name!r}", self.modules.get(node.output[0], ""), reason, hint)


def check(model: onnx.ModelProto, modules: Mapping[str, str], demands: Demands) -> tuple[Finding, ...]:
    """Return all that speaks against building an engine of a graph; weights that lie beside it are not needed.

    Args:
        model: The graph.
        modules: First outputs of nodes to nn.Module paths.
        demands: What it must fit.
    """
    graph = _Graph(model, modules)
    found = [finding for rule in RULES for finding in rule(graph, demands)]
    told = {finding.where for finding in found}
    found += [finding for finding in _parser(graph, demands) if finding.where not in told]
    return tuple(found)


def require(findings: Iterable[Finding], title: str) -> None:
    """Pass where there are no findings.

    Raises:
        UnsupportedError: There are; it names them all, the first twenty in full, and what to do about each kind.
    """
    findings = tuple(findings)
    if not findings:
        return
    lines = [f"  {finding.text}" for finding in findings[:SHOWN]]
    lines += [f"  and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else []
    count = "one thing" if len(findings) == 1 else f"{len(findings)} things"
    hints = tuple(dict.fromkeys(finding.hint for finding in findings))
    raise UnsupportedError("\n".join([f"{count} in the graph {title} can't build:", *lines]), *hints)


def _opset(graph: _Graph, demands: Demands) -> Iterator[Finding]:
    versions = {opset.domain: opset.version for opset in graph.model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if version > demands.opset:
        reason = f"{demands.title} is known to take opsets up to {demands.opset}"
        yield Finding(
            "opset", f"opset {version}", "", reason, Hint(f"an opset of at most {demands.opset}", "when it is traced")
        )


def _axes(graph: _Graph, demands: Demands) -> Iterator[Finding]:
    constant = set(graph.constants)
    for value in graph.model.graph.input:
        dims = [] if value.name in constant else list(value.type.tensor_type.shape.dim)
        for index, dim in enumerate(dims):
            if not dim.HasField("dim_value") and dim.dim_param not in demands.axes:
                name = dim.dim_param or str(index)
                hint = Hint("--dynamic AXIS --profile AXIS=MIN,OPT,MAX", "gives an open axis its range")
                yield Finding("axis", f"axis {name!r} of {value.name!r}", "", "is open and has no range", hint)


def _rounding(graph: _Graph, _demands: Demands) -> Iterator[Finding]:
    """Yield what the parser refuses of Q/DQ, and uint8, which it reads as int8 with the same scale: half the range is gone."""
    for node in graph.model.graph.node:
        if node.op_type not in _ROUNDING:
            continue
        codes = graph.kind(node, 2) or (graph.kind(node, 0) if node.op_type == "DequantizeLinear" else "UINT8")
        if codes == "INT32":
            yield graph.finding("int32", node, "dequantizes int32, such as a bias: it must stay float", _SYMMETRIC)
        elif codes == "UINT8":
            yield graph.finding(
                "uint8", node, "is uint8, which would be taken for int8 and lose half its range", _SYMMETRIC
            )
        elif codes in {"INT16", "UINT16"}:
            yield graph.finding("int16", node, f"is {codes.lower()}, which has no kernels", _SYMMETRIC)
        elif len(node.input) > 2 and not _is_zero(graph.constants.get(node.input[2])):
            yield graph.finding(
                "zero-point", node, "has a zero point other than 0, or one that is computed", _SYMMETRIC
            )


def _is_zero(tensor: onnx.TensorProto | None) -> bool:
    """Tell whether a constant is zero throughout; one that lies beside the graph has many channels: the parser looks at it."""
    import onnx

    if tensor is None:
        return False
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return True
    values: Any = onnx.numpy_helper.to_array(tensor)
    return not values.astype("float32").any()


def _types(graph: _Graph, demands: Demands) -> Iterator[Finding]:
    least = min(demands.capabilities, default=None)
    if least is None:
        return
    reported = set()
    for node in graph.model.graph.node:
        for name in (*node.input, *node.output):
            kind = graph.types.get(name, "")
            since = TYPES_SINCE.get(kind, 0)
            if since > least and kind not in reported:
                reported.add(kind)
                hint = Hint(f"--sm {since}", "and newer GPUs alone have it")
                yield graph.finding("type", node, f"{kind.lower()} is not for SM {least}", hint)
        if node.op_type in _PRODUCTS and graph.kind(node, 0) == "FLOAT" and least < FLOAT_PRODUCTS_SINCE:
            hint = Hint(f"--fp16, or --sm {FLOAT_PRODUCTS_SINCE}", "and newer GPUs alone")
            yield graph.finding("float-product", node, f"a float32 product has no kernel for SM {least}", hint)


def _kernels(graph: _Graph, demands: Demands) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        kind = graph.kind(node, 0)
        if (node.op_type, kind) in demands.without_kernels:
            hint = Hint("--fp16, or an older opset", "where it is several operators")
            yield graph.finding("kernel", node, f"{demands.title} has no kernel of it for {kind.lower()}", hint)


def _parser(graph: _Graph, demands: Demands) -> Iterator[Finding]:
    for refusal in demands.refusals:
        node = graph.model.graph.node[refusal.node]
        reason = refusal.reason or f"{demands.title} has no such operator"
        hint = Hint(f"no {node.op_type} in the model", "or another target: --ort, --openvino")
        yield graph.finding("parser", node, reason, hint)


#: What is looked for beside the parser's own refusals. What the parser says of a node that a rule names is left out.
RULES: Final[tuple[Callable[[_Graph, Demands], Iterator[Finding]], ...]] = (_opset, _axes, _rounding, _types, _kernels)
