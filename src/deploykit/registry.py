"""One door for backends, families and targets: Python entry points, ours and other people's alike."""

from __future__ import annotations

from functools import cache
from importlib import metadata

from deploykit.errors import UsageError


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


@cache
def load(group: str, name: str) -> object:
    """Import and return what `name` stands for in `group`.

    Raises:
        UsageError: No such name; the message lists those there are.
    """
    points = _entry_points(group)
    if name not in points:
        raise UsageError(f"{name!r} is not registered in {group}; there are: {', '.join(sorted(points)) or 'none'}")
    loaded: object = points[name].load()
    return loaded
