"""Which nodes hold values that half can't: constants, and what calibration images showed of float16's activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.calibration.ranges import RangeTable
from deploykit.export.kernels import Kernel
from deploykit.export.rewrites.editing import constant, integer, integers, made_by, sizes

if TYPE_CHECKING:
    import onnx_ir as ir

#: Largest finite value by ONNX's names of types.
LARGEST: Final[Mapping[str, float]] = {"FLOAT16": 65504.0, "BFLOAT16": 255 * 2.0**120}
#: What activations may reach on calibration images in float16: half of its largest, since other images may reach further.
LIMIT: Final = LARGEST["FLOAT16"] / 2
#: Scales below this are zero in float16.
LEAST: Final = 2.0**-24
ROUNDING: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Overflows:
    """Tells of nodes whose values don't fit into half.

    Args:
        half: FLOAT16 or BFLOAT16.
        table: Ranges of the graph's tensors, or of those of the graph that it was rounded to int8 from; None where only
            constants can be too large.
    """

    def __init__(self, half: ir.DataType, table: RangeTable | None) -> None:
        self._largest = LARGEST[half.name]
        self._table = table
        self._constants: dict[str, tuple[float, float]] = {}

    def reason(self, node: ir.Node, kernel: Kernel) -> tuple[str, str] | None:
        """Return rule and detail of what keeps a node float32; None where nothing does."""
        inputs = [value for index in sorted(kernel.inputs) if (value := node.inputs[index]) is not None]
        computed = [value for value in inputs if constant(value) is None]
        for value in inputs:
            if constant(value) is not None and (holds := self._of_constant(value)[1]) > self._largest:
                return "constant", f"{node.op_type}: {value.name} holds {holds:.5g}, above {self._largest:.5g}"
        if self._table is None:
            return None
        for value in (*computed, *(node.outputs[index] for index in sorted(kernel.outputs))):
            reached = self.absmax(value)
            if reached is None:
                return "unmeasured", f"{node.op_type}: no range is known of {value.name}"
            if reached > LIMIT:
                return "range", f"{node.op_type}: {value.name} reaches {reached:.5g}, above {LIMIT:.0f}"
        return self._scale(node) if node.op_type in ROUNDING else self._squares(node)

    def _squares(self, node: ir.Node) -> tuple[str, str] | None:
        """Return why a node that squares what it takes, or sums squares, stays float32."""
        base, count = _squares_summed(node)
        reached = 0.0 if base is None else self.absmax(base) or 0.0
        if base is None or reached == 0.0 or reached * reached * count <= LIMIT:
            return None
        many = "its square" if count == 1 else f"the sum of {count:.0f} squares"
        told = f"{many} {reached * reached * count:.5g}" if math.isfinite(count) else "the sum of unknown many squares"
        return "range", f"{node.op_type}: {base.name} reaches {reached:.5g}, {told}, above {LIMIT:.0f}"

    def _scale(self, node: ir.Node) -> tuple[str, str] | None:
        """Return why a node that rounds to integers, or back, keeps its scale in float32."""
        scale = node.inputs[1]
        least = self._of_constant(scale)[0] if scale is not None and constant(scale) is not None else math.inf
        wide = node.inputs[0] is not None and node.inputs[0].dtype is not None and node.inputs[0].dtype.name == "INT32"
        if least >= LEAST and not wide:
            return None
        return "scale", f"{node.op_type}: a scale of {least:.3g} has no precision left in float16"

    def absmax(self, value: ir.Value) -> float | None:
        """Return the largest finite magnitude of a tensor; None where it was not measured."""
        if constant(value) is not None:
            return self._of_constant(value)[1]
        known = None if self._table is None else self._table.tensors.get(str(value.name))
        if known is not None:
            return known.absmax
        rounded = made_by(value, "DequantizeLinear")
        codes = None if rounded is None else rounded.inputs[0]
        if rounded is None or codes is None:
            return None
        maker = made_by(codes, "QuantizeLinear")
        origin = None if maker is None else maker.inputs[0]
        if origin is not None:
            return self.absmax(origin)
        scale = rounded.inputs[1]
        if constant(codes) is None or scale is None or constant(scale) is None:
            return None
        return self._of_constant(codes)[1] * self._of_constant(scale)[1]

    def _of_constant(self, value: ir.Value) -> tuple[float, float]:
        """Return the smallest and the largest finite magnitude of an initializer."""
        name = str(value.name)
        if name not in self._constants:
            array = constant(value)
            assert array is not None, "looked at by the caller"  # noqa: S101
            magnitudes = np.abs(array[np.isfinite(array)] if array.dtype.kind == "f" else array.astype(np.float64))
            spread = (float(magnitudes.min()), float(magnitudes.max())) if magnitudes.size else (0.0, 0.0)
            self._constants[name] = spread
        return self._constants[name]


def _squares_summed(node: ir.Node) -> tuple[ir.Value | None, float]:
    """Return the tensor whose squares a node takes in half, and how many it sums; None where it takes none."""
    if node.op_type == "InstanceNormalization":
        return node.inputs[0], 1.0  # it may sum them in float32, but says nothing of the squares
    if node.op_type in {"ReduceL2", "ReduceSumSquare"}:
        return node.inputs[0], _reduced(node)
    maker = made_by(node.inputs[0], "Pow", "Mul") if node.op_type in {"ReduceSum", "ReduceMean"} else None
    return (None, 0.0) if maker is None else (squared(maker), _reduced(node))


def squared(node: ir.Node) -> ir.Value | None:
    """Return what a node squares; None where it does something else."""
    base = node.inputs[0] if node.inputs else None
    if node.op_type == "Mul" and base is node.inputs[1]:
        return base
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return base if exponent is not None and np.all(exponent == 2) else None


def _reduced(node: ir.Node) -> float:
    """Return how many values a reduction makes one of; inf where that is open."""
    shape = sizes(node.inputs[0])
    if shape is None:
        return math.inf
    axes = _axes(node, len(shape))
    dims = [shape[axis] for axis in axes]
    return math.prod(dim for dim in dims if isinstance(dim, int)) if all(isinstance(d, int) for d in dims) else math.inf


def _axes(node: ir.Node, rank: int) -> Sequence[int]:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None:
        return integers(given) or range(rank)
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    return () if integer(node, "noop_with_empty_axes", 0) else range(rank)
