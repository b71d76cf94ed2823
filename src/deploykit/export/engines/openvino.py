"""OpenVINO as a target: the hub graph as an IR (.xml and .bin).

`Core.read_model` converts without the `ovc` front end, whose every call reports to a telemetry service.
"""

from __future__ import annotations

import json

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files
from deploykit.export.engines.texts import texts
from deploykit.export.quantize.grid import SYMMETRIC, UINT8
from deploykit.export.quantize.placement import Placement
from deploykit.export.stage import Facts, Inputs, Stage, Workspace
from deploykit.export.target import PackageOptions, Target

ENDINGS = (".openvino.xml", ".openvino.bin")


def _run(inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    import openvino

    graph = inputs["graph"].path(onnx_files.MODEL)
    try:
        model = openvino.Core().read_model(str(graph))
    except RuntimeError as error:
        raise UnsupportedError(f"OpenVINO refuses the graph: {str(error).strip().splitlines()[-1]}") from error
    names = {
        value.name: {str(i): dim.dim_param for i, dim in enumerate(value.type.tensor_type.shape.dim) if dim.dim_param}
        for value in onnx_files.load(graph).graph.input
    }
    model.set_friendly_name(options.stem)
    for key, value in texts(options).items():
        model.set_rt_info(value, ["deploykit", key])
    if any(names.values()):
        model.set_rt_info(json.dumps(names), ["deploykit", "axes"])
    openvino.save_model(model, str(workspace.folder / f"{options.stem}{ENDINGS[0]}"), compress_to_fp16=False)
    return {"operations": len(model.get_ops())}


TARGET = Target(
    name="openvino",
    title="OpenVINO",
    format="openvino",
    endings=ENDINGS,
    stage=Stage(
        name="package-openvino",
        version=2,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx", "openvino"),
        run=_run,
    ),
    # The runtime's own choice is bfloat16 on some processors: parity is judged at f32, and the stock default too.
    runs=dict.fromkeys(
        ("fp32", "fp16", "int8"), (RunConfig("openvino", precision="f32"), RunConfig("openvino", precision="auto"))
    ),
    # Its kernel for attention takes no zero points; 8 bits are moved faster than 32.
    placement=Placement(
        UINT8,
        factors=SYMMETRIC,
        moves=("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        rewrites=("channel-norms",),
    ),
    # Of 2026.4.1 it is known that int8 with an open batch comes out wrong.
    static=frozenset({"int8"}),
)
