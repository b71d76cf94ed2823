"""ONNX Runtime as a target: the hub graph itself, with labels and preprocessing inside.

One file where a protobuf can hold it; else the weights lie beside it, in one file that is called after its content, so that
the graph's reference to it holds under whatever name the graph itself is placed.
"""

from __future__ import annotations

import shutil

from deploykit.artifact import EXACT, RunConfig, sha256_of
from deploykit.export import onnx_files
from deploykit.export.engines.texts import texts
from deploykit.export.quantize.grid import UINT8
from deploykit.export.quantize.placement import Placement
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.export.target import PackageOptions, Target

SUFFIX = ".onnx"
#: Weights of more bytes than this lie beside the graph: a protobuf ends at 2 GiB, and is built in memory twice over.
MOST_INSIDE = 3 << 29


def write_onnx(inputs: Inputs, options: PackageOptions, workspace: Workspace, suffix: str = SUFFIX) -> Facts:
    """Write a graph as an application opens it; its file ends in `suffix`."""
    source = inputs["graph"].path(onnx_files.MODEL)
    model = onnx_files.load(source)
    weights = onnx_files.weight_bytes(model)
    if weights > MOST_INSIDE:
        data = inputs["graph"].path(onnx_files.WEIGHTS)
        name = f"{options.stem}.{sha256_of(data)[:8]}.data"
        shutil.copyfile(data, workspace.folder / name)
        onnx_files.refer(model, name)
    else:
        model = onnx_files.load_whole(source)
    onnx_files.embed(model, texts(options))
    onnx_files.save(model, workspace.folder / f"{options.stem}{suffix}")
    return {"nodes": len(model.graph.node), "weight_bytes": weights}


TARGET = Target(
    name="ort",
    title="ONNX Runtime",
    format="onnx",
    endings=(SUFFIX,),
    stage=Stage(
        name="package-onnx",
        version=3,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx",),
        run=write_onnx,
    ),
    twin=RunConfig("onnxruntime", precision="f32", arithmetic=EXACT),
    # On a processor ONNX Runtime computes half in float32, between casts: what half does, the emulator tells.
    runs={
        "fp32": (RunConfig("onnxruntime", precision="f32"),),
        "fp16": (RunConfig("onnxruntime", precision="f32"), RunConfig("emulator", precision="f16")),
        "int8": (RunConfig("onnxruntime", precision="f32"),),
        "int8-weights": (RunConfig("onnxruntime", precision="f32"),),
    },
    # Only a layer whose input and output are both rounded gets an integer kernel; its bias must be an integer too.
    # Without VNNI these kernels add products in pairs of 16 bits.
    placements={"int8": Placement(UINT8, outputs=("Conv", "MatMul", "Gemm"), integer_bias=True, pairs=True)},
    refuses={
        "bf16": "its processor kernels convolve in float32 alone, so that nothing would run in bfloat16",
        "fp8": "its processor kernels multiply in float32 what is stored in fp8, so that nothing would run in 8 bits",
    },
)
