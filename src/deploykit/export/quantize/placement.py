"""Which layers run in 8 bits and which tensors carry Q/DQ for it: the recipe says what may, the target's placement how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final

from deploykit.export.quantize.grid import Kind
from deploykit.export.rewrites.editing import integer, only_user
from deploykit.export.rewrites.linears import Linear, linear_of
from deploykit.models.precision import Int8Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

#: Operators with weights; those that can't be read whole stay as they are.
LAYERS: Final = ("Conv", "MatMul", "Gemm")
#: Why they do: products of two activations, such as QK^T, among them.
OPAQUE: Final = "its weights are not constant float32"


@dataclass(frozen=True)
class Placement:
    """How one runtime wants Q/DQ, so that it runs layers in 8 bits.

    Attributes:
        activations: Grid of activations.
        outputs: Operators whose outputs are rounded as well; only then this runtime has an integer kernel for them.
        integer_bias: Biases are int32 on the grid of the products.
        residuals: Operators that an Add fuses into where what is added to them is rounded too.
        rest: Half precision that whatever stays float is cast to; None leaves it float32.
    """

    activations: Kind
    outputs: tuple[str, ...] = ()
    integer_bias: bool = False
    residuals: tuple[str, ...] = ()
    rest: str | None = None


@dataclass(frozen=True)
class Left:
    """A layer that stays in the higher precision.

    Attributes:
        node: First output of its node.
        module: Path of the nn.Module that it comes from.
        reason: Why.
    """

    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """What is to be rounded.

    Attributes:
        layers: Layers whose weights become int8.
        edges: Uses of tensors that take the rounded values: node and index of the input, by tensor name.
        outputs: Tensors of which every use takes the rounded values.
        left: Layers that stay, with the reason.
    """

    layers: tuple[Linear, ...]
    edges: Mapping[str, tuple[tuple[ir.Node, int], ...]]
    outputs: tuple[str, ...]
    left: tuple[Left, ...]


@dataclass(frozen=True)
class Question:
    """What decides about layers.

    Attributes:
        recipe: The family's.
        placement: The target's.
        modules: First outputs of nodes to nn.Module paths.
        kept: First outputs of nodes that stay in the higher precision, beyond the recipe's.
    """

    recipe: Int8Recipe
    placement: Placement
    modules: Mapping[str, str]
    kept: frozenset[str] = frozenset()


def choose(graph: ir.Graph, question: Question) -> Chosen:
    """Decide for every layer of a graph whether it is rounded, and which tensors are."""
    layers, left, edges = [], [], dict[str, list[tuple["ir.Node", int]]]()
    outputs: list[str] = []
    for node in graph:
        if node.op_type not in LAYERS or node.domain not in {"", "ai.onnx"}:
            continue
        linear = linear_of(node)
        reason = OPAQUE if linear is None else _layer_reason(linear, question)
        if linear is None or reason:
            name = str(node.outputs[0].name)
            left.append(Left(name, question.modules.get(name, ""), reason))
            continue
        edges.setdefault(name_of(node.inputs[0]), []).append((node, 0))
        layers.append(linear)
        if node.op_type in question.placement.outputs and not node.outputs[0].is_graph_output():
            outputs.append(str(node.outputs[0].name))
    for name, use in _residuals(layers, question.placement):
        edges.setdefault(name, []).append(use)
    return Chosen(tuple(layers), {name: tuple(uses) for name, uses in edges.items()}, tuple(outputs), tuple(left))


def _residuals(layers: Iterable[Linear], placement: Placement) -> Iterator[tuple[str, tuple[ir.Node, int]]]:
    """Yield, by tensor name, what is added to a rounded layer and to nothing else: the Add and which of its inputs."""
    fused = set()
    for linear in layers:
        add = only_user(linear.output)
        if linear.node.op_type not in placement.residuals or add is None or add.op_type != "Add" or add in fused:
            continue
        index = 1 - tuple(add.inputs).index(linear.output)
        other = add.inputs[index]
        if other is not None and other.producer() is not None:
            fused.add(add)
            yield name_of(other), (add, index)


def name_of(value: ir.Value | None) -> str:
    """Return the name of a tensor that is there."""
    assert value is not None, "an input that the operator needs"  # noqa: S101
    return str(value.name)


def _layer_reason(linear: Linear, question: Question) -> str:
    """Return why a layer stays, or ""."""
    recipe, node = question.recipe, linear.node
    name = str(node.outputs[0].name)
    module = question.modules.get(name, "")
    groups = integer(node, "group", 1)
    rows = int(linear.weight_shape[linear.in_axis])
    depthwise = groups > 1 and rows == 1
    if name in question.kept:
        return "costs more accuracy than it is worth"
    if any(fnmatch(module, pattern) for pattern in recipe.floats):
        return "the family keeps it"
    if depthwise and not recipe.depthwise:
        return "depthwise: bound by memory, not by arithmetic"
    return ""
