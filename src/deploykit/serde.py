"""Frozen dataclasses to JSON and back, strictly, with the standard library alone.

The runtime must read a manifest in an environment that holds numpy and one inference runtime, so a serialization library
is no option here (docs/adr/0003). Decoding checks every field: an unknown key, a missing key or a value of another type is
a `BadInputError` that names the path. In a manifest and wherever
it is sealed, non-finite floats travel as the strings "NaN", "Infinity" and "-Infinity"; what commands print has null for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, TypeVar, cast

from deploykit.errors import BadInputError

T = TypeVar("T")

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

#: Metadata of a field that came after files were written: None where it is absent, and absent where it is None.
LATER: Mapping[str, bool] = {"later": True}


def is_later(field: dataclasses.Field[Any]) -> bool:
    """Tell whether a field may be absent from files."""
    return field.metadata.get("later", False) is True


def to_json(value: object) -> Any:  # noqa: ANN401 - JSON has no narrower type that json.dumps accepts
    """Return `value` (dataclasses, enums, mappings, sequences, scalars) as plain JSON values.

    Raises:
        TypeError: `value` holds something that JSON can't express.
    """
    return _named(to_values(value))


def to_values(value: object) -> Any:  # noqa: ANN401 - as JSON's, but for floats that JSON can't express
    """Return the same, non-finite floats left as they are.

    Raises:
        TypeError: `value` holds something that JSON can't express.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {field.name: to_values(item) for field, item in given.items() if not (is_later(field) and item is None)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_values(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_values(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")


def _named(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return name_of(value) or value


def name_of(value: object) -> str:
    """Return the name of a non-finite float, such as "Infinity"; "" of everything else."""
    if not isinstance(value, float) or math.isfinite(value):
        return ""
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def finite(value: Any, where: str = "") -> tuple[Any, dict[str, str]]:  # noqa: ANN401
    """Return JSON values with null in place of each non-finite float, and the names of these by their paths.

    Args:
        value: What `to_values` returns.
        where: Path to it: "judgements[0].metrics.sqnr_db".
    """
    if name := name_of(value):
        return None, {where: name}
    names: dict[str, str] = {}

    def inner(item: Any, path: str) -> Any:  # noqa: ANN401
        plain, found = finite(item, path)
        names.update(found)
        return plain

    if isinstance(value, dict):
        return {key: inner(item, f"{where}.{key}" if where else key) for key, item in value.items()}, names
    if isinstance(value, list):
        return [inner(item, f"{where}[{index}]") for index, item in enumerate(value)], names
    return value, names


def canonical_bytes(value: object) -> bytes:
    """Return the one byte string that stands for `value`: sorted keys, no white space, ASCII."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(value: object) -> str:
    """Return the SHA-256 (hexadecimal) of `canonical_bytes(value)`."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def parse(text: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """Return the values of JSON that may be anybody's.

    Raises:
        ValueError: It is no JSON, or a nest too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("a nest of lists or objects too deep to be read") from None


def from_json(kind: type[T], value: object, where: str = "$") -> T:
    """Build a `kind` from plain JSON values.

    Args:
        kind: A dataclass, enum, scalar, `tuple[X, ...]`, `Mapping[str, X]` or a union of those.
        value: What `json.loads` returned.
        where: The path to `value`, for messages.

    Raises:
        BadInputError: `value` doesn't fit `kind`; the message names the path.
    """
    return cast("T", _decode(kind, value, where))


def _fail(where: str, wanted: str, value: object) -> BadInputError:
    return BadInputError(f"{where}: expected {wanted}, found {type(value).__name__} {str(value)[:80]!r}")


def _decode(kind: Any, value: object, where: str) -> object:  # noqa: ANN401
    if kind is Any:
        return value
    if typing.get_origin(kind) is not None:
        return _decode_generic(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast("type", kind), value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _decode_enum(kind, value, where)
    return _decode_scalar(kind, value, where)


def _decode_generic(kind: Any, value: object, where: str) -> object:  # noqa: ANN401
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        return _decode_union(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _fail(where, "a list", value)
        return tuple(_decode(arguments[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if not isinstance(value, dict):
        raise _fail(where, "an object", value)
    return {key: _decode(arguments[1], one, f"{where}.{key}") for key, one in value.items()}


def _decode_union(kind: Any, value: object, where: str) -> object:  # noqa: ANN401
    choices = typing.get_args(kind)
    if value is None and type(None) in choices:
        return None
    problems = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _decode(choice, value, where)
        except BadInputError as error:
            problems.append(error)
    raise problems[0] if len(problems) == 1 else _fail(where, " or ".join(str(choice) for choice in choices), value)


@cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise _fail(where, f"an object ({kind.__name__})", value)
    fields = dataclasses.fields(kind)
    unknown = sorted(set(value) - {field.name for field in fields})
    if unknown:
        raise BadInputError(f"{where}: unknown field {unknown[0]!r} in {kind.__name__}")
    missing = [field.name for field in fields if field.name not in value and not is_later(field)]
    if missing:
        raise BadInputError(f"{where}: field {missing[0]!r} of {kind.__name__} is missing")
    hints = _field_types(kind)
    decoded = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**decoded)
    except (ValueError, BadInputError) as error:
        raise BadInputError(f"{where}: {error}") from error


def _decode_enum(kind: type[Enum], value: object, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise _fail(where, f"one of {[member.value for member in kind]}", value) from None


def has_64_bits(value: int) -> bool:
    """Tell whether an integer is one that JSON can carry from one program to another."""
    return -(2**63) <= value < 2**64


def _decode_scalar(kind: Any, value: object, where: str) -> object:  # noqa: ANN401
    if kind is float:
        if isinstance(value, str) and value in NON_FINITE:
            return NON_FINITE[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise BadInputError(f"{where}: expected a number, found an integer beyond every float") from None
        raise _fail(where, "a number", value)
    if kind is int and isinstance(value, bool):
        raise _fail(where, "an integer", value)
    if kind is int and isinstance(value, int) and not has_64_bits(value):
        raise BadInputError(f"{where}: expected an integer of 64 bits, found one beyond them")
    if isinstance(value, kind):
        return value
    raise _fail(where, getattr(kind, "__name__", str(kind)), value)
