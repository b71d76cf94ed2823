"""Model files as they come from strangers: what an ONNX file refers to is checked before any runtime opens it.

An ONNX file may name further files that hold its weights. Not every runtime that we support minds where they lie: ONNX Runtime
1.20 opens `../../secret` without a word. The `onnx` package may be absent where a
model is only run, so this walks the protobuf itself: lengths and tags, never the weights, a few milliseconds per file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from deploykit.errors import BadInputError
from deploykit.paths import missing, shown
from deploykit.runtime.backends.protobuf import LENGTH, VARINT, Buffer, fields, messages

#: The messages of onnx.proto on the way from a model to its tensors: field number to the kind of message it holds.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
#: Operators that stand for an engine in another file, which a provider would load: machine code.
_ENGINES = frozenset({b"EPContext"})
#: In old versions of ONNX Runtime a location of such a form is an address in memory.
_ADDRESS = "*"
_OPSET, _VERSION, _MOST_VERSIONS = 8, 2, 1 << 16  # ModelProto.opset_import, its version, and what none reaches
_KEY, _VALUE = 1, 2  # fields of an entry of TensorProto.external_data


def checked_model(model: str) -> Path:
    """Return the path of a model file whose references stay inside its folder.

    Args:
        model: Path of a model's main file. Only files called `.onnx` are looked into; beside an `.xml` lies its `.bin`.

    Raises:
        BadInputError: No such file; not a protobuf; external data that is missing or lies outside the file's folder; or an
            operator that stands for an engine in another file.
    """
    path = Path(model)
    if not path.is_file():
        raise BadInputError(f"{model} is {'no file' if path.exists() else 'missing'}")
    if path.suffix == ".onnx":
        for location in external_locations(path):
            _check_location(path, location)
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.exists() and not weights.resolve().is_relative_to(path.parent.resolve()):
        raise BadInputError(f"{weights} is a link to {weights.resolve()}, outside the model's folder")
    return path


def companions(path: Path) -> tuple[str, ...]:
    """Return the names of the files that a runtime opens beside a model's main file, as far as they are here.

    Raises:
        BadInputError: The main file is an ONNX file that is not intact.
    """
    if path.suffix == ".onnx":
        return external_locations(path)
    weights = path.with_suffix(".bin")
    return (weights.name,) if path.suffix == ".xml" and weights.exists() else ()


def external_locations(path: Path) -> tuple[str, ...]:
    """Return the locations of external data that an ONNX file names, each once, in order.

    Raises:
        BadInputError: The file is empty or not a protobuf, or it holds an operator that stands for an engine.
    """
    if path.stat().st_size == 0:
        raise BadInputError(f"{path} is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _check_opsets(data)
            found = tuple(_found(data))
            locations = tuple(dict.fromkeys(raw.decode("utf-8") for kind, raw in found if kind == "entry"))
        except ValueError as error:
            raise BadInputError(f"{path} is no intact ONNX file: {error}") from error
    engines = [raw.decode() for kind, raw in found if kind == "operator" and raw in _ENGINES]
    if engines:
        raise BadInputError(
            f"{path} holds {engines[0]}, which stands for a compiled engine: those are not opened from a graph"
        )
    return locations


def _check_opsets(data: Buffer) -> None:
    """Refuse versions that no operator set has: runtimes look for each version below them. Raises ValueError."""
    for number, wire, first, last in fields(data, 0, len(data)):
        if (number, wire) == (_OPSET, LENGTH):
            for inner, kind, value, _ in fields(data, first, last):
                if (inner, kind) == (_VERSION, VARINT) and value > _MOST_VERSIONS:
                    raise ValueError(f"operator set of version {value}")


def _check_location(path: Path, location: str) -> None:
    unsafe = f"{path} takes weights from {shown(location)!r}, "
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        raise BadInputError(unsafe + "an absolute path: external data must lie in the model's folder")
    if _ADDRESS in location:
        raise BadInputError(unsafe + "which no file is called: old runtimes take it for an address in memory")
    if ".." in windows.parts:
        raise BadInputError(unsafe + "which leads outside the model's folder")
    target = path.parent / location
    if reason := missing(target):
        raise BadInputError(unsafe + f"but {shown(target)} {reason}")
    if not target.resolve().is_relative_to(path.parent.resolve()):
        raise BadInputError(unsafe + f"a link to {target.resolve()} outside the model's folder")


def _found(data: Buffer) -> Iterator[tuple[str, bytes]]:
    """Yield the value of every external_data entry called "location", as an "entry", and every node's type, as an "operator".

    Raises ValueError where the bytes make no sense.
    """
    stack = [("model", 0, len(data))]
    while stack:
        kind, start, end = stack.pop()
        if kind == "entry":
            entry = {number: data[first:last] for number, first, last in messages(data, start, end)}
            if entry.get(_KEY) == b"location":
                yield kind, entry.get(_VALUE, b"")
            continue
        if kind == "operator":
            yield kind, data[start:end]
            continue
        wanted = _FIELDS[kind]
        found = [
            (wanted[number], first, last) for number, first, last in messages(data, start, end) if number in wanted
        ]
        stack.extend(reversed(found))
