"""What rewrites share: reading constants and shapes, and an Editor that keeps names, modules and shapes right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
Sizes = tuple[int | str | None, ...]

#: Marks tensors that hold other values than the one they come from.
MARK = ".rewritten"


#: Since then axes are inputs and Softmax runs along one axis. Older graphs are left as they are.
OLDEST_OPSET = 13


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite did.

    Attributes:
        places: How often it changed the graph.
        renames: New tensor to the tensor of the graph before whose module its node belongs to.
    """

    places: int
    renames: Mapping[str, str]


@dataclass(frozen=True)
class Rewrite:
    """One kind of exact change.

    Attributes:
        name: In families, plans and manifests.
        title: What it does, in one phrase.
        run: Changes the editor's graph wherever it can.
    """

    name: str
    title: str
    run: Callable[[Editor], None]

    def apply(self, model: ir.Model) -> Rewritten:
        """Change `model` in place, and remove what is not used any more."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        if model.graph.opset_imports.get("", 0) < OLDEST_OPSET:
            return Rewritten(0, {})
        editor = Editor(model.graph)
        self.run(editor)
        RemoveUnusedNodesPass()(model)
        return Rewritten(editor.places, editor.renames)


class Editor:
    """A graph that is being rewritten.

    A tensor keeps its name as long as it holds the same values. A tensor that holds others gets a new name, and so do the
    weights that were changed for it: the old ones stay as they are for whoever else uses them. Nodes that nobody uses any more
    are removed; weights are left for the caller to remove.

    Args:
        graph: Changed in place.

    Attributes:
        places: How often the graph was changed.
        renames: New tensor to the tensor of the graph before, whose module its node belongs to.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.places = 0
        self.renames: dict[str, str] = {}
        self._made: set[str] = set()
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {output.name for node in graph for output in node.outputs}

    def nodes(self, operator: str, *, last_first: bool = False) -> Iterator[ir.Node]:
        """Yield the nodes of one of ONNX's operators that are there now and still are when their turn comes."""
        for node in list(reversed(self.graph)) if last_first else list(self.graph):
            if node.graph is self.graph and node.op_type == operator and node.domain in {"", "ai.onnx"}:
                yield node

    def weight(self, array: Array, like: ir.Value | None) -> ir.Value:
        """Add an initializer, called after the tensor `like`."""
        import onnx_ir as ir

        name = self._fresh("weight" if like is None else str(like.name))
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        sizes: Sequence[int | str | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Insert a node before another one and return its output.

        Args:
            before: The node that comes after it.
            operator: Of ONNX's own domain.
            inputs: What it takes.
            like: The tensor whose type, module and stem of a name its output has.
            sizes: Shape of the output; open dimensions by name.
            attributes: Of the node.
        """
        import onnx_ir as ir

        name = self._fresh(str(like.name))
        output = ir.Value(name=name, type=like.type, shape=ir.Shape(sizes))
        self.renames[name] = self._origin(str(like.name))
        self.graph.insert_before(before, ir.node(operator, inputs, attributes, outputs=[output]))
        return output

    def changed(self, value: ir.Value) -> None:
        """Give a tensor that holds other values from now on a name of its own."""
        old = str(value.name)
        if old not in self._made:
            value.name = self._fresh(old)
            self.renames[value.name] = self._origin(old)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new`, which holds what `old` held, have the name and the users of `old`; its module stays its own."""
        name, shape = str(old.name), old.shape
        origin = self._origin(str(new.name))
        old.name = self._fresh(name)
        new.name, new.shape = name, shape
        self.renames[name] = origin
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._drop(old)

    def bypass(self, old: ir.Value, new: ir.Value) -> None:
        """Let the users of `old`, which the graph doesn't give out, take `new` instead."""
        old.replace_all_uses_with(new)
        self._drop(old)

    def _drop(self, value: ir.Value) -> None:
        """Remove the node that makes a tensor that nobody uses, and those that worked for it alone."""
        node = value.producer()
        if node is None or node.graph is None or any(out.uses() or out.is_graph_output() for out in node.outputs):
            return
        inputs = [given for given in node.inputs if given is not None]
        self.graph.remove(node, safe=True)
        for given in inputs:
            self._drop(given)

    def _origin(self, name: str) -> str:
        return self.renames.get(name, name)

    def _fresh(self, like: str) -> str:
        stem = like.partition(MARK)[0] + MARK
        name, number = stem, 2
        while name in self._taken or name in self._made:
            name, number = f"{stem}.{number}", number + 1
        self._made.add(name)
        return name


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer; None for what is computed or fed."""
    if value is None or value.const_value is None or value.is_graph_input() or not value.is_initializer():
        return None
    return value.const_value.numpy()


def floats(value: ir.Value | None) -> NDArray[np.float64] | None:
    """Return the array of a float32 initializer as float64; None for anything else."""
    array = constant(value)
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else None


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the numbers of an int64 initializer of at most one dimension; None for anything else."""
    array = constant(value)
    if array is None or array.dtype != np.int64 or array.ndim > 1:
        return None
    return tuple(int(number) for number in array.reshape(-1))


def sizes(value: ir.Value | None) -> Sizes | None:
    """Return the shape of a tensor, open dimensions by name and None where they have none; None where nothing is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def constant_sizes(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of an initializer; () for anything else too."""
    tensor = None if value is None else value.const_value
    return () if tensor is None else tuple(dim for dim in tensor.shape if isinstance(dim, int))


def covers(outer: Sizes, inner: Sizes) -> bool:
    """Tell whether a tensor of shape `inner` can be broadcast into one of shape `outer` without enlarging it."""
    if len(inner) > len(outer):
        return False
    return all(dim in {1, size} and dim is not None for dim, size in zip(inner[::-1], outer[::-1], strict=False))


def made_by(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Return the node that makes a tensor, where it is of one of ONNX's `operators`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in operators and node.domain in {"", "ai.onnx"} else None


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the node that uses a tensor, where nothing else does: one use, and no output of the graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def data_and_constant(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the computed and the constant float32 input of a node of two inputs; None where it has no such pair."""
    if len(node.inputs) == 2:
        for data, other in (node.inputs, node.inputs[::-1]):
            if data is not None and other is not None and constant(data) is None and floats(other) is not None:
                return data, other
    return None


def permutation(node: ir.Node) -> tuple[int, ...]:
    """Return how a Transpose orders its axes; () where it turns them around without saying so."""
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default
