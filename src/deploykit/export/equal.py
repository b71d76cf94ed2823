"""Do two graphs compute the same? Their interfaces compared, and their outputs on golden inputs in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact import Axis, TensorSpec
from deploykit.bundle import load_tensors
from deploykit.errors import InternalError
from deploykit.export import onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.stage import TENSORS, Item
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.batches import MismatchError, paired, run_rows
from deploykit.runtime.gate import LEAST_EQUAL, is_counted
from deploykit.runtime.rollout import FURTHER

if TYPE_CHECKING:
    import onnx


#: Largest relative difference that an exact change of a graph may make: what float32 rounds, through some hundred layers.
TOLERANCE = 1e-5
#: Golden inputs of the comparison: not a number of rows that graphs are traced at.
PROBE_ROWS = 3


def probe(golden: Item) -> Tensors:
    """Return the first of the golden inputs: images, since on noise, which no network was trained on, many are chaotic.

    Of a diffusion model it is one: a row takes a gigabyte.
    """
    count = 1 if golden.has(FURTHER["rollout"]) else PROBE_ROWS
    return {name: rows[:count] for name, rows in load_tensors(golden.path(TENSORS)).items()}


def check_interface(before: onnx.ModelProto, after: onnx.ModelProto, doing: str) -> None:
    """Check that inputs and outputs have kept their names, types, shapes and open axes.

    Args:
        before: The graph that was changed.
        after: What it became.
        doing: The change, to begin the message with, such as "simplifying".

    Raises:
        InternalError: They have not.
        UnsupportedError: One of them is no tensor.
    """
    for side in ("input", "output"):
        old, new = getattr(before.graph, side), getattr(after.graph, side)
        told = [onnx_files.specs(values, {}) for values in (old, new)]
        if len(old) != len(new) or not all(map(_kept, old, new, *told)):
            raise InternalError(f"{doing} changed the {side}s from {told[0]} to {told[1]}")


def _kept(old: onnx.ValueInfoProto, new: onnx.ValueInfoProto, was: TensorSpec, became: TensorSpec) -> bool:
    """Tell whether an input or output is what it was. What nothing was said of, a shape or a dimension, may be told now."""
    if (was.name, was.dtype) != (became.name, became.dtype):
        return False
    if not old.type.tensor_type.HasField("shape"):
        return True
    if not new.type.tensor_type.HasField("shape") or len(was.shape) != len(became.shape):
        return False
    unnamed = Axis.unbounded(onnx_files.UNNAMED)
    return all(dim in {now, unnamed} for dim, now in zip(was.shape, became.shape, strict=True))


@dataclass(frozen=True)
class Difference:
    """By how much two graphs differ.

    Attributes:
        output: The one that differs most.
        relative_max: Of that; inf where it has another shape.
        problem: Why it can't be compared, "" where it can.
    """

    output: str
    relative_max: float
    problem: str = ""

    @property
    def is_rounding(self) -> bool:
        """Whether an exact change may make it; NaN may not."""
        return self.relative_max <= TOLERANCE

    def told(self, doing: str) -> str:
        """Return it in a sentence that begins with the change, such as "simplifying"."""
        if self.problem:
            return f"{doing} changed the outputs: {self.problem}"
        return (
            f"{doing} changed output {self.output!r} by {self.relative_max:.1e} (relative max; at most {TOLERANCE:.0e})"
        )


def difference(before: Path, after: Path, inputs: Tensors) -> Difference:
    """Compare every output of both graphs in ONNX Runtime, one opened after the other.

    Args:
        before: The graph that was changed.
        after: What it became.
        inputs: Arrays [N, ...] by name.
    """
    expected, found = _outputs(before, inputs), _outputs(after, inputs)
    each = [_apart(name, array, found[name]) for name, array in expected.items()]
    return max(each, key=lambda one: np.inf if np.isnan(one.relative_max) else one.relative_max)


def _apart(name: str, expected: Tensor, found: Tensor) -> Difference:
    """Compare an output: of indices and counts the share that differs, where more do than rounding turns over."""
    try:
        expected, found = paired(name, expected, found)
    except MismatchError as error:
        return Difference(name, np.inf, str(error))
    if not expected.size:
        return Difference(name, 0.0)
    if not is_counted(expected):
        return Difference(name, drift.relative_max(expected, found))
    share = drift.share_equal(expected, found)
    return Difference(name, 0.0 if share >= LEAST_EQUAL else 1.0 - share)


def check_outputs(before: Path, after: Path, inputs: Tensors, doing: str) -> float:
    """Return the relative max of two graphs.

    Raises:
        InternalError: It is larger than `TOLERANCE`, or no number, or an output has another shape.
    """
    found = difference(before, after, inputs)
    if not found.is_rounding:
        raise InternalError(found.told(doing))
    return found.relative_max


def _outputs(path: Path, inputs: Tensors) -> dict[str, Tensor]:
    with open_graph(path) as session:
        return run_rows(session, inputs)
