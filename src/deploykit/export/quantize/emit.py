"""Write Q/DQ into a graph: weights in 8 bits with one scale per channel, activations with one grid per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.export.quantize import grid
from deploykit.export.quantize.grid import INT8, Grid, Kind
from deploykit.export.quantize.placement import Chosen, name_of
from deploykit.export.rewrites.linears import Linear

if TYPE_CHECKING:
    import onnx_ir as ir

#: Largest magnitude of an integer bias: half of int32, so that the products have room.
MOST_BIAS: Final = 2.0**30


@dataclass(frozen=True)
class Weights:
    """A layer's weights on their grid.

    Attributes:
        rounded: Codes, shaped as the weights.
        scales: float32, one per channel going out.
        axis: Of those channels.
    """

    rounded: NDArray[Any]
    scales: NDArray[np.float32]
    axis: int


def round_weights(linear: Linear, least: NDArray[Any] | None = None, kind: Kind = INT8) -> Weights:
    """Round a layer's weights.

    Args:
        linear: The layer.
        least: Smallest scale of each channel; None for no bound.
        kind: Of their codes.
    """
    weight = linear.weight
    scales = grid.weight_scales(weight, linear.out_axis, kind)
    if least is not None:
        scales = np.maximum(scales, least).astype(np.float32)
    return Weights(grid.quantized_weight(weight, scales, linear.out_axis, kind), scales, linear.out_axis)


class Emitter:
    """Adds Q/DQ to one graph.

    Args:
        graph: Changed in place.
        grids: Of the tensors that are rounded, by name.
    """

    def __init__(self, graph: ir.Graph, grids: Mapping[str, Grid]) -> None:
        self.graph = graph
        self.grids = grids
        #: First outputs of new nodes to the tensors whose module they belong to.
        self.origins: dict[str, str] = {}

    def emit(self, chosen: Chosen, weights: Sequence[Weights], *, integer_bias: bool) -> None:
        """Write all that was chosen; `weights` belong to its layers, in order."""
        values = {str(value.name): value for value in self._values()}
        for linear, data, rounded in zip(chosen.layers, chosen.data, weights, strict=True):
            self._write_weights(linear, rounded)
            if integer_bias and linear.bias is not None and linear.bias[0] is linear.node:
                self._write_bias(linear, rounded.scales * self.grids[data].scale)
        for name in dict.fromkeys([*chosen.edges, *chosen.outputs]):
            value = values[name]
            uses = chosen.edges.get(name, ())
            if name in chosen.outputs:
                uses = tuple((use.node, use.idx) for use in value.uses())
            rounded_value = self._round(value, self.grids[name])
            for node, index in uses:
                node.replace_input_with(index, rounded_value)

    def _values(self) -> list[ir.Value]:
        return [*self.graph.inputs, *(output for node in self.graph for output in node.outputs)]

    def _round(self, value: ir.Value, of: Grid) -> ir.Value:
        """Add Q and DQ after a tensor and return what they make of it."""
        import onnx_ir as ir

        name, dtype = str(value.name), of.kind.numpy
        scale = self._constant(f"{name}.scale", np.asarray(of.scale, np.float32))
        zero = self._constant(f"{name}.zero_point", np.asarray(of.zero_point, dtype))
        codes = ir.Value(
            name=f"{name}.{dtype.name}", type=ir.TensorType(ir.DataType.from_numpy(dtype)), shape=value.shape
        )
        back = ir.Value(name=f"{name}.dequantized", type=value.type, shape=value.shape)
        nodes = [
            ir.node("QuantizeLinear", [value, scale, zero], outputs=[codes]),
            ir.node("DequantizeLinear", [codes, scale, zero], outputs=[back]),
        ]
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(next(iter(self.graph)), nodes)
        else:
            self.graph.insert_after(producer, nodes)
        self.origins |= {str(codes.name): name, str(back.name): name}
        return back

    def _write_weights(self, linear: Linear, rounded: Weights) -> None:
        value = self._dequantized(linear, name_of(linear.node.inputs[1]), rounded.rounded, rounded.scales, rounded.axis)
        linear.node.replace_input_with(1, value)

    def _write_bias(self, linear: Linear, scales: NDArray[np.float32]) -> None:
        assert linear.bias is not None, "looked at by the caller"  # noqa: S101
        node, index = linear.bias
        codes = np.rint(linear.bias_values / scales).astype(np.int32)
        value = self._dequantized(linear, name_of(node.inputs[index]), codes, scales.astype(np.float32), 0)
        node.replace_input_with(index, value)

    def _dequantized(
        self, linear: Linear, name: str, codes: NDArray[Any], scales: NDArray[np.float32], axis: int
    ) -> ir.Value:
        import onnx_ir as ir

        stem = self._fresh(name, codes.dtype.name)
        stored = self._constant(f"{stem}.{codes.dtype.name}", codes)
        scale = self._constant(f"{stem}.scales", scales)
        inputs = [stored, scale, self._constant(f"{stem}.zeros", np.zeros(len(scales), codes.dtype))]
        back = ir.Value(name=f"{stem}.dequantized", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(codes.shape))
        node = ir.node("DequantizeLinear", inputs, {"axis": axis}, outputs=[back])
        self.graph.insert_before(linear.node, node)
        self.origins[str(back.name)] = str(linear.node.outputs[0].name)
        return back

    def _fresh(self, name: str, kind: str) -> str:
        """Return a stem that no weight is stored under yet: two layers may share weights and round them differently."""
        stem, number = name, 2
        while f"{stem}.{kind}" in self.graph.initializers:
            stem, number = f"{name}.{number}", number + 1
        return stem

    def _constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        import onnx_ir as ir

        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value
