"""Store: a float32 graph whose weights lie in fewer bits than its layers compute in.

Each weight is followed by a Cast to float32 and, for int8, a Mul by one scale per channel going out. That is what a
DequantizeLinear says in one node; but ONNX Runtime folds these two when it loads the file, while a DequantizeLinear it either
runs at every inference or joins with the product to one of 8-bit activations. OpenVINO reads both alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import Hint, InternalError, UnsupportedError, UsageError
from deploykit.export import onnx_files, provenance
from deploykit.export.halves import converted
from deploykit.export.quantize.emit import round_weights
from deploykit.export.quantize.placement import Left
from deploykit.export.rewrites.editing import constant_sizes
from deploykit.export.rewrites.linears import linear_of
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: Fewer weights than this stay float32: int8 saves three bytes of each, and the two nodes and the scales take about 1.6 kB
#: of an IR.
LEAST_WEIGHTS: Final = 1024
#: Scales of more than one channel and bfloat16 constants are understood since this opset.
LEAST_OPSET: Final = 13
#: Operators whose first two inputs may be weights.
MULTIPLYING: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
#: Types of graphs that hold fewer bits already.
NARROW: Final = ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4")


@dataclass(frozen=True)
class StoreOptions:
    """How weights are stored.

    Attributes:
        precision: One of `FORMS`.
    """

    precision: str


@dataclass(frozen=True)
class Form:
    """One way to store weights.

    Attributes:
        type: ONNX's name of the type that they are stored in.
        write: Stores all of a graph's weights that are worth it.
    """

    type: str
    write: Callable[[Storer], None]


class Storer:
    """Stores the weights of one graph.

    Args:
        graph: Changed in place; its constants are initializers.

    Attributes:
        origins: First outputs of new nodes to the tensors whose module they belong to.
        stored: How many tensors were stored in fewer bits.
        small: Layers whose weights are too few.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.origins: dict[str, str] = {}
        self.stored = 0
        self.small: list[ir.Node] = []
        self._taken = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {str(output.name) for node in graph for output in node.outputs}

    def store(self, value: ir.Value, tensor: ir.TensorProtocol, before: ir.Node) -> ir.Value:
        """Store a weight and return the float32 tensor that is made of it.

        Args:
            value: The weight so far, which is left to those who still use it.
            tensor: It in fewer bits, of the same shape.
            before: Node that the new one comes before.
        """
        import onnx_ir as ir

        stored = self._constant(f"{value.name}.{tensor.dtype.numpy().name}", tensor)
        self.stored += 1
        return self._node("Cast", [stored], before, value, {"to": ir.DataType.FLOAT})

    def scale(self, value: ir.Value, steps: ir.Value, scales: NDArray[np.float32], before: ir.Node) -> ir.Value:
        """Return the product of `steps`, whole numbers that stand for the weight `value`, and their scales.

        Args:
            value: The weight.
            steps: As `store` returned them.
            scales: Shaped to broadcast to them.
            before: Node that the new one comes before.
        """
        import onnx_ir as ir

        return self._node("Mul", [steps, self._constant(f"{value.name}.scales", ir.tensor(scales))], before, value)

    def _node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        before: ir.Node,
        like: ir.Value,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        import onnx_ir as ir

        made = ir.Value(name=self._fresh(f"{like.name}.float32"), type=like.type, shape=like.shape)
        self.graph.insert_before(before, ir.node(operator, inputs, attributes, outputs=[made]))
        self.origins[str(made.name)] = str(before.outputs[0].name)
        return made

    def _constant(self, stem: str, tensor: ir.TensorProtocol) -> ir.Value:
        import onnx_ir as ir

        tensor.name = name = self._fresh(stem)
        shape = ir.Shape([dim for dim in tensor.shape if isinstance(dim, int)])
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _fresh(self, stem: str) -> str:
        fresh, number = stem, 2
        while fresh in self._taken:
            fresh, number = f"{stem}.{number}", number + 1
        self._taken.add(fresh)
        return fresh


def _write_int8(storer: Storer) -> None:
    """Round the weights of all layers to int8, one symmetric scale per channel going out."""
    import onnx_ir as ir

    known: dict[tuple[str, int], ir.Value] = {}
    for node in list(storer.graph):
        linear, value = linear_of(node), node.inputs[1] if len(node.inputs) > 1 else None
        if linear is None or value is None:
            continue
        if math.prod(linear.weight_shape) < LEAST_WEIGHTS:
            storer.small.append(node)
            continue
        key = str(value.name), linear.out_axis
        if key not in known:
            weights = round_weights(linear)
            steps = storer.store(value, ir.tensor(weights.rounded), node)
            shape = [1] * weights.rounded.ndim
            shape[weights.axis] = -1
            known[key] = storer.scale(value, steps, weights.scales.reshape(shape), node)
        node.replace_input_with(1, known[key])


def _write_bfloat16(storer: Storer) -> None:
    """Round all matrices and kernels to bfloat16, whoever uses them."""
    import onnx_ir as ir

    for value in [one for one in storer.graph.initializers.values() if _is_weight(one)]:
        uses = [(use.node, use.idx) for use in value.uses()]
        if math.prod(constant_sizes(value)) < LEAST_WEIGHTS or not uses:
            storer.small += [node for node, _ in uses if node.op_type in MULTIPLYING]
            continue
        assert value.const_value is not None, "what makes it a weight"  # noqa: S101
        half = ir.DataType.BFLOAT16
        made = storer.store(value, converted(value.const_value, half, str(value.name)), storer.graph[0])
        storer.origins[str(made.name)] = str(uses[0][0].outputs[0].name)
        for node, index in uses:
            node.replace_input_with(index, made)


def _is_weight(value: ir.Value) -> bool:
    """Tell whether an initializer is float32, of two dimensions or more, and nobody's from outside."""
    import onnx_ir as ir

    outside = value.is_graph_input() or value.is_graph_output()
    return value.dtype == ir.DataType.FLOAT and len(constant_sizes(value)) > 1 and not outside


#: Precisions of stored weights.
FORMS: Final[Mapping[str, Form]] = {
    "int8-weights": Form("INT8", _write_int8),
    "bf16": Form("BFLOAT16", _write_bfloat16),
}


def check_model(model: ir.Model, precision: str) -> None:
    """Refuse graphs whose weights can't be stored in fewer bits.

    Raises:
        UsageError: An unknown precision, or the graph holds fewer bits already.
        UnsupportedError: Its opset is too old.
    """
    if precision not in FORMS:
        raise UsageError(f"unknown precision {precision!r} of stored weights; there are: {', '.join(FORMS)}")
    graph = model.graph
    found = next((one for one in graph.initializers.values() if one.dtype and one.dtype.name in NARROW), None)
    if found is not None and found.dtype is not None:
        raise UsageError(
            f"the graph holds {found.dtype.numpy().name} already: {found.name!r} is",
            Hint("--fp32", "takes it as it is"),
        )
    opset = graph.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise UnsupportedError(f"{precision} needs opset {LEAST_OPSET}; the graph has {opset}")


def _run(inputs: Inputs, options: StoreOptions, workspace: Workspace) -> Facts:
    import onnx_ir as ir
    from onnx_ir.passes import common

    source, modules = inputs["graph"].path(onnx_files.MODEL), provenance.read(inputs["graph"].path(onnx_files.MODULES))
    model = ir.load(source)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    check_model(model, options.precision)
    storer = Storer(model.graph)
    FORMS[options.precision].write(storer)
    if not storer.stored:
        raise UnsupportedError(
            f"asked for {options.precision}, no weight can be: none has as many as {LEAST_WEIGHTS:,} values"
        )
    common.RemoveUnusedNodesPass()(model)
    made = onnx_files.write(model, workspace.folder)
    known = provenance.carry(modules, storer.origins)
    provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(made.graph, known))
    return {
        "weight_bytes_before": onnx_files.weight_bytes(onnx_files.load(source)),
        "weight_bytes": onnx_files.weight_bytes(made),
        "stored": storer.stored,
        "left": [asdict(_left(node, modules)) for node in storer.small],
    }


def _left(node: ir.Node, modules: Mapping[str, str]) -> Left:
    name = str(node.outputs[0].name)
    return Left(name, modules.get(name, ""), f"fewer than {LEAST_WEIGHTS:,} weights: nothing is saved")


def _ensure(_inputs: Inputs, options: StoreOptions, made: Item) -> None:
    """Look at what the graph holds.

    Raises:
        InternalError: No weights of the type that was asked for.
        UnsupportedError: A layer of many weights has them in float32.
    """
    import onnx

    graph = onnx_files.load(made.path(onnx_files.MODEL)).graph
    wanted = FORMS[options.precision].type
    kinds = Counter(tensor.data_type for tensor in graph.initializer)
    if not kinds[onnx.TensorProto.DataType.Value(wanted)]:
        raise InternalError(f"asked for {options.precision}, the graph holds no {wanted} weights")
    wide = next(_wide(graph), None)
    if wide is not None:
        module = provenance.read(made.path(onnx_files.MODULES))[wide.output[0]]
        raise UnsupportedError(
            f"asked for {options.precision}, {wide.op_type} {wide.output[0]!r} of module {module!r} has float32 weights "
            f"that can't be: its form is not understood",
            Hint("--fp32", "takes it as it is"),
        )


def _wide(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the layers that multiply by float32 weights, but for those of few weights."""
    import onnx

    weights = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) > 1
        and math.prod(tensor.dims) >= LEAST_WEIGHTS
    }
    return (node for node in graph.node if node.op_type in MULTIPLYING and weights & set(node.input[:2]))


STAGE = Stage(
    name="store",
    version=1,
    takes={"graph": "graph"},
    makes="graph",
    libraries=("onnx", "onnx_ir"),
    run=_run,
    ensure=_ensure,
)
