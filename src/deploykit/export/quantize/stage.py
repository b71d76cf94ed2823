"""Quantize: a graph and its ranges to a graph of layers in 8 bits, as one target wants them written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.errors import Hint, InternalError, UnsupportedError, UsageError
from deploykit.export import onnx_files, provenance
from deploykit.export.quantize import grid
from deploykit.export.quantize.emit import MOST_BIAS, Emitter, Weights, round_weights
from deploykit.export.quantize.grid import E4M3, INT8, Grid, Kind
from deploykit.export.quantize.pairs import fitted
from deploykit.export.quantize.placement import Chosen, Placement, Question, choose
from deploykit.export.rewrite import get_rewrite
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace
from deploykit.models.precision import Int8Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

#: Weights of each kind have one scale per channel since this opset.
LEAST_OPSET: Final[Mapping[str, int]] = {INT8.dtype: 13, E4M3.dtype: 19}
#: Operators of graphs that hold fewer bits already.
ROUNDED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
)


@dataclass(frozen=True)
class QuantizeOptions:
    """What is rounded to 8 bits, and how it is written.

    Attributes:
        recipe: The family's.
        placement: The target's.
        kept: First outputs of nodes that stay in the higher precision beside those of the recipe.
    """

    recipe: Int8Recipe
    placement: Placement
    kept: tuple[str, ...] = ()


def check_model(model: ir.Model, kind: Kind) -> None:
    """Refuse graphs whose weights can't be rounded to `kind`.

    Raises:
        UsageError: The graph is quantized already.
        UnsupportedError: Its opset is too old.
    """
    graph = model.graph
    found = next((node for node in graph if node.op_type in ROUNDED), None)
    if found is not None:
        raise UsageError(
            f"the graph is quantized already: it holds a {found.op_type} that makes {found.outputs[0].name!r}",
            Hint("--fp32", "takes it as it is"),
        )
    opset = graph.opset_imports.get("", 0)
    least = LEAST_OPSET[kind.dtype]
    if opset < least:
        raise UnsupportedError(f"{kind.title} with a scale per channel needs opset {least}; the graph has {opset}")


def grids_of(chosen: Chosen, table: RangeTable, options: QuantizeOptions) -> Mapping[str, Grid]:
    """Return the grid of every tensor that is rounded.

    Raises:
        BadInputError: The table is another graph's.
    """
    method = options.recipe.method
    return {name: grid.activation_grid(table.of(name), kind, method) for name, kind in chosen.kinds.items()}


def weights_of(chosen: Chosen, grids: Mapping[str, Grid], placement: Placement) -> tuple[Weights, ...]:
    """Return every layer's weights on their grid, in order; where biases are integers, coarse enough for int32."""
    made = []
    for linear, data in zip(chosen.layers, chosen.data, strict=True):
        least = None
        if placement.integer_bias and linear.bias is not None and linear.bias[0] is linear.node:
            least = np.abs(linear.bias_values) / (grids[data].scale * MOST_BIAS)
        rounded = round_weights(linear, least, placement.weights)
        made.append(fitted(linear, rounded) if placement.pairs else rounded)
    return tuple(made)


@dataclass(frozen=True)
class Quantized:
    """What was done to a graph.

    Attributes:
        chosen: What was rounded, and what was left.
        grids: Of the tensors that are rounded, by name.
        modules: First outputs to module paths, as far as they are known.
    """

    chosen: Chosen
    grids: Mapping[str, Grid]
    modules: provenance.Modules


def quantize(model: ir.Model, table: RangeTable, modules: Mapping[str, str], options: QuantizeOptions) -> Quantized:
    """Quantize a graph in place.

    Args:
        model: float32.
        table: Its ranges.
        modules: First outputs of its nodes to nn.Module paths.
        options: What is rounded, and how it is written.

    Raises:
        UsageError: The graph is quantized already.
        UnsupportedError: Its opset is too old, or none of its layers can be rounded.
        BadInputError: The table is another graph's.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    kind = options.placement.weights
    check_model(model, kind)
    for name in options.placement.rewrites:
        modules = provenance.carry(modules, get_rewrite(name).apply(model).renames)
    chosen = choose(model.graph, Question(options.recipe, options.placement, modules, frozenset(options.kept)))
    if not (chosen.layers or chosen.products):
        raise UnsupportedError(
            f"no layer can be {kind.title}: {chosen.left[0].reason if chosen.left else 'there are none'}"
        )
    grids = grids_of(chosen, table, options)
    emitter = Emitter(model.graph, grids)
    emitter.emit(chosen, weights_of(chosen, grids, options.placement), integer_bias=options.placement.integer_bias)
    RemoveUnusedNodesPass()(model)
    return Quantized(chosen, grids, provenance.carry(modules, emitter.origins))


def _run(inputs: Inputs, options: QuantizeOptions, workspace: Workspace) -> Facts:
    import onnx_ir as ir

    graph, modules = inputs["graph"], provenance.read(inputs["graph"].path(onnx_files.MODULES))
    table = RangeTable.load(inputs["ranges"].path(RANGES))
    table.check(graph.digest)
    model = ir.load(graph.path(onnx_files.MODEL))
    done = quantize(model, table, modules, options)
    made = onnx_files.write(model, workspace.folder)
    provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(made.graph, done.modules))
    return {
        "layers": len(done.chosen.layers),
        "products": len(done.chosen.products),
        "tensors": len(done.grids),
        "left": [asdict(left) for left in done.chosen.left],
        "weight_bytes": onnx_files.weight_bytes(made),
    }


def _ensure(_inputs: Inputs, options: QuantizeOptions, made: Item) -> None:
    """Count what the graph holds: it must have weights of the kind that was asked for."""
    import onnx

    kind = options.placement.weights
    model = onnx_files.load(made.path(onnx_files.MODEL))
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer)
    if not kinds[onnx.helper.np_dtype_to_tensor_dtype(kind.numpy)]:
        raise InternalError(f"asked for {kind.title}, the graph holds no {kind.title} weights")


STAGE = Stage(
    name="quantize",
    version=4,
    takes={"graph": "graph", "ranges": "ranges"},
    makes="graph",
    libraries=("onnx", "onnx_ir"),
    run=_run,
    ensure=_ensure,
)
