"""OpenVINO as a target: the hub graph as an IR (.xml and .bin).

`Core.read_model` converts without the `ovc` front end, whose every call reports to a telemetry service.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from deploykit.artifact import EXACT, RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files
from deploykit.export.engines.texts import texts
from deploykit.export.quantize.grid import SYMMETRIC, UINT8
from deploykit.export.quantize.placement import MOVES, Placement
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace
from deploykit.export.target import PackageOptions, Target
from deploykit.runtime.backends.openvino import message_of

if TYPE_CHECKING:
    import onnx

ENDINGS = (".openvino.xml", ".openvino.bin")
#: ONNX's names of the types that weights in fewer bits have, to OpenVINO's.
NARROW: Final[Mapping[str, str]] = {"FLOAT16": "f16", "BFLOAT16": "bf16", "INT8": "i8", "UINT8": "u8"}
F32, STOCK = RunConfig("openvino", precision="f32"), RunConfig("openvino", precision="auto")
#: The runtime's own choice is to round the activations of products by int8 weights as well, 32 at a time.
FLOAT_ACTIVATIONS: Final[Mapping[str, str]] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
#: Share of such weights' bytes that the IR must hold in their type.
LEAST_KEPT: Final = 0.95


def _run(inputs: Inputs, options: PackageOptions, workspace: Workspace) -> Facts:
    import openvino

    graph = inputs["graph"].path(onnx_files.MODEL)
    try:
        model = openvino.Core().read_model(str(graph))
    except RuntimeError as error:
        raise UnsupportedError(f"OpenVINO refuses the graph: {message_of(error)}") from error
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
    return {"operations": len(model.get_ops()), "constant_bytes": constant_bytes(model)}


def constant_bytes(model: Any) -> dict[str, int]:  # noqa: ANN401 - the library has no types
    """Return how many bytes a model's constants take, by OpenVINO's name of their type."""
    found: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type()
            found[kind.get_type_name()] += math.prod(node.get_output_shape(0)) * kind.bitwidth // 8
    return dict(sorted(found.items()))


def _weight_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return how many bytes the matrices and kernels of fewer bits take, by OpenVINO's name of their type."""
    import onnx_ir

    found: Counter[str] = Counter()
    for tensor in graph.initializer:
        kind = onnx_ir.DataType(tensor.data_type)
        if kind.name in NARROW and len(tensor.dims) > 1:
            found[NARROW[kind.name]] += int(kind.itemsize * math.prod(tensor.dims))
    return dict(found)


def _ensure(inputs: Inputs, options: PackageOptions, made: Item) -> None:
    """Read the IR and compare its constants with the graph's weights.

    Raises:
        UnsupportedError: OpenVINO has widened them.
    """
    import openvino

    kept = constant_bytes(openvino.Core().read_model(str(made.path(f"{options.stem}{ENDINGS[0]}"))))
    for kind, wanted in _weight_bytes(onnx_files.load(inputs["graph"].path(onnx_files.MODEL)).graph).items():
        if kept.get(kind, 0) < LEAST_KEPT * wanted:
            raise UnsupportedError(
                f"asked for {options.precision}, the IR holds {kept.get(kind, 0):,} bytes of {kind} constants where the "
                f"graph holds {wanted:,}: OpenVINO has stored them in more bits"
            )


TARGET = Target(
    name="openvino",
    title="OpenVINO",
    format="openvino",
    endings=ENDINGS,
    stage=Stage(
        name="package-openvino",
        version=3,
        takes={"graph": "graph"},
        makes="artifact",
        libraries=("onnx", "openvino"),
        run=_run,
        ensure=_ensure,
    ),
    twin=RunConfig("onnxruntime", precision="f32", arithmetic=EXACT),
    runs={
        # The runtime's own choice is bfloat16 on some processors, for what int8 leaves too: parity is judged at f32, and the
        # stock default beside it.
        **dict.fromkeys(("fp32", "fp16", "int8"), (F32, STOCK)),
        "int8-weights": (replace(F32, hints=FLOAT_ACTIVATIONS), STOCK),
        "bf16": (RunConfig("openvino", precision="bf16"), F32),
    },
    # Its kernel for attention takes no zero points; 8 bits are moved faster than 32. Without VNNI its kernels add products in
    # pairs of 16 bits.
    placements={
        "int8": Placement(
            UINT8,
            factors=SYMMETRIC,
            moves=MOVES,
            rewrites=("channel-norms",),
            joint=True,
            pairs=True,
        )
    },
    # Of 2026.4.1 int8 networks are known that come out wrong where the batch is open. Those of this package came out right on
    # the one processor that they were tried on, which proves nothing for others.
    static=frozenset({"int8"}),
)
