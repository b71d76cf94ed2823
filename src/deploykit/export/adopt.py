"""Adopt: an ONNX file that exists already, as the first graph of a plan in place of a traced one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import BadInputError
from deploykit.export import onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.models import sources

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class AdoptOptions:
    """How to adopt a graph.

    Attributes:
        batch: Rows of the input where the batch is static.
        dynamic: Names of the axes that stay open.
    """

    batch: int
    dynamic: tuple[str, ...]


def adopted(source: Path, folder: Path, shapes: Mapping[str, tuple[int | str, ...]]) -> onnx.ModelProto:
    """Write the graph of a file into `folder` as stages hand it on, and return its structure.

    Args:
        source: An ONNX file.
        folder: To write to.
        shapes: By input, sizes or names for the dimensions that are open.

    Raises:
        BadInputError: The file breaks ONNX's own rules, or doesn't work at these sizes.
    """
    import onnx_ir

    try:
        whole = onnx_ir.load(source)
        whole.graph.sort()
        model = onnx_files.save_apart(whole, folder)
        onnx_files.strip(model)
        onnx_files.fix_initializers(model)
        model.graph.name = model.graph.name or source.stem
        for name, shape in shapes.items():
            onnx_files.set_shape(model, name, shape)
        onnx_files.save(model, folder / onnx_files.MODEL)
    except Exception as error:  # its rules were broken before we had it, and any library may be the one that tells
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise BadInputError(f"{source}: {told}") from error
    return model


def _run(inputs: Inputs, options: AdoptOptions, workspace: Workspace) -> Facts:
    original = sources.located(inputs["original"].identity)
    sources.check(original)
    batch: int | str = "batch" if "batch" in options.dynamic else options.batch
    shapes = {original.input_name: (batch, *original.recipe.input_size)}
    model = adopted(Path(original.weights_file), workspace.folder, shapes)
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
