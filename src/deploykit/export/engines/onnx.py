"""ONNX Runtime as a target: the hub graph itself, with labels and preprocessing inside."""

from __future__ import annotations

from deploykit.artifact import RunConfig
from deploykit.export import onnx_files
from deploykit.export.engines.texts import texts
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.export.target import PackageOptions, Target

SUFFIX = ".onnx"


def _run(inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    model = onnx_files.load(inputs["graph"].path(onnx_files.MODEL))
    onnx_files.embed(model, texts(options))
    onnx_files.save(model, workspace.folder / f"{options.stem}{SUFFIX}")
    return {"nodes": len(model.graph.node)}


TARGET = Target(
    name="ort",
    title="ONNX Runtime",
    format="onnx",
    endings=(SUFFIX,),
    stage=Stage(
        name="package-onnx",
        version=1,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx",),
        run=_run,
    ),
    runs={"fp32": (RunConfig("onnxruntime", precision="f32"),)},
)
