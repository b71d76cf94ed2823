"""Injected faults: the hub graph made wrong on purpose, one tensor at a time, and what that does to its answers.

The weights that are changed become inputs of one session, so that a fault costs one inference and no graph is built anew.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.bundle import load_tensors
from deploykit.export import onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.reference import OutputsOptions
from deploykit.export.stage import TENSORS, Facts, Inputs, Stage, Workspace
from deploykit.runtime import drift, power
from deploykit.runtime.backends.base import Layer, Session, Tensor, Tensors
from deploykit.runtime.batches import load_outputs
from deploykit.runtime.numeric import EPSILON, ROUNDED
from deploykit.runtime.power import InjectedFault
from deploykit.runtime.rollout import FURTHER

if TYPE_CHECKING:
    import onnx

#: Layers that are made wrong, spread evenly over the depth.
LAYERS: Final = 12

#: Operators with weights to the index of the weights among their inputs, and to the axis of the output channels.
_WEIGHTED: Final[Mapping[str, tuple[int, int]]] = {
    "Conv": (1, 0),
    "ConvTranspose": (1, 1),
    "Gemm": (1, 1),
    "MatMul": (1, -1),
}
#: Where those that have one keep their bias.
_BIAS: Final = 2
_BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})


Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """A kind of fault in one tensor."""

    kind: str
    tensor: str
    axis: int


def _scaled(values: Array, _axis: int) -> Array:
    return (values * np.float32(1.05)).astype(values.dtype)


def _shifted(values: Array, axis: int) -> Array:
    return np.roll(values, 1, axis)


def _zeroed(values: Array, axis: int) -> Array:
    changed = values.copy()
    np.moveaxis(changed, axis, 0)[values.shape[axis] // 2] = 0
    return changed


def _doubled(values: Array, _axis: int) -> Array:
    changed = values.copy()
    changed[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 2
    return changed


def _biased(values: Array, _axis: int) -> Array:
    changed = values.copy()
    changed[len(values) // 2] += 0.1
    return changed


def _swapped(values: Array, axis: int) -> Array:
    changed = values.copy()
    rows = np.moveaxis(changed, axis, 0)
    rows[[0, -1]] = rows[[-1, 0]]
    return changed


CHANGES: Final[Mapping[str, Callable[[Array, int], Array]]] = {
    power.SCALED: _scaled,
    power.SHIFTED: _shifted,
    power.ZEROED: _zeroed,
    power.DOUBLED: _doubled,
    power.BIASED: _biased,
    power.SWAPPED: _swapped,
}
#: Made in turn, one in each layer beside the first two kinds.
_IN_TURN: Final = (power.ZEROED, power.DOUBLED, power.BIASED)


def layers_of(model: onnx.ModelProto, dtype: str = "FLOAT") -> tuple[Layer, ...]:
    """Return the nodes whose weights are initializers of two axes or more, in the graph's order, each weight once.

    Args:
        model: The graph.
        dtype: ONNX's name of the weights' type.
    """
    import onnx

    floats = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.DataType.Value(dtype) and tensor.dims
    }
    found: dict[str, Layer] = {}
    for node in model.graph.node:
        index, axis = _WEIGHTED.get(node.op_type, (0, 0))
        name = node.input[index] if index and index < len(node.input) else ""
        if name not in floats or len(floats[name].dims) < 2 or name in found:
            continue
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        bias = node.input[_BIAS] if node.op_type in _BIASED and len(node.input) > _BIAS else ""
        has_bias = bias in floats and len(floats[bias].dims) == 1
        found[name] = Layer(name, 0 if transposed else axis, bias if has_bias else "")
    return tuple(found.values())


def changes_of(layers: tuple[Layer, ...]) -> Iterator[Change]:
    """Yield the faults to make in layers that are spread over the depth: the same for the same graph."""
    places = np.unique(np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int))
    for turn, layer in enumerate(layers[place] for place in places):
        yield Change(power.SCALED, layer.weight, layer.axis)
        yield Change(power.SHIFTED, layer.weight, layer.axis)
        kind = _IN_TURN[turn % len(_IN_TURN)]
        if kind != power.BIASED:
            yield Change(kind, layer.weight, layer.axis)
        elif layer.bias:
            yield Change(kind, layer.bias, 0)
    if layers:
        yield Change(power.SWAPPED, layers[-1].weight, layers[-1].axis)


@dataclass(frozen=True)
class Answers:
    """What the graph answers to the golden inputs as it is.

    Attributes:
        outputs: Arrays [G, ...] by name, or [inferences, ...] of those without rows.
        means: The mean answer of each.
        energies: What each varies by about it, the mean of the squares.
        floors: The same of what float32 rounds, and some; a fault that does no more has done nothing.
    """

    outputs: Tensors
    means: Tensors
    energies: Mapping[str, float]
    floors: Mapping[str, float]

    @classmethod
    def of(cls, outputs: Tensors, rows: Rows, again: Tensors) -> Answers:
        """Take outputs by name, and what the session that is made wrong answers to some rows while it is right."""
        known = {name: array for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)}
        means = {name: drift.mean_answer(array) for name, array in known.items()}
        energies = {name: _energy(array - means[name]) for name, array in known.items()}
        floors = {name: ROUNDED**2 * _energy(array * EPSILON) for name, array in known.items()}
        answers = cls(known, means, energies, floors)
        noise = {name: _energy(one.astype(np.float64) - again[name]) for name, one in answers.at(rows, again)}
        return replace(answers, floors={name: max(floors[name], ROUNDED**2 * noise.get(name, 0.0)) for name in known})

    def at(self, rows: Rows, found: Tensors) -> Iterator[tuple[str, Tensor]]:
        """Yield the answers to these rows, which are one inference's, where they have the shape of those that were found."""
        for name, whole in self.outputs.items():
            inference = rows[0] // len(rows) % len(whole)
            fitting = (one for one in (whole[rows % len(whole)], whole[inference]) if one.shape == found[name].shape)
            yield from ((name, one) for one in itertools.islice(fitting, 1))

    def compare(self, change: Change, rows: Rows, found: Tensors) -> InjectedFault:
        """Return what a change did to the answers of these rows: of each number that of the worst output."""
        worst, least, lowest = 0.0, float("inf"), 1.0
        with np.errstate(all="ignore"):
            for name, expected in self.at(rows, found):
                gap = expected.astype(np.float64) - found[name]
                if not _energy(gap) > self.floors[name] and drift.is_finite(found[name]):
                    continue
                worst = max(worst, float(np.abs(gap).max() / np.abs(self.outputs[name] - self.means[name]).max()))
                least = min(least, float(10.0 * np.log10(self.energies[name] / _energy(gap))))
                lowest = min(lowest, drift.cosine_min(np.atleast_1d(expected), np.atleast_1d(found[name])))
        is_finite = all(drift.is_finite(array) for array in found.values())
        return InjectedFault(change.kind, change.tensor, worst if is_finite else float("nan"), least, lowest)


def _energy(values: NDArray[np.float64]) -> float:
    """Return the mean of the squares."""
    return float(np.square(values, dtype=np.float64).mean())


def faults_of_session(session: Session, golden: Tensors, outputs: Tensors, at_once: int) -> tuple[InjectedFault, ...]:
    """Make the weights of an original wrong, one tensor at a time; return what that did, or nothing where it can't be done.

    Args:
        session: The original. Its weights are afterwards as they were.
        golden: Golden inputs, arrays [G, ...] by name.
        outputs: Its answers to them, as `Answered.arrange` makes them.
        at_once: Rows that it was asked at once.
    """
    changes = tuple(changes_of(session.layers()))
    if not changes:
        return ()
    weights = session.weights({change.tensor for change in changes})
    return tuple(_injected(Subject(session, weights, session.infer_with), changes, Given(golden, outputs, at_once)))


@dataclass(frozen=True)
class Subject:
    """What is made wrong.

    Attributes:
        session: It, as it is.
        weights: The tensors that are changed, by name.
        infer_with: Runs feeds with other values for some of them.
    """

    session: Session
    weights: Mapping[str, Array]
    infer_with: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Given:
    """Golden inputs, the answers to them, and how many rows were asked at once."""

    golden: Tensors
    outputs: Tensors
    at_once: int


def _injected(subject: Subject, changes: Sequence[Change], given: Given) -> Iterator[InjectedFault]:
    """Make one change after another and yield what each does."""

    def rows_at(turn: int) -> Rows:
        return _rows(subject.session, given.golden, given.at_once, turn)

    first = rows_at(0)
    answers = Answers.of(given.outputs, first, subject.infer_with(_at(given.golden, first), {}))
    for turn, change in enumerate(changes):
        rows = rows_at(turn)
        made = CHANGES[change.kind](subject.weights[change.tensor], change.axis)
        found = subject.infer_with(_at(given.golden, rows), {change.tensor: made})
        yield answers.compare(change, rows, found)


def _run(inputs: Inputs, options: OutputsOptions, workspace: Workspace) -> Facts:
    size = 1 if inputs["golden"].has(FURTHER["rollout"]) else options.at_once
    graph, golden = inputs["graph"].path(onnx_files.MODEL), load_tensors(inputs["golden"].path(TENSORS))
    given = Given(golden, load_outputs(inputs["outputs"].path(TENSORS)), size)
    model = onnx_files.load(graph)
    changes = tuple(changes_of(layers_of(model)))
    weights = _weights(model, graph, {change.tensor for change in changes})
    faults: list[InjectedFault] = []
    if changes:
        with tempfile.TemporaryDirectory(dir=workspace.folder) as folder:
            path = _open_weights(model, weights, graph, Path(folder))
            with open_graph(path) as session:
                subject = Subject(session, weights, lambda feeds, other: session.infer({**feeds, **weights, **other}))
                for fault in _injected(subject, changes, given):
                    faults.append(fault)
                    workspace.progress(len(faults), len(changes))
    power.save_faults(workspace.folder / power.FILE, faults)
    return {"faults": len(faults)}


def _weights(model: onnx.ModelProto, graph: Path, names: set[str]) -> dict[str, Array]:
    from onnx import numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor, str(graph.parent))
        for tensor in model.graph.initializer
        if tensor.name in names
    }


def _open_weights(model: onnx.ModelProto, weights: Mapping[str, Array], graph: Path, folder: Path) -> Path:
    """Write the graph with these weights among its inputs; the others stay in a file that lies beside it."""
    import onnx

    kept = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    listed = {value.name for value in model.graph.input}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in weights.items()
        if name not in listed
    )
    onnx_files.bring_weights(graph, folder)
    onnx_files.save(model, folder / onnx_files.MODEL)
    return folder / onnx_files.MODEL


def _rows(session: Session, golden: Tensors, at_once: int, turn: int) -> Rows:
    """Return which golden inputs are asked at a turn: others each time, so that all of them are.

    They are those of one inference of the reference, whose last one is left out where it lacks rows.
    """
    count = len(next(iter(golden.values())))
    batch = next(spec.shape[0] for spec in session.inputs if spec.name in golden)
    size = batch if isinstance(batch, int) else at_once
    whole = max(1, count // size)
    return (np.arange(size) + turn % whole * size) % count


def _at(golden: Tensors, rows: Rows) -> dict[str, Tensor]:
    return {name: array[rows] for name, array in golden.items()}


STAGE = Stage(
    name="injected-faults",
    version=1,
    takes={"graph": "graph", "golden": "tensors", "outputs": "tensors"},
    makes="tensors",
    libraries=("onnx", "onnxruntime"),
    run=_run,
)
