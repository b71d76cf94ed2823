"""Cost: what one layer alone loses in 8 bits, measured at the output of the network."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.bundle import load_tensors
from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.export import calibrate, onnx_files, provenance
from deploykit.export.own_run import open_graph
from deploykit.export.quantize.placement import Question, choose
from deploykit.export.quantize.stage import QuantizeOptions, quantize
from deploykit.export.rewrites.editing import Sizes, sizes
from deploykit.export.stage import TENSORS, Facts, Inputs, Item, Stage, Workspace
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.batches import load_outputs, run_rows, save_outputs
from deploykit.runtime.gate import is_counted

if TYPE_CHECKING:
    import onnx_ir as ir

COST = "cost.npy"
#: Calibration images that costs are measured on.
IMAGES: Final = 64


@dataclass(frozen=True)
class Layer:
    """A layer, or a product of two activations, that is int8 where nothing speaks against it.

    Attributes:
        node: First output of its node.
        module: Path of the nn.Module that it comes from.
        macs: Its multiply-adds, per row of the batch where that is open.
    """

    node: str
    module: str
    macs: int


@dataclass(frozen=True)
class RowsOptions:
    """Which rows are run.

    Attributes:
        input_name: The graph's input, where there is one.
        preprocess: From crop to input; None where it takes no images.
        images: How many of the calibration images, the first ones; they follow the golden inputs.
    """

    input_name: str
    preprocess: Preprocess | None
    images: int


@dataclass(frozen=True)
class CostOptions:
    """What is measured.

    Attributes:
        quantize: How layers are rounded.
        node: First output of the one that is; all others stay.
        rows: What is run.
    """

    quantize: QuantizeOptions
    node: str
    rows: RowsOptions


def layers_of(graph: Item, options: QuantizeOptions) -> tuple[Layer, ...]:
    """Return the layers of a float32 graph that are int8 under these options, in the graph's order."""
    import onnx_ir as ir

    modules = provenance.read(graph.path(onnx_files.MODULES))
    model = ir.load(graph.path(onnx_files.MODEL))
    chosen = choose(model.graph, Question(options.recipe, options.placement, modules, frozenset(options.kept)))
    each = {linear.node: math.prod(linear.weight_shape) // max(1, linear.channels) for linear in chosen.layers}
    each |= {node: _size((sizes(node.inputs[0]) or ())[-1:]) for node in chosen.products}
    return tuple(_layer(node, each[node], modules) for node in model.graph if node in each)


def _layer(node: ir.Node, each: int, modules: Mapping[str, str]) -> Layer:
    """Describe a layer that takes `each` multiply-adds for every value."""
    name = str(node.outputs[0].name)
    return Layer(name, modules.get(name, ""), each * _size(sizes(node.outputs[0]) or ()))


def _size(shape: Sizes) -> int:
    """Return how many values there are; an open size counts as 1."""
    return math.prod(size if isinstance(size, int) else 1 for size in shape)


def _answers(inputs: Inputs, options: RowsOptions, workspace: Workspace) -> Facts:
    found = run(str(inputs["graph"].path(onnx_files.MODEL)), rows_of(inputs, options))
    save_outputs(workspace.folder / TENSORS, found)
    return {"rows": len(next(iter(found.values())))}


def _cost(inputs: Inputs, options: CostOptions, workspace: Workspace) -> Facts:
    import onnx_ir as ir

    graph, modules = inputs["graph"], provenance.read(inputs["graph"].path(onnx_files.MODULES))
    table = RangeTable.load(inputs["ranges"].path(RANGES))
    table.check(graph.digest)
    rest = {layer.node for layer in layers_of(graph, options.quantize)} - {options.node}
    kept = replace(options.quantize, kept=tuple(sorted({*options.quantize.kept, *rest})))
    model = ir.load(graph.path(onnx_files.MODEL))
    quantize(model, table, modules, kept)
    with tempfile.TemporaryDirectory(dir=workspace.folder) as scratch:
        onnx_files.write(model, Path(scratch))
        rows = rows_of(inputs, options.rows)
        found = run(str(Path(scratch) / onnx_files.MODEL), rows)
    expected = load_outputs(inputs["answers"].path(TENSORS))
    errors = errors_of(expected, found, len(next(iter(rows.values()))))
    np.save(workspace.folder / COST, errors)
    return {"error": float(errors.mean()), "rows": len(errors)}


def errors_of(expected: Tensors, found: Tensors, rows: int) -> NDArray[np.float64]:
    """Return the relative error of every row, of all outputs the mean: float64 [rows].

    Indices and counts are left out, unless there is nothing else. Of an output without rows each row of an inference has the
    error of that inference.

    Args:
        expected: Outputs by name, as `deploykit.runtime.batches.Answered.arrange` makes them.
        found: Their likes.
        rows: How many rows were run.
    """
    measured = [name for name, array in expected.items() if not is_counted(array)] or list(expected)
    each = [_sample_errors(expected[name], found[name]) for name in measured]
    mean: NDArray[np.float64] = np.mean([np.repeat(one, -(-rows // len(one)))[:rows] for one in each], axis=0)
    return mean


def _sample_errors(expected: Tensor, found: Tensor) -> NDArray[np.float64]:
    if expected.dtype != object and expected.shape == found.shape:
        return relative_errors(expected, found)
    pairs = list(zip(expected, found, strict=True))
    return np.asarray([relative_errors(a[None], b[None])[0] if a.shape == b.shape else 1.0 for a, b in pairs])


def relative_errors(expected: Tensor, found: Tensor) -> NDArray[np.float64]:
    """Return sum (a - b)^2 / sum a^2 of every row, but at most 1, where nothing is left of it: float64 [N].

    Args:
        expected: [N, ...].
        found: Of the same shape.
    """
    wanted, got = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (expected, found))
    power = (wanted**2).sum(axis=1)
    lost = ((wanted - got) ** 2).sum(axis=1)
    errors: NDArray[np.float64] = np.minimum(lost, power) / np.where(power > 0.0, power, 1.0)
    return np.where(np.isfinite(lost), errors, 1.0)


def rows_of(inputs: Inputs, options: RowsOptions) -> dict[str, NDArray[np.float32]]:
    """Return the rows that costs are measured on, by input name: golden inputs, then images where there are any."""
    golden = load_tensors(inputs["golden"].path(TENSORS))
    if options.preprocess is None:
        return golden
    rows = [golden[options.input_name]]
    if "images" in inputs:
        count = min(options.images, calibrate.count(inputs["images"]))
        rows.append(calibrate.rows(inputs["images"], options.preprocess, 0, count))
    return {options.input_name: np.concatenate(rows)}


def run(path: str, rows: Tensors) -> dict[str, Tensor]:
    """Return what a graph says to rows, in ONNX Runtime."""
    with open_graph(Path(path)) as session:
        return run_rows(session, rows)


def read(item: Item) -> NDArray[np.float64]:
    """Read what a cost node wrote: the error of every row, float64 [N], golden inputs first."""
    errors: NDArray[np.float64] = np.load(item.path(COST))
    return errors


LIBRARIES = ("onnx", "onnx_ir", "onnxruntime")


def _takes(*, with_images: bool) -> dict[str, str]:
    return {"graph": "graph", "golden": "tensors", **({"images": "images"} if with_images else {})}


def answers_stage(*, with_images: bool) -> Stage[RowsOptions]:
    """Return the stage that asks the float32 graph about the rows that costs are measured on."""
    return Stage("cost-answers", 2, _takes(with_images=with_images), "tensors", LIBRARIES, _answers)


def cost_stage(*, with_images: bool) -> Stage[CostOptions]:
    """Return the stage that measures what one layer costs, on golden inputs and on calibration images where there are any."""
    takes = {**_takes(with_images=with_images), "ranges": "ranges", "answers": "tensors"}
    return Stage("cost", 3, takes, "cost", LIBRARIES, _cost)
