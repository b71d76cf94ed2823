"""Islands: which nodes stay float32 when the rest of a graph becomes half, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.calibration.ranges import RangeTable
from deploykit.errors import Hint, UsageError
from deploykit.export.kernels import INDIFFERENT, Kernel, half_kernel, is_float, touches_floats
from deploykit.export.overflow import Overflows, squared
from deploykit.export.rewrites.editing import constant, made_by, only_user, sizes

if TYPE_CHECKING:
    import onnx_ir as ir

#: Operators that hand on values as they are.
MOVERS: Final = frozenset(
    {
        *("Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
#: Operators that multiply by weights: what makes an angle or a size doesn't lie beyond them.
LAYERS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
#: Since this opset GroupNormalization computes in float32 and says so.
GROUP_NORM_OPSET: Final = 21

#: From a node to the nodes of the island that it makes: none where it makes none.
Rule = Callable[["ir.Node"], Iterable["ir.Node"]]


@dataclass(frozen=True)
class Island:
    """A node that stays float32.

    Attributes:
        node: Its first output.
        module: Path of the nn.Module that it belongs to.
        rule: What keeps it: one of `RULES`; "range", "constant" and "scale" for values that half can't hold; "unmeasured"
            where none are known; "shapes" for sizes; "no-kernel"; "between" where all around it is float32.
        detail: Operator and numbers.
    """

    node: str
    module: str
    rule: str
    detail: str


@dataclass(frozen=True)
class Question:
    """What islands are looked for in.

    Attributes:
        half: FLOAT16 or BFLOAT16.
        names: Of `RULES`.
        table: Ranges of the graph's tensors; None where only constants can be too large.
        modules: First outputs to module paths.
        without: Operators that the target has no half of.
    """

    half: ir.DataType
    names: tuple[str, ...]
    table: RangeTable | None
    modules: Mapping[str, str]
    without: frozenset[str] = frozenset()


def get_rule(name: str) -> Rule:
    """Return the rule called `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in RULES:
        raise UsageError(f"unknown rule for fp32 islands {name!r}", Hint("one of: " + ", ".join(sorted(RULES))))
    return RULES[name]


def find(graph: ir.Graph, question: Question) -> dict[ir.Node, Island]:
    """Return the nodes that stay float32, in the graph's order, each with the first reason that was found.

    Args:
        graph: Every tensor's type is known, and no constant is a node.
        question: What to look for.

    Raises:
        UsageError: A rule of an unknown name.
    """
    found = _named(graph, question.names)
    shapes = _shape_arithmetic(graph)
    overflows = Overflows(question.half, question.table)
    opset = graph.opset_imports.get("", 0)
    kernels: dict[ir.Node, Kernel] = {}
    for node in graph:
        if node.op_type in INDIFFERENT or not touches_floats(node):
            found.pop(node, None)
            continue
        kernel, kind = half_kernel(node, opset, question.half), question.half.name.lower()
        if kernel is None:
            found.setdefault(node, ("no-kernel", f"{node.op_type} is never {kind} in opset {opset}"))
            continue
        kernels[node] = kernel
        if node.op_type in question.without:
            found.setdefault(node, ("no-kernel", f"the target has no {kind} {node.op_type}"))
        if node in shapes:
            found.setdefault(node, ("shapes", f"{node.op_type} on sizes of tensors"))
        reason = None if node in found else overflows.reason(node, kernel)
        if reason is not None:
            found[node] = reason
    for node in _between(graph, found.keys(), kernels):
        found[node] = ("between", f"{node.op_type} between float32 tensors")
    return {node: _record(node, found[node], question.modules) for node in graph if node in found}


def _named(graph: ir.Graph, names: Iterable[str]) -> dict[ir.Node, tuple[str, str]]:
    """Return the nodes that rules keep, each with the first rule that does."""
    found: dict[ir.Node, tuple[str, str]] = {}
    for name in names:
        rule = get_rule(name)
        for anchor in graph:
            for node in rule(anchor):
                found.setdefault(node, (name, node.op_type))
    return found


def _record(node: ir.Node, reason: tuple[str, str], modules: Mapping[str, str]) -> Island:
    name = str(node.outputs[0].name)
    return Island(name, modules.get(name, ""), *reason)


def _grn(node: ir.Node) -> Iterable[ir.Node]:
    """Global Response Normalization, Woo et al. 2023: x's L2 norm over the map, divided by its mean over channels."""
    norm = made_by(node.inputs[0], "ReduceL2") if node.op_type == "Div" else None
    shifted = made_by(node.inputs[1], "Add") if norm is not None else None
    if norm is None or shifted is None:
        return ()
    means = (made_by(value, "ReduceMean") for value in shifted.inputs)
    mean = next((one for one in means if one is not None and one.inputs[0] is norm.outputs[0]), None)
    return () if mean is None else (norm, mean, shifted, node)


def _written_out_norm(node: ir.Node) -> Iterable[ir.Node]:
    """LayerNorm or RMSNorm in small operators: from the difference to the mean up to the quotient."""
    square = made_by(node.inputs[0], "Pow", "Mul") if node.op_type == "ReduceMean" else None
    if square is None or squared(square) is None:
        return ()
    found = [square, node]
    difference = made_by(square.inputs[0], "Sub")
    if difference is not None:
        mean = made_by(difference.inputs[1], "ReduceMean")
        found = [*([] if mean is None else [mean]), difference, *found]
    after = only_user(node.outputs[0])
    while after is not None and after.op_type in {"Add", "Sqrt", "Reciprocal", "Pow"}:
        found.append(after)
        after = only_user(after.outputs[0])
    if after is None or after.op_type not in {"Div", "Mul"} or found[-1] is node:
        return ()
    return (*found, after)


def _old_group_norm(node: ir.Node) -> Iterable[ir.Node]:
    """Normalizations that square their input in its own precision."""
    graph = node.graph
    opset = 0 if graph is None else graph.opset_imports.get("", 0)
    squares = node.op_type in {"InstanceNormalization", "GroupNormalization"} and opset < GROUP_NORM_OPSET
    return (node,) if squares else ()


def _time_embedding(node: ir.Node) -> Iterable[ir.Node]:
    """Sine and cosine of a time step, and what makes the angle: float16 knows 999 to half a radian."""
    if node.op_type not in {"Sin", "Cos"}:
        return
    left, seen = [node], {node}
    while left:
        one = left.pop()
        yield one
        makers = {maker for value in one.inputs if value is not None and (maker := value.producer()) is not None}
        new = [maker for maker in makers - seen if maker.op_type not in LAYERS]
        seen.update(new)
        left += new


#: Islands that families name.
RULES: Final[Mapping[str, Rule]] = {
    "decomposed-norms": _written_out_norm,
    "grn": _grn,
    "group-norm-before-21": _old_group_norm,
    "time-embedding": _time_embedding,
}


def _shape_arithmetic(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that compute with sizes of tensors: vectors and scalars that depend on nothing else."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in INDIFFERENT:
            found.add(node)
            continue
        given = [value for value in node.inputs if value is not None and constant(value) is None]
        small = all(
            (shape := sizes(value)) is not None and len(shape) <= 1
            for value in (*node.inputs, *node.outputs)
            if value is not None
        )
        if given and small and all(value.producer() in found for value in given):
            found.add(node)
    return found


def _between(graph: ir.Graph, islands: Iterable[ir.Node], kernels: Mapping[ir.Node, Kernel]) -> set[ir.Node]:
    """Return the movers that lie between float32 tensors only: as halves they would need a Cast on either side."""
    full = set(islands)
    candidates = {node for node in kernels if node.op_type in MOVERS and node not in full}
    graph_inputs = set(graph.inputs)

    def stays(node: ir.Node) -> bool:
        for value in node.inputs:
            if is_float(value) and value is not None and constant(value) is None and value not in graph_inputs:
                maker = value.producer()
                if maker not in full and maker not in candidates:
                    return False
        uses = [use for output in node.outputs if is_float(output) for use in output.uses()]
        return all(
            use.node in full
            or use.node in candidates
            or use.node.op_type in INDIFFERENT
            or use.idx not in kernels[use.node].inputs
            for use in uses
        )

    while dropped := {node for node in candidates if not stays(node)}:
        candidates -= dropped
    return candidates
