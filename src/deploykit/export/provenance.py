"""Which nn.Module does a graph node come from? A sidecar answers, since simplifiers drop the exporter's metadata.

Nodes are known by their first output: simplifiers rename nodes freely but keep the tensors that survive. The path of the
whole network is "".
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import serde
from deploykit.errors import BadInputError

if TYPE_CHECKING:
    import onnx


SCOPES = "pkg.torch.onnx.name_scopes"

Modules = dict[str, str]


def of_exporter(graph: onnx.GraphProto, paths: Container[str]) -> Modules:
    """Read the exporter's own metadata: first output of each node to the innermost module that it was traced in.

    Args:
        graph: As the exporter wrote it.
        paths: The modules that there are; the exporter also notes names of its own making.
    """
    found: Modules = {}
    for node in graph.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                scopes = [scope for scope in ast.literal_eval(entry.value) if scope in paths]
                if scopes:
                    found[node.output[0]] = scopes[-1]
    return found


def complete(graph: onnx.GraphProto, known: Mapping[str, str]) -> Modules:
    """Map every node, those that nothing is known of by their neighbours.

    A node without a record belongs to the module whose parameter it alone uses, else with the nearest recorded node
    before it, else after it, else to the whole network.

    Args:
        graph: Any graph made from the one that `known` speaks of.
        known: First outputs to module paths.
    """
    known = {**_owners(graph, set(known.values())), **known}
    found: Modules = {}
    for node in graph.node:
        before = [found[name] for name in node.input if name and name in found]
        mapped = known.get(node.output[0])
        if mapped is None and before:
            mapped = before[0]
        if mapped is not None:
            for output in node.output:
                found[output] = mapped
    for node in reversed(graph.node):
        if node.output[0] not in found:
            after = [user for user in graph.node if set(user.input) & set(filter(None, node.output))]
            recorded = [found[user.output[0]] for user in after if user.output[0] in found]
            if recorded:
                found |= dict.fromkeys(node.output, recorded[0])
    return {node.output[0]: found.get(node.output[0], "") for node in graph.node}


def _owners(graph: onnx.GraphProto, paths: Container[str]) -> Modules:
    """Map nodes by their parameters' names, which begin with the path of the module that holds them."""
    weights = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input if name in weights)
    return {
        node.output[0]: name.rpartition(".")[0]
        for node in graph.node
        for name in node.input
        if uses[name] == 1 and name.rpartition(".")[0] in paths
    }


def carry(modules: Mapping[str, str], origins: Mapping[str, str]) -> Modules:
    """Return `modules` with the nodes of a changed graph beside those that it was made from.

    Args:
        modules: First outputs to module paths, of the graph before.
        origins: First outputs of new nodes to the tensors whose module they belong to.
    """
    return {**modules, **{new: modules[old] for new, old in origins.items() if old in modules}}


def write(path: Path, modules: Mapping[str, str]) -> None:
    """Write the sidecar."""
    path.write_text(json.dumps({"nodes": dict(sorted(modules.items()))}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Modules:
    """Read a sidecar.

    Raises:
        BadInputError: It is damaged.
    """
    try:
        nodes = serde.parse(path.read_bytes())["nodes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} is no map of modules: {error}") from error
    return dict(serde.from_json(Mapping[str, str], nodes, f"{path}: nodes"))
