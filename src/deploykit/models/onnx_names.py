"""Names in an ONNX graph: each stands for one tensor that something gives. Runtimes differ in what else they let pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import BadInputError

if TYPE_CHECKING:
    import onnx


def check(path: Path, graph: onnx.GraphProto) -> None:
    """Refuse a graph in which a name stands for two tensors or for none.

    Args:
        path: For messages.
        graph: Its structure, with or without weights.

    Raises:
        BadInputError: It is one; the message names the tensor.
    """
    fault = next(_faults(graph, frozenset()), None)
    if fault is not None:
        raise BadInputError(f"{path} is no valid graph: {fault}")


def _faults(graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong with the names of a graph; `outer` are those of the graphs that it lies in."""
    listed = [value.name for value in graph.input]
    outputs = [value.name for value in graph.output]
    constant = {
        *(tensor.name for tensor in graph.initializer),
        *(sparse.values.name for sparse in graph.sparse_initializer),
    }
    made = [name for node in graph.node for name in node.output if name]
    yield from (f"an {what} has no name" for what, names in (("input", listed), ("output", outputs)) if "" in names)
    for what, names in (("inputs", listed), ("outputs", outputs), ("outputs of nodes", made)):
        yield from (f"{name!r} is among its {what} {count} times" for name, count in _repeated(names))
    yield from (f"{name!r} is given and computed too" for name in made if name in constant or name in listed)
    known = outer | constant | frozenset(listed) | frozenset(made)
    for node in graph.node:
        lacking = next((name for name in node.input if name and name not in known), None)
        if lacking is not None:
            yield f"nothing gives {lacking!r}, which {node.op_type} {node.name!r} takes"
        for inner in _graphs(node):
            yield from _faults(inner, known)
    yield from (f"nothing gives its output {name!r}" for name in outputs if name not in known)


def _repeated(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    return ((name, count) for name, count in Counter(names).items() if count > 1)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node holds, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
