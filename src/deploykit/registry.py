"""One door for backends, families and targets: Python entry points, ours and other people's alike."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TypeVar

from deploykit.errors import InternalError, UsageError

T = TypeVar("T")


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        known = found.get(point.name)
        if known is not None and known.value != point.value:
            raise UsageError(
                f"two packages register {point.name!r} in {group}: {known.value} and {point.value}; uninstall one of them"
            )
        found[point.name] = point
    return found


def names(group: str) -> tuple[str, ...]:
    """Return the registered names of `group`, sorted, without importing any.

    Raises:
        UsageError: Two packages register the same name.
    """
    return tuple(sorted(_entry_points(group)))


def load(group: str, name: str, kind: type[T]) -> T:
    """Import and return what `name` stands for in `group`.

    Raises:
        UsageError: No such name; the message lists those there are.
        InternalError: What is registered is no `kind`.
    """
    points = _entry_points(group)
    if name not in points:
        raise UsageError(f"{name!r} is not registered in {group}; there are: {', '.join(sorted(points)) or 'none'}")
    loaded = points[name].load()
    if not isinstance(loaded, kind):
        raise InternalError(f"entry point {name!r} in {group} is a {type(loaded).__name__}, not a {kind.__name__}")
    return loaded
