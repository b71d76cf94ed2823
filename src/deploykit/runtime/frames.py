"""Frames of JSON and arrays over a pipe: the length of a header, the header, the bytes of the arrays it describes.

Nothing is pickled, so neither side can be made to run code by the other; sizes and dtypes are checked before memory is taken.
"""

from __future__ import annotations

import json
import struct
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, cast

import numpy as np

from deploykit import serde
from deploykit.errors import BadInputError, DeploykitError, Hint, InternalError, ResourceError
from deploykit.runtime.backends.base import Tensor

Header = dict[str, Any]
Frame = tuple[Header, dict[str, Tensor]]

_TRACE_LINES: Final = 12
_MAX_HEADER: Final = 1 << 26
_MAX_ARRAY: Final = 1 << 34
#: Bytes of an array that memory is taken for before any has come.
_BLOCK: Final = 1 << 26
_DTYPES: Final = frozenset(
    {
        *("bool", "float16", "float32", "float64"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    }
)


@dataclass(frozen=True)
class _Layout:
    """What the bytes after a header are: one array."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def send(sink: IO[bytes], header: Header, arrays: Mapping[str, Tensor]) -> None:
    """Write one frame. Raises OSError where the other side is gone."""
    layouts = [_Layout(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": serde.to_json(layouts)}).encode()
    sink.write(struct.pack("<I", len(text)) + text)
    for array in arrays.values():
        sink.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    sink.flush()


def receive(source: IO[bytes]) -> Frame:
    """Read one frame.

    Raises:
        EOFError: The other side is gone.
        BadInputError: These are not our frames.
    """
    (size,) = struct.unpack("<I", _exactly(source, 4))
    if size > _MAX_HEADER:
        raise BadInputError(f"a header of {size} bytes; at most {_MAX_HEADER} are taken")
    try:
        header = serde.parse(_exactly(source, size))
    except ValueError as error:
        raise BadInputError(f"a header that is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadInputError(f"a header that is a {type(header).__name__}")
    layouts = serde.from_json(tuple[_Layout, ...], header.pop("arrays", None))
    return header, {layout.name: _receive_array(source, layout) for layout in layouts}


def _receive_array(source: IO[bytes], layout: _Layout) -> Tensor:
    if layout.dtype not in _DTYPES or min(layout.shape, default=0) < 0:
        raise BadInputError(f"an array that can't be: {layout}")
    size = np.dtype(layout.dtype).itemsize
    for dim in layout.shape:
        size *= dim
    if size > _MAX_ARRAY:
        raise BadInputError(f"an array of {size} bytes; at most {_MAX_ARRAY} are taken: {layout}")
    data = _received(source, size)
    try:
        return np.frombuffer(data, layout.dtype).reshape(layout.shape) if size else np.empty(layout.shape, layout.dtype)
    except ValueError as error:
        raise BadInputError(f"an array that can't be: {error}") from error


def _received(source: IO[bytes], size: int) -> bytearray:
    """Read bytes, and take memory as they come: what a header claims may never come."""
    data, done = bytearray(min(size, _BLOCK)), 0
    while done < size:
        if done == len(data):
            data.extend(bytes(min(size - done, done)))
        with memoryview(data)[done:] as rest:
            count = cast("Any", source).readinto(rest)
        if not count:
            raise EOFError
        done += count
    return data


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


@dataclass(frozen=True)
class _Failure:
    """An exception: names of its classes, the most special first, and what it says."""

    kinds: tuple[str, ...]
    message: str
    hints: tuple[Hint, ...]
    trace: str


def failure_of(error: Exception) -> Header:
    """Return what a frame says of an exception."""
    kinds = [cls.__name__ for cls in type(error).__mro__]
    hints: tuple[Hint, ...] = ()
    message = f"{kinds[0]}: {error}"
    if isinstance(error, DeploykitError):
        message, hints = error.message, error.hints
    elif isinstance(error, MemoryError):
        kinds, message = [ResourceError.__name__], "memory ran out"
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    failure: Header = serde.to_json(_Failure(tuple(kinds), message, hints, "\n".join(lines[-_TRACE_LINES:])))
    return failure


def exception_of(failure: object, model: str) -> DeploykitError:
    """Return the exception that the other side had, as the nearest class that this side knows.

    Args:
        failure: What `failure_of` wrote.
        model: What the other side was working on, for the message of an error that is none of deploykit's.
    """
    told = serde.from_json(_Failure, failure, "worker")
    known = {cls.__name__: cls for cls in _tree(DeploykitError)}
    for kind in told.kinds:
        if kind in known:
            return known[kind](told.message, *told.hints)
    return InternalError(f"the worker for {model} failed: {told.message}\n{told.trace}")


def _tree(root: type[DeploykitError]) -> list[type[DeploykitError]]:
    return [root, *(cls for child in root.__subclasses__() for cls in _tree(child))]
