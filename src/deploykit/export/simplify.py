"""Simplify: fold constants and fuse nodes with onnxsim; inputs, outputs and axes stay, and the outputs are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact import Axis, RunConfig
from deploykit.errors import InternalError
from deploykit.export import onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor, get_backend

if TYPE_CHECKING:
    import onnx


#: Largest relative difference that simplifying may make.
TOLERANCE = 1e-5
#: Rows of the comparison where the batch is dynamic: not a size that graphs are traced at.
PROBE_ROWS = 3


@dataclass(frozen=True)
class SimplifyOptions:
    """How to simplify.

    Attributes:
        fold_limit: Constants larger than this are not computed ahead, such as "16MB": folding must not grow the file.
    """

    fold_limit: str = "16MB"


def _run(inputs: Inputs, options: SimplifyOptions, workspace: Workspace) -> Facts:
    import onnxsim

    source = inputs["graph"].path(onnx_files.MODEL)
    before = onnx_files.load(source)
    after, _ = onnxsim.simplify(before, tensor_size_threshold=options.fold_limit)
    _same_interface(before, after)
    modules = provenance.complete(after.graph, provenance.read(inputs["graph"].path(onnx_files.MODULES)))
    onnx_files.strip(after)
    target = workspace.folder / onnx_files.MODEL
    onnx_files.save(after, target)
    provenance.write(workspace.folder / onnx_files.MODULES, modules)
    error = _difference(source, target)
    if not error <= TOLERANCE:
        raise InternalError(f"simplifying changed the outputs by {error:.1e} (relative max; at most {TOLERANCE:.0e})")
    return {"nodes_before": len(before.graph.node), "nodes": len(after.graph.node), "relative_max": error}


def _same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for side in ("input", "output"):
        old = onnx_files.specs(getattr(before.graph, side), {})
        new = onnx_files.specs(getattr(after.graph, side), {})
        if old != new:
            raise InternalError(f"simplifying changed the {side}s from {old} to {new}")


def _difference(before: Path, after: Path) -> float:
    """Return the relative max over seeded inputs of both graphs in ONNX Runtime."""
    config = RunConfig("onnxruntime", precision="f32")
    backend = get_backend(config.backend)
    random = np.random.default_rng(0)
    with backend.open(str(before), config) as one, backend.open(str(after), config) as other:
        feeds: dict[str, Tensor] = {
            spec.name: random.standard_normal(
                [PROBE_ROWS if isinstance(dim, Axis) else dim for dim in spec.shape], dtype=np.float32
            )
            for spec in one.inputs
        }
        expected, found = one.infer(feeds), other.infer(feeds)
    return max(drift.relative_max(array, found[name]) for name, array in expected.items())


STAGE = Stage(
    name="simplify",
    version=1,
    takes={"graph": "graph"},
    makes="graph",
    libraries=("onnx", "onnxsim", "onnxruntime"),
    run=_run,
)
