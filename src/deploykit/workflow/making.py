"""Making: run a draft, repair what drifts, and go on without the artifacts that a target refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit.errors import UnsupportedError
from deploykit.export import plan
from deploykit.export.cache import Made
from deploykit.export.pipeline import Pipeline
from deploykit.export.request import Cell
from deploykit.export.stage import Plan
from deploykit.verdict import Refusal, Repair
from deploykit.workflow.draft import Draft
from deploykit.workflow.repair import judged_as_cell, repaired


@dataclass(frozen=True)
class Done:
    """A draft that was run.

    Attributes:
        draft: As it was run in the end: what was refused is not in it.
        plan: Its plan.
        results: Of the plan's nodes, by id.
        repairs: What was done so that artifacts pass.
        refused: What was asked for and can't be made.
    """

    draft: Draft
    plan: Plan
    results: Mapping[str, Made]
    repairs: tuple[Repair, ...]
    refused: tuple[Refusal, ...]


def make(pipeline: Pipeline, draft: Draft) -> Done:
    """Run a draft; an artifact that is refused is left out, and what was made already is taken from the cache.

    Raises:
        DeploykitError: A stage failed.
        UnsupportedError: Nothing of what was asked for can be made.
    """
    refused: tuple[Refusal, ...] = ()
    while True:
        try:
            return _made(pipeline, draft, refused)
        except UnsupportedError as error:
            concerned = _concerned(draft, error.node)
            refused += tuple(_refusal(draft, cell, error) for cell in concerned)
            left = [cell for cell in draft.request.cells if cell not in concerned]
            if not concerned or not left:
                raise _of_all(refused, error) from error
            draft = draft.only(left)


def _made(pipeline: Pipeline, draft: Draft, refused: tuple[Refusal, ...]) -> Done:
    repairs: tuple[Repair, ...] = ()
    if draft.options.verify and draft.options.repair:
        draft, repairs = repaired(pipeline, draft)
    whole = draft.whole()
    return Done(draft, whole, pipeline.run(whole), repairs, refused)


def _concerned(draft: Draft, node: str) -> tuple[Cell, ...]:
    """Return the cells that can't be made, or not judged, without a node."""
    ways = {cell: draft.only([cell]).including([judged_as_cell(draft, cell)]) for cell in draft.request.cells}
    return tuple(cell for cell, way in ways.items() if any(each.id == node for each in way.judged().nodes))


def _refusal(draft: Draft, cell: Cell, error: UnsupportedError) -> Refusal:
    name = plan.artifact_name(draft.original, cell)
    return Refusal(name, cell.precision, cell.target, error.message, error.hints)


def _of_all(refused: tuple[Refusal, ...], last: UnsupportedError) -> UnsupportedError:
    """Return the error that names every reason once; where there is one alone, that error."""
    reasons = dict.fromkeys(refusal.reason for refusal in refused)
    if len(reasons) <= 1:
        return last
    told = (f"{', '.join(each.artifact for each in refused if each.reason == reason)}: {reason}" for reason in reasons)
    hints = dict.fromkeys(hint for refusal in refused for hint in refusal.hints)
    return UnsupportedError("\n".join(["nothing of this export can be made:", *told]), *hints)
