"""What every command shares: results on stdout, everything else on stderr, quiet when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deploykit import serde
from deploykit.errors import DeploykitError
from deploykit.texts import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from deploykit.export.cache import Made
    from deploykit.export.stage import Node
    from deploykit.verdict import Report

#: Kinds of items that come by the dozen: their bars are enough.
SMALL = frozenset({"cost"})
#: Columns of an output that is no terminal.
PIPED_WIDTH = 120


def out() -> Console:
    """Return the console for results."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return _console(file=sys.stdout, width=width, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """Return the console for progress and complaints."""
    return _console(file=sys.stderr, soft_wrap=True)


def _console(**settings: Any) -> Console:  # noqa: ANN401 - as rich takes them
    """Return a console on which texts are texts, whoever wrote them: no markup, no control characters but our own."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    return Plain(markup=False, highlight=False, emoji=False, **settings)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; a number that is none is null, and `not_finite` says by its path what it is."""
    printed, names = serde.finite(dict(value))
    if names:
        printed["not_finite"] = names
    sys.stdout.write(json.dumps(printed, indent=2, allow_nan=False) + "\n")


def error_record(error: DeploykitError) -> dict[str, Any]:
    """Return what is printed as JSON instead of a result."""
    hints = [{"action": hint.action, "effect": hint.effect} for hint in error.hints]
    return {"error": {"message": error.message, "hints": hints, "exit_code": error.exit_code}}


def print_error(error: DeploykitError) -> None:
    """Say what happened and what to do next, on stderr."""
    from rich.text import Text

    console = err()
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    width = max((len(hint.action) for hint in error.hints), default=0)
    for index, hint in enumerate(error.hints):
        lead = "  use    " if index == 0 else "         "
        console.print(Text(f"{lead}{hint.action:<{width}}   {hint.effect}".rstrip()))


def print_report(report: Report, sizes: dict[str, int], *, details: bool = True) -> None:
    """Print a report's table, what went wrong, and the closing count."""
    from deploykit.runtime.report import terminal

    console = out()
    console.print(terminal.table(report, sizes))
    if details:
        for told in (terminal.complaints, terminal.spreads, terminal.power, terminal.repairs):
            for line in told(report):
                console.print(line, markup=False)


def print_shipping(report: Report) -> None:
    """Print which artifact to ship, and why none of the others."""
    from deploykit.runtime.report import terminal

    for line in terminal.shipping(report):
        out().print(line, markup=False)


class Stages:
    """Shows the stages of a plan as they run: a bar for the running one, a line for each finished one."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._task: TaskID | None = None

    def started(self, node: Node) -> None:
        """Show a bar."""
        self._task = self._progress.add_task(node.id, total=None, count="")

    def progressed(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, count=f"{done:,}/{total:,}")

    def finished(self, node: Node, made: Made) -> None:
        """Replace the bar by a line."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if not (made.cached or made.item.kind in SMALL):
            self._console.print(f"  {node.id:<44} {made.seconds:6.1f} s   {_facts(made)}", markup=False)


def _facts(made: Made) -> str:
    facts = made.item.facts
    if "nodes_before" in facts:
        return f"{facts['nodes_before']} → {facts['nodes']} nodes, outputs equal to {facts['relative_max']:.0e}"
    counted = ("nodes", "operations", "images", "inputs")
    words = [f"{facts[key]:,} {key}" for key in counted if isinstance(facts.get(key), int)]
    if "weight_bytes_before" in facts:
        words.append(f"weights {facts['weight_bytes_before'] / 1e6:.1f} → {facts['weight_bytes'] / 1e6:.1f} MB")
    return ", ".join([*words, *([facts["verdict"]] if "verdict" in facts else [])])


@contextmanager
def stages(*, quiet: bool) -> Iterator[Stages | None]:
    """Yield a watcher that draws on stderr, or None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    console, bars = _bars()
    with bars:
        yield Stages(console, bars)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Any]:
    """Yield a function of (name, done, total) that draws a bar on stderr, or does nothing where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield lambda _name, _done, _total: None
        return
    _, bars = _bars()
    tasks: dict[str, TaskID] = {}

    def step(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total, count="")
        bars.update(tasks[name], completed=done, total=total, count=f"{done:,}/{total:,}")

    with bars:
        yield step


def _bars() -> tuple[Console, Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = err()
    columns = (
        TextColumn("  {task.description:<44}"),
        BarColumn(20),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    return console, Progress(*columns, console=console, transient=True)
