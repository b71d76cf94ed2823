"""Made for: int8 artifacts for some classes of processors, whose weights may have their whole range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from deploykit.errors import Hint, UsageError
from deploykit.export import plan
from deploykit.export.request import Cell
from deploykit.export.target import Target, get_target, target_names
from deploykit.runtime import processors
from deploykit.runtime.processors import Processor, Sums
from deploykit.workflow.draft import Draft

#: Precisions whose weights may be made for some classes.
PAIRED: Final = frozenset({"int8"})


def cells_for(cells: Iterable[Cell], words: tuple[str, ...]) -> tuple[Cell, ...]:
    """Return cells that are made for some classes of processors, as far as that changes their weights.

    Args:
        cells: For all classes.
        words: Names of classes and of groups of them; none for all classes.

    Raises:
        UsageError: A name is of none, or there is no cell that it is of use for.
    """
    classes = processors.named(words)
    found = tuple(cells)
    if words and not any(cell.precision in PAIRED for cell in found):
        raise UsageError(f"--for {','.join(words)}: nothing here is made in int8", Hint("--int8"))
    return tuple(replace(cell, processors=words) if _has_whole_range(cell, classes) else cell for cell in found)


def _has_whole_range(cell: Cell, classes: tuple[Processor, ...]) -> bool:
    """Tell whether a cell's weights may have their whole range on these classes, and wouldn't by themselves."""
    if not classes or cell.precision not in PAIRED or cell.target not in target_names():
        return False
    target = get_target(cell.target)
    placement = target.placements.get(cell.precision)
    return placement is not None and placement.pairs and not _unsafe(target, classes, cell.precision)


def _unsafe(target: Target, classes: Iterable[Processor], precision: str) -> list[str]:
    """Return the names of classes on which a target's runtimes may add in 16 bits."""
    backends = {run.backend for run in target.runs.get(precision, ())}
    return [one.name for one in classes if any(one.sums_in(name) is not Sums.EXACT for name in backends)]


def notes(draft: Draft) -> Iterator[str]:
    """Yield what becomes of the classes that int8 artifacts are asked to be made for."""
    classes = processors.named(draft.options.processors)
    for cell, target in draft.targets.items():
        if not classes or cell.precision not in PAIRED:
            continue
        name = plan.artifact_name(draft.original, cell)
        if cell.processors:
            names = [one.name for one in classes]
            away = processors.excluded(names, target.runs[cell.precision][0].backend)
            told = f"{name}: weights of the whole range, for {', '.join(names)}"
            yield f"{told}; not judged here: {away}" if away else told
            continue
        unsafe = _unsafe(target, classes, cell.precision)
        why = (
            f"{target.title} may add in 16 bits on {', '.join(unsafe)}" if unsafe else f"{target.title} takes no others"
        )
        yield f"{name}: weights that are right on every processor: {why}"
