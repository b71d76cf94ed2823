"""Twin: another run of the graph of an artifact that drifts, as by exact arithmetic. Is the runtime wrong, or the graph?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from deploykit.errors import UnsupportedError
from deploykit.export import plan, reference
from deploykit.export.pipeline import Pipeline
from deploykit.export.request import Cell
from deploykit.export.stage import TENSORS, Node, Plan
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.batches import load_outputs, paired
from deploykit.runtime.judge import least_sqnr
from deploykit.verdict import Judgement
from deploykit.workflow.draft import Draft

#: By how many decibels another runtime must lie nearer to the original for this one to be called wrong: four times less error.
BLAME: Final = 6.0


@dataclass(frozen=True)
class Twin:
    """What another runtime made of the same graph.

    Attributes:
        text: In a sentence; "" where none was asked.
        is_better: It lies so much nearer to the original that the artifact's own runtime must be wrong.
    """

    text: str = ""
    is_better: bool = False


def asked_elsewhere(pipeline: Pipeline, draft: Draft, cell: Cell, judgements: tuple[Judgement, ...]) -> Twin:
    """Run the graph of a cell's artifact in another runtime, on the golden inputs, where there is one.

    Args:
        pipeline: Runs plans.
        draft: That made the artifact.
        cell: The artifact's.
        judgements: Of the artifact in its own runtime.
    """
    target = draft.targets[cell]
    run = target.twin
    if run is None or get_backend(run.backend).unavailable(run):
        return Twin()
    made, name = draft.judged(), plan.artifact_name(draft.original, cell)
    graph = next(node for node in made.nodes if node.id == name).inputs["graph"]
    node = Node(
        f"twin of {name}",
        reference.twin_stage(run),
        reference.TwinOptions(run, plan.at_once(draft.family, draft.request)),
        {"graph": graph, "golden": plan.GOLDEN},
    )
    needed = made.reaching([graph, plan.GOLDEN, plan.GOLDEN_OUTPUTS])
    try:
        results = pipeline.run(Plan(needed.given, (*needed.nodes, node)))
    except UnsupportedError as error:
        if error.node != node.id:
            raise
        return Twin()
    expected, found = (load_outputs(results[key].item.path(TENSORS)) for key in (plan.GOLDEN_OUTPUTS, node.id))
    pairs = [paired(key, expected[key], found[key]) for key in expected]
    elsewhere = min(drift.sqnr_db(wanted, got, drift.mean_answer(wanted)) for wanted, got in pairs)
    here = min((least_sqnr(judgement.metrics) for judgement in judgements), default=math.inf)
    is_better = elsewhere - here >= BLAME
    blamed = f": {target.title} computes it wrongly" if is_better else ""
    other = f"{run.arithmetic} arithmetic" if run.arithmetic is not None else get_backend(run.backend).component.title
    return Twin(f"{other} makes {elsewhere:.1f} dB of the same graph, {target.title} {here:.1f} dB{blamed}", is_better)
