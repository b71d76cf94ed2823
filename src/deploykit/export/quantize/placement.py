"""Which layers run in 8 bits and which tensors carry Q/DQ for it: the recipe says what may, the target's placement how."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final

from deploykit.export.kernels import is_float
from deploykit.export.quantize.attention import joints_of
from deploykit.export.quantize.grid import INT8, Kind
from deploykit.export.rewrites import layout
from deploykit.export.rewrites.editing import constant, integer, only_user
from deploykit.export.rewrites.linears import Linear, linear_of
from deploykit.models.precision import Int8Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

#: Operators that multiply; those that can't be read whole stay as they are.
LAYERS: Final = ("Conv", "MatMul", "Gemm")
#: Operators that only move values.
MOVES: Final = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
#: Why they do.
OPAQUE: Final = "its weights are not constant float32"
PRODUCT: Final = "a product of two activations, which this target doesn't round"


@dataclass(frozen=True)
class Placement:
    """How one runtime wants Q/DQ, so that it runs layers in 8 bits.

    Attributes:
        activations: Grid of activations.
        outputs: Operators whose outputs are rounded as well; only then this runtime has an integer kernel for them.
        integer_bias: Biases are int32 on the grid of the products.
        residuals: Operators that an Add fuses into where what is added to them is rounded too.
        rest: Half precision that whatever stays float is cast to; None leaves it float32.
        factors: Grid of both factors of a product of two activations, such as QK^T; None leaves them as they are.
        moves: Operators that only move values, before which this runtime wants them rounded.
        rewrites: Exact changes, of `deploykit.export.rewrite.REWRITES`, that only this runtime is faster with.
        weights: Grid of weights.
        depthwise: It has kernels in 8 bits for convolutions of one channel per group.
        keys: Grid of attention's keys. Rounded, they keep the layer that makes them from being joined to attention, which this
            runtime computes in half; None leaves them.
        pairs: Weights are so coarse that two products can be added in 16 bits; see `deploykit.export.quantize.pairs`.
        joint: Queries, keys and values that are cut from one layer's output are rounded together, by one grid, before that. It
            takes a graph in which they are balanced; see `deploykit.export.quantize.attention`.
    """

    activations: Kind
    outputs: tuple[str, ...] = ()
    integer_bias: bool = False
    residuals: tuple[str, ...] = ()
    rest: str | None = None
    factors: Kind | None = None
    moves: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    weights: Kind = INT8
    depthwise: bool = True
    keys: Kind | None = None
    joint: bool = False
    pairs: bool = False


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
        layers: Layers whose weights are rounded.
        data: Tensor that each layer's input is rounded as, by name, in their order.
        products: Products of two activations that are rounded.
        kinds: Grid of every tensor that is rounded, by name.
        edges: Uses of tensors that take the rounded values: node and index of the input, by tensor name.
        outputs: Tensors of which every use takes the rounded values.
        left: Layers that stay, with the reason.
    """

    layers: tuple[Linear, ...]
    data: tuple[str, ...]
    products: tuple[ir.Node, ...]
    kinds: Mapping[str, Kind]
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
    placement = question.placement
    layers, data, left = [], [], []
    kinds, edges, outputs = dict[str, Kind](), dict[str, list[tuple["ir.Node", int]]](), list[str]()
    reasons = {node: _reason(node, linear_of(node), question) for node in graph if _multiplies(node)}
    products = [node for node, reason in reasons.items() if not reason and linear_of(node) is None]
    joints = {joint.layer.output for joint in joints_of(products)} if placement.joint else set()
    for node, reason in reasons.items():
        name, linear = str(node.outputs[0].name), linear_of(node)
        if reason:
            left.append(Left(name, question.modules.get(name, ""), reason))
            continue
        for index, kind in enumerate((placement.activations,) if linear else (placement.factors,) * 2):
            assert kind is not None, "else there is a reason"  # noqa: S101
            for use in _joint_uses(node, index, joints) or (_first_use(node, index, placement.moves),):
                edges.setdefault(tensor_of(use), []).append(use)
                kinds.setdefault(tensor_of(use), kind)
        if linear is None:
            continue
        layers.append(linear)
        data.append(tensor_of(_first_use(node, 0, placement.moves)))
        if node.op_type in placement.outputs and not node.outputs[0].is_graph_output():
            outputs.append(name)
            kinds.setdefault(name, placement.activations)
    further = [(use, placement.activations) for use in _residuals(layers, placement)]
    if placement.keys is not None:
        further += [(use, placement.keys) for use in _keys(graph, layers)]
    for use, kind in further:
        edges.setdefault(tensor_of(use), []).append(use)
        kinds.setdefault(tensor_of(use), kind)
    uses = {name: tuple(dict.fromkeys(found)) for name, found in edges.items()}
    return Chosen(tuple(layers), tuple(data), tuple(products), kinds, uses, tuple(outputs), tuple(left))


def _multiplies(node: ir.Node) -> bool:
    return node.op_type in LAYERS and node.domain in {"", "ai.onnx"}


def _joint_uses(node: ir.Node, index: int, joints: Collection[ir.Value]) -> tuple[tuple[ir.Node, int], ...]:
    """Return all uses of the tensor among `joints` that a node's input is cut from; none where it is from no such."""
    value = node.inputs[index]
    start = value if value is None else layout.origin(value)
    return tuple((use.node, use.idx) for use in start.uses()) if start is not None and start in joints else ()


def _first_use(node: ir.Node, index: int, moves: tuple[str, ...]) -> tuple[ir.Node, int]:
    """Return the use at which the input of a layer is still where it was computed."""
    while True:
        value = node.inputs[index]
        move = value.producer() if value is not None and only_user(value) is node else None
        if move is None or move.op_type not in moves:
            return node, index
        node, index = move, 0


def tensor_of(use: tuple[ir.Node, int]) -> str:
    """Return the name of the tensor that a node takes there."""
    return name_of(use[0].inputs[use[1]])


def _residuals(layers: Iterable[Linear], placement: Placement) -> Iterator[tuple[ir.Node, int]]:
    """Yield the use of what is added to a rounded layer and to nothing else: the Add and which of its inputs."""
    fused = set()
    for linear in layers:
        add = only_user(linear.output)
        if linear.node.op_type not in placement.residuals or add is None or add.op_type != "Add" or add in fused:
            continue
        index = 1 - tuple(add.inputs).index(linear.output)
        other = add.inputs[index]
        if other is not None and other.producer() is not None:
            fused.add(add)
            yield add, index


def _keys(graph: ir.Graph, layers: Iterable[Linear]) -> Iterator[tuple[ir.Node, int]]:
    """Yield the use at which attention's keys, made by a rounded layer, are by themselves and not yet moved."""
    rounded = {linear.node for linear in layers}
    for node in graph:
        if _is_product(node) and _meets_softmax(node):
            use = _first_use(node, 1, MOVES)
            if _layer_behind(use[0].inputs[use[1]]) in rounded:
                yield use


def _meets_softmax(node: ir.Node) -> bool:
    """Tell whether a Softmax follows a product, scaled and masked or not."""
    after = only_user(node.outputs[0])
    while after is not None and after.op_type in {"Add", "Div", "Mul"}:
        after = only_user(after.outputs[0])
    return after is not None and after.op_type == "Softmax"


def _layer_behind(value: ir.Value | None) -> ir.Node | None:
    """Return the layer that makes a tensor, or that it is a part of; None where more than a bias came in between."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in LAYERS:
            return node
        given = [one for one in node.inputs if one is not None and constant(one) is None]
        if node.op_type not in {*MOVES, "Add", "Gather", "Slice", "Split"} or len(given) != 1:
            return None
        value = given[0]
    return None


def name_of(value: ir.Value | None) -> str:
    """Return the name of a tensor that is there."""
    assert value is not None, "an input that the operator needs"  # noqa: S101
    return str(value.name)


def _reason(node: ir.Node, linear: Linear | None, question: Question) -> str:
    """Return why a layer or a product stays, or ""."""
    name = str(node.outputs[0].name)
    module = question.modules.get(name, "")
    if linear is None and not _is_product(node):
        return OPAQUE
    if linear is None and question.placement.factors is None:
        return PRODUCT
    if name in question.kept:
        return "costs more accuracy than it is worth"
    if any(fnmatch(module, pattern) for pattern in question.recipe.floats):
        return "the family keeps it"
    return _of_depthwise(question) if linear is not None and _is_depthwise(linear) else ""


def _of_depthwise(question: Question) -> str:
    """Return why a convolution of one channel per group stays, or ""."""
    if not question.placement.depthwise:
        return "depthwise: this target has no such kernel in 8 bits"
    return "" if question.recipe.depthwise else "depthwise: bound by memory, not by arithmetic"


def _is_product(node: ir.Node) -> bool:
    """Tell whether a node multiplies two float32 activations."""
    return node.op_type == "MatMul" and all(is_float(value) and constant(value) is None for value in node.inputs)


def _is_depthwise(linear: Linear) -> bool:
    return integer(linear.node, "group", 1) > 1 and int(linear.weight_shape[linear.in_axis]) == 1
