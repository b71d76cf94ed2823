"""Smooth: move outlying channels of a LayerNorm's output into the weights of the layers that take it.

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438): x W = (x / s) (s W), s_j = max|x_j|^a / max|W_j|^(1 - a), with 1 / s folded
into the norm's scale and bias. Exact in float; in 8 bits outlying channels no longer decide the grid of all others. How much
helps differs from network to network, and it may harm: so each strength a is tried, none among them, and the least error at
the outputs decides.

Where queries, keys and values are to be rounded by one grid, they are balanced first, whatever the strength.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.export import calibrate, onnx_files, provenance
from deploykit.export.quantize.attention import REACH, Joint, balance, joints_of
from deploykit.export.quantize.cost import RowsOptions, relative_errors, rows_of, run
from deploykit.export.quantize.placement import Question, choose, name_of
from deploykit.export.quantize.stage import QuantizeOptions, quantize
from deploykit.export.ranges import measure
from deploykit.export.rewrites.editing import Editor, Rewrite, floats, integer, sizes
from deploykit.export.rewrites.linears import Linear, linear_of, replace
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class SmoothOptions:
    """What is tried.

    Attributes:
        strengths: Each between 0 and 1; none at all is always tried too.
        quantize: How layers are rounded, so that the error can be measured.
        rows: What is run, and what ranges are measured on while trying.
    """

    strengths: tuple[float, ...]
    quantize: QuantizeOptions
    rows: RowsOptions


@dataclass(frozen=True)
class Norm:
    """A LayerNormalization whose output only layers with constant weights take, as it is or in another shape.

    Attributes:
        node: It.
        layers: They.
        tensors: Its output, and what that becomes on the way to the layers; the channels are last.
    """

    node: ir.Node
    layers: tuple[Linear, ...]
    tensors: tuple[ir.Value, ...]


def norms_of(graph: ir.Graph) -> Iterator[Norm]:
    """Yield the norms that can be smoothed."""
    for node in graph:
        if node.op_type == "LayerNormalization" and all(floats(value) is not None for value in node.inputs[1:]):
            found = _takers(node.outputs[0])
            if found is not None and found.layers:
                yield Norm(node, found.layers, found.tensors)


@dataclass(frozen=True)
class _Takers:
    layers: tuple[Linear, ...]
    tensors: tuple[ir.Value, ...]


def _takers(value: ir.Value) -> _Takers | None:
    """Follow a tensor whose channels are last to the layers that take it; None where something else takes it as well."""
    if value.is_graph_output():
        return None
    layers: list[Linear] = []
    tensors = [value]
    for use in value.uses():
        linear = linear_of(use.node) if use.idx == 0 and use.node.op_type in {"MatMul", "Gemm"} else None
        if linear is not None:
            layers.append(linear)
            continue
        further = _takers(use.node.outputs[0]) if use.idx == 0 and _keeps_channels_last(use.node) else None
        if further is None:
            return None
        layers += further.layers
        tensors += further.tensors
    return _Takers(tuple(layers), tuple(tensors))


def _keeps_channels_last(node: ir.Node) -> bool:
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if not before or not after or before[-1] != after[-1] or not isinstance(before[-1], int):
        return False
    return node.op_type == "Reshape" or (
        node.op_type == "Gather" and integer(node, "axis", 0) not in {-1, len(before) - 1}
    )


def factors(norm: Norm, absmax: NDArray[np.float32], strength: float) -> NDArray[np.float64]:
    """Return what each channel of a norm's output is divided by: float64 [C], positive.

    Args:
        norm: The norm.
        absmax: float32 [C], largest magnitude of each channel of its output.
        strength: 0 leaves the difficulty with the activations, 1 moves all of it into the weights.
    """
    reach = np.zeros(len(absmax))
    for layer in norm.layers:
        others = tuple(axis for axis in range(layer.weight.ndim) if axis != layer.in_axis)
        reach = np.maximum(reach, np.abs(layer.weight).max(axis=others))
    seen = np.asarray(absmax, np.float64)
    usable = (seen > 0.0) & (reach > 0.0)
    scale = np.where(usable, seen, 1.0) ** strength / np.where(usable, reach, 1.0) ** (1.0 - strength)
    middle = np.exp(np.log(scale[usable]).mean()) if usable.any() else 1.0
    made: NDArray[np.float64] = np.where(usable, np.clip(scale / middle, 1 / REACH, REACH), 1.0)
    return made


def rewrite(table: RangeTable, strength: float, question: Question) -> Rewrite:
    """Return the exact rewrite that balances attention and smooths every norm of the graph that a table belongs to.

    Args:
        table: Of the graph's ranges.
        strength: 0 smooths nothing.
        question: How it will be rounded.
    """

    def smooth(editor: Editor) -> None:
        for joint in joints(editor.graph, question):
            editor.places += balance(editor, joint, table)
        for norm in list(norms_of(editor.graph)) if strength else ():
            absmax = [table.of(name_of(layer.node.inputs[0])).channel_absmax for layer in norm.layers]
            scale = factors(norm, np.max(absmax, axis=0), strength)
            for index in range(1, len(norm.node.inputs)):  # scale and bias
                values = floats(norm.node.inputs[index])
                assert values is not None, "looked at when the norm was found"  # noqa: S101
                replace(editor, norm.node, index, values / scale)
            for layer in norm.layers:
                aligned = [1] * layer.weight.ndim
                aligned[layer.in_axis] = -1
                replace(editor, layer.node, 1, layer.weight * scale.reshape(aligned))
            for tensor in norm.tensors:
                editor.changed(tensor)
            editor.places += 1

    return Rewrite("smooth", "outlying channels of norms moved into the weights that follow", smooth)


def joints(graph: ir.Graph, question: Question) -> tuple[Joint, ...]:
    """Return the layers whose outputs are rounded as a whole though they are queries, keys and values."""
    return tuple(joints_of(choose(graph, question).products)) if question.placement.joint else ()


def _run(inputs: Inputs, options: SmoothOptions, workspace: Workspace) -> Facts:
    import onnx_ir as ir

    graph = inputs["graph"]
    table = RangeTable.load(inputs["ranges"].path(RANGES))
    table.check(graph.digest)
    places = len(list(norms_of(ir.load(graph.path(onnx_files.MODEL)).graph)))
    strengths = (0.0, *options.strengths) if places else (0.0,)
    errors: dict[float, float] = {}
    if places:
        trial = _Trial(inputs, options, table)
        for number, strength in enumerate(strengths):
            with tempfile.TemporaryDirectory(dir=workspace.folder) as scratch:
                errors[strength] = trial.error(strength, Path(scratch))
            workspace.progress(number + 1, len(strengths))
    best = min(strengths, key=lambda strength: errors.get(strength, 0.0))
    balanced = _write(graph, table, best, options.quantize, workspace.folder)
    told = {f"{strength:g}" if strength else "off": error for strength, error in errors.items()}
    return {"norms": places, "strength": best, "errors": told, "balanced": balanced}


class _Trial:
    """Measures the error of a graph that was smoothed, then quantized by its own ranges."""

    def __init__(self, inputs: Inputs, options: SmoothOptions, table: RangeTable) -> None:
        self.graph, self.options, self.table = inputs["graph"], options, table
        name, recipe = options.rows.input_name, options.rows.preprocess
        assert recipe is not None, "planned for originals that take images"  # noqa: S101
        self.rows = rows_of(inputs, options.rows)
        images = inputs["images"]
        count = min(options.rows.images, calibrate.count(images))
        self.feeds = [{name: calibrate.rows(images, recipe, index, index + 1)} for index in range(count)]
        self.expected = run(str(self.graph.path(onnx_files.MODEL)), self.rows)

    def error(self, strength: float, folder: Path) -> float:
        """Return the mean over the rows of sum (a - b)^2 / sum a^2, at most 1."""
        import onnx_ir as ir

        smoothed, rounded = folder / "smoothed", folder / "rounded"
        smoothed.mkdir()
        rounded.mkdir()
        _write(self.graph, self.table, strength, self.options.quantize, smoothed)
        path = smoothed / onnx_files.MODEL
        collected = measure(path, self._feeds(path), folder)
        seen = RangeTable("", "", len(self.feeds), {name: entry.range() for name, entry in collected.items()})
        model = ir.load(path)
        quantize(model, seen, provenance.read(smoothed / onnx_files.MODULES), self.options.quantize)
        onnx_files.write(model, rounded)
        found = run(str(rounded / onnx_files.MODEL), self.rows)
        return float(np.mean([relative_errors(self.expected[name], found[name]) for name in found]))

    def _feeds(self, path: Path) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        """Yield the images, each repeated as often as the graph has rows."""
        shapes = {spec.name: spec.shape for spec in onnx_files.specs(onnx_files.load(path).graph.input, {})}
        for feed in self.feeds:
            yield {
                name: np.repeat(array, size if isinstance(size := shapes[name][0], int) else 1, axis=0)
                for name, array in feed.items()
            }


def _write(graph: Item, table: RangeTable, strength: float, options: QuantizeOptions, folder: Path) -> int:
    """Write a graph balanced, and smoothed by this strength; where that changes nothing, the same bytes.

    Returns:
        How many layers are balanced.
    """
    import onnx_ir as ir

    model, modules = ir.load(graph.path(onnx_files.MODEL)), provenance.read(graph.path(onnx_files.MODULES))
    question = Question(options.recipe, options.placement, modules, frozenset(options.kept))
    balanced = len(joints(model.graph, question))
    if strength == 0.0 and not balanced:
        for record in graph.files:
            shutil.copyfile(graph.root / record.path, folder / record.path)
        return 0
    done = rewrite(table, strength, question).apply(model)
    made = onnx_files.write(model, folder)
    provenance.write(
        folder / onnx_files.MODULES, provenance.complete(made.graph, provenance.carry(modules, done.renames))
    )
    return balanced


STAGE = Stage(
    name="smooth",
    version=3,
    takes={"graph": "graph", "ranges": "ranges", "golden": "tensors", "images": "images"},
    makes="graph",
    libraries=("onnx", "onnx_ir", "onnxruntime"),
    run=_run,
)
