"""Ranges: what calibration images show of every tensor of a graph, measured inside the graph.

The graph is given further outputs that say little and all that is needed: smallest and largest values, whole and by channel,
means, and a thousand values of each tensor. So no tensor leaves the runtime whole, and memory doesn't grow with the number of
images.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from deploykit.artifact import Preprocess, sha256_of
from deploykit.bundle import load_tensors
from deploykit.calibration.ranges import RANGES, Collector, RangeTable, Seen
from deploykit.errors import BadInputError, UnsupportedError
from deploykit.export import calibrate, onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.reference import NoOptions
from deploykit.export.stage import TENSORS, Facts, Inputs, Item, Stage, Workspace
from deploykit.runtime.backends.base import Tensor

if TYPE_CHECKING:
    import onnx

#: Values of each tensor that one image adds to its histogram.
SAMPLES: Final = 1024
#: Every how many values one is taken of a tensor whose size is not known ahead: all of a small one, and of a large one every
#: odd multiple of the last, so that few are taken of it too. Primes that no network has as many channels of.
BLIND_STEPS: Final = (1, 11, 61)
#: Channel axis of what goes in and out of the operators that have weights.
CHANNEL_AXES: Final[Mapping[str, int]] = {"Conv": 1, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}
#: Reductions take their axes as an input since this opset; ReduceMean, ReduceMax and ReduceMin alike.
AXES_AS_INPUT: Final = 18
#: Slice takes its steps as an input since this opset.
LEAST_OPSET: Final = 10
PREFIX: Final = "deploykit.watch."
RECORDS: Final = f"{PREFIX}records"


@dataclass(frozen=True)
class Watched:
    """A tensor that is looked at.

    Attributes:
        name: Of the tensor.
        step: Every how many of its values one is taken; None where only running the graph tells the tensor's size.
        axis: Of its channels; None where they have no meaning.
        axes: All other axes.
        channels: Size of the channel axis; 0 without one.
    """

    name: str
    step: int | None
    axis: int | None
    axes: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class RangesOptions:
    """How images become inputs, one at a time.

    Attributes:
        input_name: The graph's input.
        preprocess: From crop to input.
    """

    input_name: str
    preprocess: Preprocess


def watch(model: onnx.ModelProto) -> tuple[Watched, ...]:
    """Let `model`, in place, tell about every floating tensor instead of answering, and return what it tells about, in order.

    One without any stays as it is.

    Raises:
        UnsupportedError: Its opset is too old.

    Its one output, float32, is one record after another: min, max, number of samples, samples, and least, largest and mean
    value of each channel. ONNX Runtime computes the output that comes last, and of its inputs that whose node comes last,
    with all that it takes: with records in reverse and nothing else to compute, each tensor is given up as soon as its own
    record is made. Otherwise the whole network would be computed first and every tensor kept: 14 GB of a large UNet's.
    """
    import onnx

    watched = tuple(_watchable(model))
    if not watched:
        return ()
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset < LEAST_OPSET:
        raise UnsupportedError(f"ranges are measured in graphs of opset {LEAST_OPSET} and above; this one has {opset}")
    builder = _Builder(opset)
    for entry in reversed(watched):
        builder.add(entry)
    graph = model.graph
    graph.node.extend(builder.nodes)
    graph.initializer.extend(builder.constants)
    graph.node.append(onnx.helper.make_node("Concat", builder.records[::-1], [RECORDS], axis=0))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info(RECORDS, onnx.TensorProto.FLOAT, [None]))
    return watched


def _watchable(model: onnx.ModelProto) -> Iterator[Watched]:
    import onnx

    inferred = onnx_files.with_one_row(model).graph
    shapes = {
        value.name: value.type.tensor_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    axes = _channel_axes(model.graph.node)
    made = [name for node in model.graph.node for name in node.output if name]
    for name in dict.fromkeys([value.name for value in model.graph.input] + made):
        kind = shapes.get(name)
        if kind is None or not kind.HasField("shape"):
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        known = [dim for dim in dims if dim is not None]
        step = _step(math.prod(known)) if len(known) == len(dims) else None
        axis = axes.get(name)
        if axis is None or len(dims) < 2 or dims[axis] is None:
            yield Watched(name, step, None, (), 0)
        else:
            place = axis % len(dims)
            others = tuple(index for index in range(len(dims)) if index != place)
            yield Watched(name, step, place, others, dims[axis] or 0)


def _channel_axes(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    axes: dict[str, int] = {}
    for node in nodes:
        if node.op_type in CHANNEL_AXES:
            for name in (*node.input[:2], *node.output):
                axes.setdefault(name, CHANNEL_AXES[node.op_type])
    return axes


def _step(size: int) -> int:
    """Return how far apart samples lie: coprime to the size, so that no channel and no column is skipped."""
    step = max(1, size // SAMPLES)
    while math.gcd(step, max(size, 1)) > 1:
        step += 1
    return step


class _Builder:
    """Nodes that tell about tensors."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.records: list[str] = []
        self._flat = self._constant("flat", [-1])
        self._zero, self._end = self._constant("zero", [0]), self._constant("end", [2**62])

    def add(self, entry: Watched) -> None:
        flat = self._node("Reshape", [entry.name, self._flat])
        step = self._blind_step(flat) if entry.step is None else self._constant(f"step{entry.step}", [entry.step])
        samples = self._node("Slice", [flat, self._zero, self._end, self._zero, step])
        count = self._node("Cast", [self._node("Reshape", [self._node("Size", [samples]), self._flat])], to=1)
        channels: list[str] = []
        if entry.axis is not None:
            kinds = ("ReduceMin", "ReduceMax", "ReduceMean")
            channels = [self._reduce(op, entry.name, entry.axes, keep=False) for op in kinds]
        low, high = (channels[0], channels[1]) if channels else (flat, flat)
        ends = [self._reduce("ReduceMin", low, (0,), keep=True), self._reduce("ReduceMax", high, (0,), keep=True)]
        self.records.append(self._node("Concat", [*ends, count, samples, *channels], axis=0))

    def _blind_step(self, flat: str) -> str:
        """Return the largest step of `BLIND_STEPS` that leaves `SAMPLES` values, of the last its odd multiple."""
        size = self._node("Reshape", [self._node("Size", [flat]), self._flat])
        last = BLIND_STEPS[-1]
        pairs = self._node("Div", [size, self._constant("pair", [2 * SAMPLES * last])])
        step = self._node("Mul", [pairs, self._constant("twice", [2 * last])])
        for before, after in pairwise((0, *BLIND_STEPS)):
            reached = self._at_least(size, SAMPLES * after) if before else self._constant("always", [1])
            more = self._node("Mul", [reached, self._constant(f"more{after}", [after - before])])
            step = self._node("Add", [step, more])
        return step

    def _at_least(self, size: str, least: int) -> str:
        """Return 1 where a size is at least `least`, else 0, in operators that every opset has for integers."""
        times = self._node("Div", [size, self._constant(f"least{least}", [least])])
        twice = self._node("Add", [times, times])
        return self._node("Div", [twice, self._node("Add", [times, self._constant("one", [1])])])

    def _reduce(self, op: str, tensor: str, axes: Sequence[int], *, keep: bool) -> str:
        if self.opset < AXES_AS_INPUT:
            return self._node(op, [tensor], axes=list(axes), keepdims=int(keep))
        name = self._constant(f"axes{'_'.join(map(str, axes))}", axes)
        return self._node(op, [tensor, name], keepdims=int(keep))

    def _node(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        import onnx

        name = f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, key: str, values: Sequence[int]) -> str:
        import onnx

        name = f"{PREFIX}{key}"
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name


def measure(graph: Path, feeds: Iterable[Mapping[str, Tensor]], folder: Path) -> Mapping[str, Collector]:
    """Run a graph over feeds and gather what its tensors hold.

    Args:
        graph: ONNX with its weights beside it. Its input has as many rows as each feed, or an open batch.
        feeds: Arrays by input name.
        folder: Where the graph that is run may lie meanwhile.

    Raises:
        BadInputError: A tensor holds NaN.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / onnx_files.MODEL
        model = onnx_files.load(graph)
        watched = watch(model)
        if not watched:
            return {}
        onnx_files.bring_weights(graph, path.parent)
        onnx_files.save(model, path)
        collectors = {entry.name: Collector(entry.name) for entry in watched}
        with open_graph(path) as session:
            for feed in feeds:
                seen = _seen(watched, session.infer(feed))
                for entry, one in zip(watched, seen, strict=True):
                    collectors[entry.name].add(one)
    return collectors


def table_of(collectors: Mapping[str, Collector], graph: str, images: str, count: int) -> RangeTable:
    """Return the table of what `count` images, by their digest, showed of a graph's tensors."""
    bounded = {name: collector.range() for name, collector in collectors.items() if not collector.is_unbounded}
    unbounded = tuple(name for name, collector in collectors.items() if collector.is_unbounded)
    return RangeTable(graph, images, count, bounded, unbounded)


def _seen(watched: Sequence[Watched], found: Mapping[str, Tensor]) -> Iterator[Seen]:
    """Yield what the records tell, in the order of what is watched."""
    told, at = found[RECORDS], 0
    for entry in watched:
        low, high, count = told[at : at + 3]
        ends = np.cumsum([3, int(count), entry.channels, entry.channels, entry.channels])
        values, *by_channel = (told[at + start : at + end] for start, end in pairwise(ends))
        at += int(ends[-1])
        yield Seen(float(low), float(high), values, *by_channel)


def _from_images(inputs: Inputs, options: RangesOptions, workspace: Workspace) -> Facts:
    images, graph = inputs["images"], inputs["graph"]
    total, rows = calibrate.count(images), _rows(graph, options.input_name)

    def feeds() -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, total, rows):
            batch = calibrate.rows(images, options.preprocess, start, min(start + rows, total))
            yield {options.input_name: np.resize(batch, (rows, *batch.shape[1:]))}
            workspace.progress(min(start + rows, total), total)

    return _gather(inputs["images"], graph, feeds(), total, workspace)


def _from_golden(inputs: Inputs, _options: NoOptions, workspace: Workspace) -> Facts:
    tensors, graph = load_tensors(inputs["golden"].path(TENSORS)), inputs["graph"]
    first = next(iter(tensors))
    total, rows = len(tensors[first]), _rows(graph, first)
    starts = range(0, total, rows)
    feeds = (
        {name: np.resize(array[start : start + rows], (rows, *array.shape[1:])) for name, array in tensors.items()}
        for start in starts
    )
    return _gather(inputs["golden"], graph, feeds, total, workspace)


@dataclass(frozen=True)
class TableOptions:
    """A table that was measured before.

    Attributes:
        path: Of its file.
        sha256: Of its content, so that another file is another table.
    """

    path: str
    sha256: str


def _from_table(inputs: Inputs, options: TableOptions, workspace: Workspace) -> Facts:
    path = Path(options.path)
    if not path.is_file() or sha256_of(path) != options.sha256:
        raise BadInputError(f"{path} has changed since this began: start again when it is complete")
    table = RangeTable.load(path)
    table.check(inputs["graph"].digest)
    table.save(workspace.folder / RANGES)
    return {"images": table.count, "tensors": len(table.tensors), "digest": table.images}


def _gather(
    images: Item, graph: Item, feeds: Iterable[Mapping[str, Tensor]], count: int, workspace: Workspace
) -> Facts:
    collectors = measure(graph.path(onnx_files.MODEL), feeds, workspace.folder)
    table = table_of(collectors, graph.digest, images.digest, count)
    table.save(workspace.folder / RANGES)
    return {"images": count, "tensors": len(table.tensors)}


def _rows(graph: Item, input_name: str) -> int:
    """Return how many rows the graph takes at once: one where its batch is open."""
    model = onnx_files.load(graph.path(onnx_files.MODEL))
    shapes = {spec.name: spec.shape for spec in onnx_files.specs(model.graph.input, {})}
    rows = shapes[input_name][0]
    return rows if isinstance(rows, int) else 1


LIBRARIES = ("onnx", "onnxruntime")
FROM_IMAGES = Stage("ranges", 6, {"graph": "graph", "images": "images"}, "ranges", LIBRARIES, _from_images)
FROM_TABLE = Stage("ranges", 6, {"graph": "graph"}, "ranges", ("onnx",), _from_table)
FROM_GOLDEN = Stage("ranges", 6, {"graph": "graph", "golden": "tensors"}, "ranges", LIBRARIES, _from_golden)
