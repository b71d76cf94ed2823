"""Which tensors of a node may be half, after ONNX's own schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import onnx_ir as ir

#: Inputs that stay float32 though a schema allows half: sizes and places, which 11 bits can't tell.
FLOAT_INPUTS: Final[Mapping[str, frozenset[int]]] = {"Resize": frozenset({1, 2}), "Upsample": frozenset({1})}
#: Outputs in the precision that a normalization computes in, not in that of its data.
FLOAT_OUTPUTS: Final[Mapping[str, frozenset[int]]] = {"LayerNormalization": frozenset({1, 2})}
#: Operators that square what they take, and no standard says in which precision: never half.
SQUARING: Final = frozenset({"GlobalLpPool", "LRN", "LpNormalization", "LpPool", "MeanVarianceNormalization"})
#: Operators that are of one type: of bits that are read as others, and of a constant that the graph gives out as it is.
TYPED: Final = frozenset({"BitCast", "Constant"})
#: Operators that look at no values: any precision is right.
INDIFFERENT: Final = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Kernel:
    """The float32 tensors of a node that may be half: indices of its inputs and outputs."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def is_float(value: ir.Value | None) -> bool:
    """Tell whether a tensor is float32."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def touches_floats(node: ir.Node) -> bool:
    """Tell whether a node takes or makes a float32 tensor."""
    return any(is_float(value) for value in (*node.inputs, *node.outputs))


def half_kernel(node: ir.Node, opset: int, half: ir.DataType) -> Kernel | None:
    """Return what of a node may be half; None where the operator takes none, or is none of ONNX's.

    Args:
        node: Takes or makes a float32 tensor.
        opset: Of the graph.
        half: FLOAT16 or BFLOAT16.
    """
    import onnx
    import onnx_ir as ir

    if (
        node.op_type in SQUARING | TYPED
        or node.domain not in {"", "ai.onnx"}
        or any(value is not None and value.dtype == ir.DataType.DOUBLE for value in (*node.inputs, *node.outputs))
    ):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    wanted = f"tensor({half.name.lower()})"

    def halves(values: Sequence[ir.Value | None], formal: Sequence[Any], kept: frozenset[int]) -> frozenset[int]:
        found = []
        for index, value in enumerate(values):
            kind = formal[min(index, len(formal) - 1)].type_str if is_float(value) else ""
            if kind and index not in kept and wanted in allowed.get(kind, (kind,)):
                found.append(index)
        return frozenset(found)

    inputs = halves(node.inputs, schema.inputs, FLOAT_INPUTS.get(node.op_type, frozenset()))
    outputs = halves(node.outputs, schema.outputs, FLOAT_OUTPUTS.get(node.op_type, frozenset()))
    first_input = next((index for index, value in enumerate(node.inputs) if is_float(value)), None)
    first = (inputs, first_input) if first_input is not None else (outputs, 0)
    return Kernel(inputs, outputs) if first[1] in first[0] else None
