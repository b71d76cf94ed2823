"""Turn a graph to half: types, weights, and Casts where half and float32 meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.export.kernels import INDIFFERENT, Kernel, half_kernel, is_float, touches_floats

if TYPE_CHECKING:
    import onnx_ir as ir

#: Attributes that name the type of what a node makes.
TYPE_ATTRIBUTES: Final = ("to", "dtype", "output_dtype", "output_datatype")
#: Smallest normal float16; below it, digits are lost.
SMALLEST_NORMAL: Final = 2.0**-14

#: A node, and which of its inputs.
Use = tuple["ir.Node", int]


@dataclass(frozen=True)
class Lost:
    """What weights lose in half.

    Attributes:
        count: Weights that became half.
        zero: Share of them that became zero.
        subnormal: Share of them that keep fewer digits than others.
    """

    count: int
    zero: float
    subnormal: float


class Caster:
    """Turns one graph to half.

    Args:
        graph: Changed in place; its constants are initializers.
        half: FLOAT16 or BFLOAT16.
        islands: Nodes that stay float32.

    Attributes:
        casts: How many Cast nodes were inserted.
        origins: First outputs of nodes that are new or called otherwise, to the tensors of the graph before whose module they
            belong to.
        weights: The float32 tensors that were written as half.
    """

    def __init__(self, graph: ir.Graph, half: ir.DataType, islands: Iterable[ir.Node]) -> None:
        self.graph = graph
        self.half = half
        self.casts = 0
        self.origins: dict[str, str] = {}
        self.weights: list[ir.TensorProtocol] = []
        full = set(islands)
        opset = graph.opset_imports.get("", 0)
        self._kernels: dict[ir.Node, Kernel] = {}
        for node in graph:
            kernel = half_kernel(node, opset, half) if touches_floats(node) and node not in full else None
            self._kernels[node] = kernel or Kernel(frozenset(), frozenset())
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {output.name for node in graph for output in node.outputs}

    def run(self) -> None:
        """Convert weights, types and attributes, and insert Casts where float32 and half meet."""
        graph = self.graph
        for value in [one for one in graph.initializers.values() if is_float(one) and not one.is_graph_input()]:
            self._weight(value)
        for value in [one for one in graph.inputs if is_float(one)]:
            self._meet(value, None, made_half=False)
        for node in list(graph):
            for index, output in enumerate(node.outputs):
                if is_float(output):
                    self._meet(output, node, made_half=index in self._kernels[node].outputs)
            self._attributes(node)

    def _split(self, value: ir.Value) -> tuple[list[Use], list[Use]]:
        """Return the uses of a tensor as half and as float32."""
        halves: list[Use] = []
        full: list[Use] = []
        for node, index in [(use.node, use.idx) for use in value.uses() if use.node.op_type not in INDIFFERENT]:
            (halves if index in self._kernels[node].inputs else full).append((node, index))
        return halves, full

    def _weight(self, value: ir.Value) -> None:
        import onnx_ir as ir

        halves, full = self._split(value)
        tensor = value.const_value
        if not halves or tensor is None:
            return
        self.weights.append(tensor)
        name = self._fresh(str(value.name)) if full or value.is_graph_output() else str(value.name)
        half = converted(tensor, self.half, name)
        if name == value.name:
            value.const_value, value.type = half, ir.TensorType(self.half)
            return
        made = ir.Value(name=name, type=ir.TensorType(self.half), shape=value.shape, const_value=half)
        self.graph.register_initializer(made)
        for node, index in halves:
            node.replace_input_with(index, made)

    def _meet(self, value: ir.Value, node: ir.Node | None, *, made_half: bool) -> None:
        """Insert the Cast, if any, that a tensor's users need."""
        import onnx_ir as ir

        halves, full = self._split(value)
        given_out = value.is_graph_output()
        if not made_half:
            if halves:
                self._cast(value, node, self.half, halves)
            return
        value.type = ir.TensorType(self.half)
        if not full and not given_out:
            return
        if not given_out:
            self._cast(value, node, ir.DataType.FLOAT, full)
            return
        name = str(value.name)
        value.name = self._fresh(name)
        self.origins[value.name] = name
        back = self._cast(value, node, ir.DataType.FLOAT, full, name)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = back

    def _cast(
        self, value: ir.Value, node: ir.Node | None, kind: ir.DataType, uses: Sequence[Use], name: str = ""
    ) -> ir.Value:
        """Insert a Cast after the node that makes a tensor, and let `uses` take what it makes."""
        import onnx_ir as ir

        name = name or self._fresh(str(value.name), kind)
        made = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
        cast = ir.node("Cast", [value], {"to": kind}, outputs=[made], name=f"{name}.cast")
        if node is not None:
            self.graph.insert_after(node, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        self._kernels[cast] = Kernel(frozenset(), frozenset())
        of_input = uses[0][0].outputs[0].name if node is None else value.name
        self.origins[name] = self.origins.get(str(of_input), str(of_input))
        for user, index in uses:
            user.replace_input_with(index, made)
        self.casts += 1
        return made

    def _attributes(self, node: ir.Node) -> None:
        """Let a node that makes half say so where it names the type."""
        import onnx_ir as ir

        if 0 not in self._kernels[node].outputs:
            return
        for name in TYPE_ATTRIBUTES:
            if self._type_attribute(node, name) == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, self.half)
        if node.op_type == "ConstantOfShape":
            given = (
                node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
            )
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(given.astype(self.half.numpy())))

    def _type_attribute(self, node: ir.Node, name: str) -> int:
        """Return the type that a node names, or that its operator stands for where it names none; 0 for neither."""
        import onnx

        if name in node.attributes:
            return node.attributes[name].as_int()
        known = onnx.defs.get_schema(node.op_type, self.graph.opset_imports.get("", 0), "").attributes.get(name)
        return int(known.default_value.i) if known is not None and not known.required else 0

    def _fresh(self, name: str, kind: ir.DataType | None = None) -> str:
        stem = f"{name}.{(kind or self.half).numpy().name}"
        fresh, number = stem, 2
        while fresh in self._taken:
            fresh, number = f"{stem}.{number}", number + 1
        self._taken.add(fresh)
        return fresh


def converted(tensor: ir.TensorProtocol, half: ir.DataType, name: str) -> ir.TensorProtocol:
    """Return a float32 tensor as one that becomes half when it is read, under another name."""
    import onnx_ir as ir

    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(half.numpy()), dtype=half, name=name)

    return ir.LazyTensor(read, half, ir.Shape([dim for dim in tensor.shape if isinstance(dim, int)]), name=name)


def lost(weights: Iterable[ir.TensorProtocol], half: ir.DataType) -> Lost:
    """Count what weights lose in half, one at a time."""
    count = zero = subnormal = 0
    for tensor in weights:
        array = np.abs(tensor.numpy())
        rounded = array.astype(half.numpy()).astype(np.float32)
        smallest = SMALLEST_NORMAL if half.name == "FLOAT16" else float(np.finfo(np.float32).tiny)
        count += array.size
        zero += int(np.count_nonzero((rounded == 0) & (array != 0)))
        subnormal += int(np.count_nonzero((rounded != 0) & (rounded < smallest)))
    return Lost(count, zero / count if count else 0.0, subnormal / count if count else 0.0)
