"""Simplify: fold constants and fuse nodes with onnxsim; inputs, outputs and axes stay, and the outputs are compared."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploykit.export import equal, onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Stage, Workspace


@dataclass(frozen=True)
class SimplifyOptions:
    """How to simplify.

    Attributes:
        fold_limit: Constants larger than this are not computed ahead, such as "16MB": folding must not grow the file.
    """

    fold_limit: str = "16MB"


def _run(inputs: Inputs, options: SimplifyOptions, workspace: Workspace) -> Facts:
    import onnx_ir
    import onnxsim

    source, target = inputs["graph"].path(onnx_files.MODEL), workspace.folder / onnx_files.MODEL
    before = onnx_files.load(source)
    with tempfile.TemporaryDirectory(dir=workspace.folder) as scratch:
        made = Path(scratch) / onnx_files.MODEL
        onnxsim.simplify(str(source), tensor_size_threshold=options.fold_limit, output_path=str(made))
        after = onnx_files.save_apart(onnx_ir.load(made), workspace.folder)
    equal.check_interface(before, after, "simplifying")
    modules = provenance.complete(after.graph, provenance.read(inputs["graph"].path(onnx_files.MODULES)))
    onnx_files.strip(after)
    onnx_files.save(after, target)
    provenance.write(workspace.folder / onnx_files.MODULES, modules)
    error = equal.check_outputs(source, target, equal.probe(inputs["golden"]), "simplifying")
    return {"nodes_before": len(before.graph.node), "nodes": len(after.graph.node), "relative_max": error}


STAGE = Stage(
    name="simplify",
    version=2,
    takes={"graph": "graph", "golden": "tensors"},
    makes="graph",
    libraries=("onnx", "onnx_ir", "onnxsim", "onnxruntime"),
    run=_run,
)
