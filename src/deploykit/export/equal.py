"""Do two graphs compute the same? Their interfaces compared, and their outputs on golden inputs in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle import load_tensors
from deploykit.errors import InternalError
from deploykit.export import onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.stage import TENSORS, Item
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.judge import run_rows
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
    """
    for side in ("input", "output"):
        old = onnx_files.specs(getattr(before.graph, side), {})
        new = onnx_files.specs(getattr(after.graph, side), {})
        if old != new:
            raise InternalError(f"{doing} changed the {side}s from {old} to {new}")


def difference(before: Path, after: Path, inputs: Tensors) -> float:
    """Return the relative max over `inputs` of both graphs in ONNX Runtime, one opened after the other.

    Args:
        before: The graph that was changed.
        after: What it became.
        inputs: Arrays [N, ...] by name.
    """
    expected, found = _outputs(before, inputs), _outputs(after, inputs)
    return max(drift.relative_max(array, found[name]) for name, array in expected.items())


def check_outputs(before: Path, after: Path, inputs: Tensors, doing: str) -> float:
    """Return the difference of two graphs.

    Raises:
        InternalError: It is larger than `TOLERANCE`, or no number.
    """
    error = difference(before, after, inputs)
    if not error <= TOLERANCE:
        raise InternalError(f"{doing} changed the outputs by {error:.1e} (relative max; at most {TOLERANCE:.0e})")
    return error


def _outputs(path: Path, inputs: Tensors) -> dict[str, Tensor]:
    with open_graph(path) as session:
        return run_rows(session, inputs)
