"""Adopt: an ONNX file that exists already, as the first graph of a plan in place of a traced one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import BadInputError, InternalError
from deploykit.export import onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.models import sources


@dataclass(frozen=True)
class AdoptOptions:
    """How to adopt a graph.

    Attributes:
        batch: Rows of the input where the batch is static.
        dynamic: Names of the axes that stay open.
    """

    batch: int
    dynamic: tuple[str, ...]


def _run(inputs: Inputs, options: AdoptOptions, workspace: Workspace) -> Facts:
    import onnx
    import onnx_ir

    original = sources.located(inputs["original"].identity)
    sources.check(original)
    whole = onnx_ir.load(Path(original.weights_file))
    whole.graph.sort()
    model = onnx_files.save_apart(whole, workspace.folder)
    onnx_files.strip(model)
    onnx_files.fix_initializers(model)
    model.graph.name = model.graph.name or original.id
    batch: int | str = "batch" if "batch" in options.dynamic else options.batch
    shape = (batch, *original.recipe.input_size)
    try:
        onnx_files.set_shape(model, original.input_name, shape)
        onnx_files.save(model, workspace.folder / onnx_files.MODEL)
    except (InternalError, onnx.shape_inference.InferenceError) as error:  # its rules were broken before we had it
        raise BadInputError(f"{original.weights_file}: {str(error).splitlines()[0]}") from error
    provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(model.graph, {}))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return {"nodes": len(model.graph.node), "opset": opsets.get("", 0), "ir_version": model.ir_version}


STAGE = Stage(
    name="adopt",
    version=2,
    takes={"original": "original"},
    makes="graph",
    libraries=("onnx", "onnx_ir"),
    run=_run,
)
