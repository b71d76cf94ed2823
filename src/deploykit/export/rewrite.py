"""Rewrite: exact changes of a simplified graph, chosen by the model's family; outputs compared, modules carried over."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import heap
from deploykit.errors import InternalError, UsageError
from deploykit.export import equal, onnx_files, provenance
from deploykit.export.rewrites import (
    channel_norms,
    direct_transposes,
    early_selections,
    fold_scales,
    fold_shifts,
    global_pools,
    identity_gathers,
    pointwise_convs,
    regroup_norms,
)
from deploykit.export.rewrites.editing import Rewrite
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.runtime.backends.base import Tensors

if TYPE_CHECKING:
    import onnx

#: All there are, by name.
REWRITES: Mapping[str, Rewrite] = {
    module.REWRITE.name: module.REWRITE
    for module in (
        channel_norms,
        direct_transposes,
        early_selections,
        fold_scales,
        fold_shifts,
        global_pools,
        identity_gathers,
        pointwise_convs,
        regroup_norms,
    )
}


@dataclass(frozen=True)
class RewriteOptions:
    """What to rewrite.

    Attributes:
        rewrites: Names of `REWRITES`, in the order in which they are done.
    """

    rewrites: tuple[str, ...]


@dataclass(frozen=True)
class _Done:
    """What became of a graph.

    Attributes:
        places: Name of each rewrite to how often it was done.
        modules: First outputs to module paths, as far as they are known.
    """

    places: Mapping[str, int]
    modules: provenance.Modules


def get_rewrite(name: str) -> Rewrite:
    """Return the rewrite called `name`.

    Raises:
        UsageError: There is none.
    """
    if name not in REWRITES:
        raise UsageError(f"unknown rewrite {name!r}; there are: {', '.join(sorted(REWRITES))}")
    return REWRITES[name]


def _run(inputs: Inputs, options: RewriteOptions, workspace: Workspace) -> Facts:
    source, known = (inputs["graph"].path(name) for name in (onnx_files.MODEL, onnx_files.MODULES))
    before = onnx_files.load(source)
    after, done = _write(source, options.rewrites, provenance.read(known), workspace.folder)
    names = ", ".join(options.rewrites)
    heap.release()  # comparing will hold the weights twice, one after the other
    equal.check_interface(before, after, f"rewriting ({names})")
    provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(after.graph, done.modules))
    probe = equal.probe(inputs["golden"])
    found = equal.difference(source, workspace.folder / onnx_files.MODEL, probe)
    if not found.is_rounding:
        raise _blamed(source, options.rewrites, probe, workspace.folder)
    nodes = {"nodes_before": len(before.graph.node), "nodes": len(after.graph.node)}
    return {"places": dict(done.places), **nodes, "relative_max": found.relative_max}


def _write(
    source: Path, names: Sequence[str], modules: provenance.Modules, folder: Path
) -> tuple[onnx.ModelProto, _Done]:
    """Rewrite the graph at `source` into `folder`, and return its structure."""
    import onnx_ir

    model = onnx_ir.load(source)
    places = {}
    for name in names:
        rewritten = get_rewrite(name).apply(model)
        places[name] = rewritten.places
        modules = provenance.carry(modules, rewritten.renames)
    return onnx_files.write(model, folder), _Done(places, modules)


def _blamed(source: Path, names: Sequence[str], probe: Tensors, folder: Path) -> InternalError:
    """Find the rewrite that changed the outputs: the last one of the first few that do."""
    for count, name in enumerate(names, start=1):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _write(source, names[:count], {}, Path(scratch))
            found = equal.difference(source, Path(scratch) / onnx_files.MODEL, probe)
        if not found.is_rounding:
            return InternalError(found.told(f"rewrite {name!r}"))
    return InternalError(f"rewriting ({', '.join(names)}) changed the outputs, but not when it was done again")


STAGE = Stage(
    name="rewrite",
    version=1,
    takes={"graph": "graph", "golden": "tensors"},
    makes="graph",
    libraries=("onnx", "onnx_ir", "onnxruntime"),
    run=_run,
)
