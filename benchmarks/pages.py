"""Pages of results: a table, what made it again, on which machine, and the exit code that its rows come to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import onnxruntime
import openvino

from deploykit.manifest import Machine
from deploykit.runtime import processors


class Row(Protocol):
    """A row of a table."""

    @property
    def text(self) -> str:
        """The row as Markdown."""

    @property
    def missed(self) -> tuple[str, ...]:
        """The bounds that it missed, in words."""


#: Names of a table's columns, and the line that aligns them.
Columns = tuple[Sequence[str], str]


def page(title: str, command: str, about: Sequence[str], columns: Columns, rows: Sequence[Row]) -> str:
    """Return a whole page.

    Args:
        title: Its heading.
        command: The command line that makes it again.
        about: Lines on what was measured and what the columns mean.
        columns: Of the table.
        rows: What was found.
    """
    machine = Machine.here()
    lines = [
        f"# {title}",
        "",
        f"`{command}`,",
        f"{machine.cpu} ({processors.here().name}), {machine.cores} cores, Python {platform.python_version()},",
        f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__.split('-')[0]}.",
        "",
        *about,
    ]
    return "\n".join([*lines, *table(columns, rows)])


def table(columns: Columns, rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table, with an empty one before and after."""
    names, alignment = columns
    return ["", f"| {' | '.join(names)} |", alignment, *(row.text for row in rows), ""]


def misses(rows: Sequence[Row]) -> str:
    """Return how many rows miss a bound, in words."""
    return f"{sum(bool(row.missed) for row in rows)} of {len(rows)} rows miss one"


def publish(text: str, out: Path | None, rows: Sequence[Row]) -> int:
    """Print a page, write it where it is wanted; returns the exit code: 3 where a bound was missed."""
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    return 3 if any(row.missed for row in rows) else os.EX_OK
