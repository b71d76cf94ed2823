"""Do two graphs compute the same? Their interfaces compared, and their outputs on seeded inputs in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Axis, RunConfig
from deploykit.errors import InternalError
from deploykit.export import onnx_files
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor, get_backend

if TYPE_CHECKING:
    import onnx


#: Largest relative difference that an exact change of a graph may make: what float32 rounds, through some hundred layers.
TOLERANCE = 1e-5
#: Rows of the comparison where the batch is dynamic: not a size that graphs are traced at.
PROBE_ROWS = 3
#: Seeded maps are this many random numbers across, and smooth between. On white noise, which no network was trained on, many
#: are chaotic: an EfficientNet's answer moves by 4e-4 when ONNX Runtime sums in another order, on smooth maps by 3e-6.
PROBE_CELLS = 8


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


def difference(before: Path, after: Path) -> float:
    """Return the relative max over seeded inputs of both graphs in ONNX Runtime, one opened after the other."""
    expected, found = _outputs(before), _outputs(after)
    return max(drift.relative_max(array, found[name]) for name, array in expected.items())


def check_outputs(before: Path, after: Path, doing: str) -> float:
    """Return the difference of two graphs.

    Raises:
        InternalError: It is larger than `TOLERANCE`, or no number.
    """
    error = difference(before, after)
    if not error <= TOLERANCE:
        raise InternalError(f"{doing} changed the outputs by {error:.1e} (relative max; at most {TOLERANCE:.0e})")
    return error


def _outputs(path: Path) -> dict[str, Tensor]:
    config = RunConfig("onnxruntime", precision="f32")
    random = np.random.default_rng(0)
    with get_backend(config.backend).open(str(path), config) as session:
        feeds: dict[str, Tensor] = {
            spec.name: _probe([PROBE_ROWS if isinstance(dim, Axis) else dim for dim in spec.shape], random)
            for spec in session.inputs
        }
        return session.infer(feeds)


def _probe(shape: list[int], random: np.random.Generator) -> NDArray[np.float32]:
    """Return standard normal values, smooth along the last two of four axes as images are.

    Args:
        shape: Of the input.
        random: Where they are drawn from.
    """
    if len(shape) != 4:
        return random.standard_normal(shape, dtype=np.float32)
    cells = random.standard_normal([*shape[:2], PROBE_CELLS, PROBE_CELLS])
    down, across = (_between(size) for size in shape[2:])
    return np.asarray(down @ cells @ across.T, dtype=np.float32)


def _between(size: int) -> NDArray[np.float64]:
    """Return the matrix [size, PROBE_CELLS] that interpolates between cells along one axis."""
    places = np.linspace(0, PROBE_CELLS - 1, size)
    return np.stack([np.interp(places, np.arange(PROBE_CELLS), cell) for cell in np.eye(PROBE_CELLS)], axis=1)
