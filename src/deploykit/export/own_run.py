"""How stages run graphs themselves, to compare, measure and refer to: in ONNX Runtime, by the arithmetic of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploykit.artifact import EXACT, RunConfig
from deploykit.export import onnx_files
from deploykit.runtime.backends.base import Session, get_backend

#: Weights of more bytes than this stay in their file: packed for kernels, or laid out in blocks of channels, there would be a
#: second copy of them in memory. A UNet of 860 M parameters holds 2.3 GB so instead of 6.7, and takes 1.07 times as long.
MOST_PACKED: Final = 1 << 30
FRUGAL: Final[Mapping[str, str]] = {
    "session.disable_prepacking": "1",
    "optimization.disable_specified_optimizers": "NchwcTransformer",
}


def open_graph(path: Path) -> Session:
    """Open a graph as stages hand it on, or a file of it."""
    hints = FRUGAL if onnx_files.weight_bytes(onnx_files.load(path)) > MOST_PACKED else {}
    config = RunConfig("onnxruntime", precision="f32", hints=hints, arithmetic=EXACT)
    return get_backend(config.backend).open(str(path), config)
