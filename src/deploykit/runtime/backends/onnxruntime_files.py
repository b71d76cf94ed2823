"""ONNX files as ONNX Runtime speaks of them: what their tensors are, and what it has against them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import BadInputError, DeploykitError, UnsupportedError

_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
#: Where ONNX Runtime looks for the weights of a model that it is given as bytes: the key of a session's settings.
WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
#: What ONNX Runtime says where a model is sound but beyond it. Everything else it refuses is a damaged or unsafe file.
_BEYOND: Final = (
    "No Op registered",
    "is not a registered function/op",
    "Could not find an implementation",
    "only *guarantees* support",
    "Unsupported model IR version",
)


def specs(path: Path, session: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:  # noqa: ANN401 - untyped
    """Return the inputs and the outputs of a session of ONNX Runtime.

    Raises:
        UnsupportedError: One of them is of a type that numpy can't hold.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return tuple(_spec(path, node) for node in inputs), tuple(_spec(path, node) for node in outputs)


def _spec(path: Path, node: Any) -> TensorSpec:  # noqa: ANN401
    if node.type not in _DTYPES:
        raise UnsupportedError(f"{path}: {node.name!r} is a {node.type}, which numpy can't hold")
    return TensorSpec(node.name, _DTYPES[node.type], tuple(_dim(node.name, *item) for item in enumerate(node.shape)))


def _dim(owner: str, index: int, dim: int | str | None) -> int | Axis:
    if isinstance(dim, int) and dim >= 0:
        return dim
    return Axis.unbounded(dim if isinstance(dim, str) and dim else f"{owner}_{index}")


def foreign() -> tuple[type[Exception], ...]:
    """Return every exception class that ONNX Runtime raises, beside those of Python's that its bindings use."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError)


def first_line(error: Exception) -> str:
    """Return what ONNX Runtime says, without its codes and the addresses of its own source."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"^Load model from .*? failed: ?", "", text.splitlines()[0] if text else type(error).__name__)
    return re.sub(r"^/\S+?:\d+ .*?\)(?: const)? (?=[A-Z])", "", text)[:600]


def translated(path: Path, error: Exception) -> DeploykitError:
    """Return what ONNX Runtime raised as an error of ours."""
    line = first_line(error)
    if type(error).__name__ == "NotImplemented" or any(words in str(error) for words in _BEYOND):
        return UnsupportedError(f"ONNX Runtime can't express {path}: {line}")
    return BadInputError(f"ONNX Runtime can't read {path}: {line}")


def failed(path: Path, shapes: str, error: Exception) -> UnsupportedError:
    """Return what ONNX Runtime raised when it ran a file on inputs of these shapes, as an error of ours."""
    return UnsupportedError(f"ONNX Runtime can't run {path} on {shapes}: {first_line(error)}")
