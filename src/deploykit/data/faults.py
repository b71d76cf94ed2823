"""Tell everything that is wrong with a set of images at once, not one thing per run."""

from __future__ import annotations

from collections.abc import Callable

from deploykit.errors import DeploykitError, Hint

#: Faults that are told by name; the rest is counted.
NAMED = 10


class Faults:
    """Gathers faults of one place: the first few by name, and how many in all.

    Args:
        place: The folder, list or set that they are in.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._lines: list[str] = []
        self._total = 0

    def add(self, tell: str | Callable[[], str]) -> None:
        """Take a fault, or what tells it, which is called only where it is going to be told."""
        self._total += 1
        if len(self._lines) < NAMED:
            self._lines.append(tell if isinstance(tell, str) else tell())

    def refuse(self, kind: type[DeploykitError], *hints: Hint) -> None:
        """Raise `kind` with all that was gathered; do nothing where that is nothing."""
        if self._total == 1:
            raise kind(f"{self._place}: {self._lines[0]}", *hints)
        if self._total:
            rest = self._total - len(self._lines)
            more = [f"and {rest} more"] if rest else []
            raise kind("\n  ".join([f"{self._place} has {self._total} faults:", *self._lines, *more]), *hints)
