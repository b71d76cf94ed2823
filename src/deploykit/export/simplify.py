"""Simplify: fold constants and fuse nodes with onnxsim; inputs, outputs and axes stay, and the outputs are compared."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.export import equal, onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Stage, Workspace

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class SimplifyOptions:
    """How to simplify.

    Attributes:
        fold_limit: Constants larger than this are not computed ahead, such as "16MB": folding must not grow the file.
    """

    fold_limit: str = "16MB"


def simplified(source: Path, folder: Path, options: SimplifyOptions) -> tuple[onnx.ModelProto, str]:
    """Simplify the graph at `source` into `folder`, weights apart.

    Returns:
        Its structure, which is still to be saved, and "". Where the simplifier fails, the graph stays as it is, and the text
        says why.
    """
    import onnx_ir
    import onnxsim

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, failed = Path(scratch) / onnx_files.MODEL, ""
        try:
            onnxsim.simplify(str(source), tensor_size_threshold=options.fold_limit, output_path=str(made))
        except RuntimeError as error:
            made, failed = source, str(error).splitlines()[0][:300]
        return onnx_files.save_apart(onnx_ir.load(made), folder), failed


def _run(inputs: Inputs, options: SimplifyOptions, workspace: Workspace) -> Facts:
    source, target = inputs["graph"].path(onnx_files.MODEL), workspace.folder / onnx_files.MODEL
    before = onnx_files.load(source)
    after, failed = simplified(source, workspace.folder, options)
    equal.check_interface(before, after, "simplifying")
    modules = provenance.complete(after.graph, provenance.read(inputs["graph"].path(onnx_files.MODULES)))
    onnx_files.strip(after)
    onnx_files.save(after, target)
    provenance.write(workspace.folder / onnx_files.MODULES, modules)
    error = equal.check_outputs(source, target, equal.probe(inputs["golden"]), "simplifying")
    nodes = {"nodes_before": len(before.graph.node), "nodes": len(after.graph.node)}
    return {**nodes, "relative_max": error, **({"failed": failed} if failed else {})}


STAGE = Stage(
    name="simplify",
    version=2,
    takes={"graph": "graph", "golden": "tensors"},
    makes="graph",
    libraries=("onnx", "onnx_ir", "onnxsim", "onnxruntime"),
    run=_run,
)
