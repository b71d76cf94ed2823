"""Repair: return the layers that cost most to the higher precision, until an artifact passes or too little would be left.

Each layer's cost is what it alone, rounded in an otherwise float32 graph, loses at the output of the network. Costs of layers
about add up, so they say how many have to go back before the graph is built and judged again: the judgement decides. Each
cost is a node of a plan: a repair that was broken off goes on where it ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit.export import plan
from deploykit.export.pipeline import Pipeline
from deploykit.export.quantize import cost
from deploykit.export.quantize.stage import QuantizeOptions
from deploykit.export.request import Cell
from deploykit.export.stage import Node, Plan
from deploykit.runtime.backends.base import get_backend
from deploykit.verdict import GateKind, GateResult, Judgement, Repair, Returned, Verdict, grade_of
from deploykit.workflow import measure
from deploykit.workflow.draft import Draft
from deploykit.workflow.twin import Twin, asked_elsewhere

#: Times that an artifact is built anew: each is another try at the same evaluation images.
MOST_ROUNDS: Final = 6
#: The error that may remain is aimed below what the gates ask for by this factor, since costs add up only about.
MARGIN: Final = 0.85
ANSWERS: Final = "cost-answers"


@dataclass(frozen=True)
class Costed:
    """A layer and what it costs.

    Attributes:
        layer: The layer.
        errors: float64 [N], sum (a - b)^2 / sum a^2 at the network's outputs where it alone is rounded, for each row.
    """

    layer: cost.Layer
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class Patient:
    """An artifact under repair.

    Attributes:
        before: Its judgements as it was first built.
        twin: What another runtime made of the same graph.
        floor: Least share of the multiply-adds in 8 bits.
        costs: Of every layer that may be int8; none until they are measured.
        returned: First outputs of the layers that were returned.
        rounds: How often it was built anew.
        given_up: Why no more is returned; "" while there is hope. Then none is: what doesn't heal only slows it down.
        after: Its judgements as it was last built.
    """

    before: tuple[Judgement, ...]
    twin: Twin
    floor: float
    costs: tuple[Costed, ...] = ()
    returned: tuple[str, ...] = ()
    rounds: int = 0
    given_up: str = ""
    after: tuple[Judgement, ...] = ()


def repaired(pipeline: Pipeline, draft: Draft) -> tuple[Draft, tuple[Repair, ...]]:
    """Return the draft whose artifacts pass where that can be had, and what was done for it.

    Args:
        pipeline: Runs plans; what it has made stays made.
        draft: As it was asked for.
    """
    judged_as = {cell: judged_as_cell(draft, cell) for cell in draft.request.cells}
    told = draft.including(judged_as.values())
    patients: dict[Cell, Patient] = {}
    while True:
        results = pipeline.run(told.judged())
        for cell in dict.fromkeys(judged_as.values()):
            judgements = tuple(measure.read_judgement(results[name].item) for name in told.judge_ids(cell))
            patient = patients.get(cell) or _admitted(pipeline, told, cell, judgements)
            if patient is not None:
                healing = not (patient.given_up or _is_well(judgements))
                patient = replace(patient, after=judgements)
                patients[cell] = _treated(pipeline, told, cell, patient, judgements) if healing else patient
        returned = {cell: patient.returned for cell, patient in patients.items() if patient.returned}
        kept = {cell: returned[other] for cell, other in judged_as.items() if other in returned}
        if {**returned, **kept} == dict(told.request.kept):
            break
        told = told.keeping({**returned, **kept})
    found = ((cell, other, patients[other]) for cell, other in judged_as.items() if other in patients)
    return draft.keeping(kept), tuple(_record(told, cell, patient, own=cell == other) for cell, other, patient in found)


def judged_as_cell(draft: Draft, cell: Cell) -> Cell:
    """Return the cell by which one is judged: where its artifact can't run here, that of the graph that it is built from."""
    target = draft.targets[cell]
    runs = target.runs[cell.precision]
    absent = all(get_backend(run.backend).unavailable(run) for run in runs)
    return Cell(cell.precision, target.graph) if target.graph and absent and _is_repairable(cell) else cell


def _is_repairable(cell: Cell) -> bool:
    return cell.precision in plan.REPAIRABLE


def _admitted(pipeline: Pipeline, draft: Draft, cell: Cell, judgements: tuple[Judgement, ...]) -> Patient | None:
    """Return the patient that an artifact becomes; None where returning layers is no way for it."""
    if not _is_repairable(cell) or _is_well(judgements) or _shortfall(judgements) > 0.0:
        return None
    twin = asked_elsewhere(pipeline, draft, cell, judgements)
    floor = draft.family.budgets[grade_of(cell.precision, "f32")].int8_share or 0.0
    return Patient(judgements, twin, floor, given_up=twin.text if twin.is_better else "")


def _is_well(judgements: tuple[Judgement, ...]) -> bool:
    return not any(_unreached(judgement) for judgement in judgements) and _shortfall(judgements) <= 0.0


def _unreached(judgement: Judgement) -> tuple[GateResult, ...]:
    """Return the drift gates that were not passed."""
    drift = (gate for gate in judgement.gates if gate.kind is GateKind.DRIFT)
    return tuple(gate for gate in drift if gate.verdict in {Verdict.FAIL, Verdict.INCONCLUSIVE})


def _shortfall(judgements: tuple[Judgement, ...]) -> float:
    """Return by how much the share that really ran in 8 bits misses its floor; 0 where it doesn't."""
    gates = [gate for judgement in judgements for gate in judgement.gates if gate.kind is GateKind.EXECUTION]
    return max((gate.bound - gate.value for gate in gates), default=0.0)


def _treated(
    pipeline: Pipeline, draft: Draft, cell: Cell, patient: Patient, judgements: tuple[Judgement, ...]
) -> Patient:
    """Return the patient with other layers returned, or given up."""
    if patient.rounds == MOST_ROUNDS:
        return replace(patient, returned=(), given_up=f"{MOST_ROUNDS} rounds did not suffice")
    missing = _shortfall(judgements)
    if missing > 0.0:  # the runtime runs more in float than was returned: begin again with more to spare
        floor = max(patient.floor, share_left(patient.costs, patient.returned)) + missing
        patient, judgements = replace(patient, floor=floor, returned=()), patient.before
    aims = [aim_of(gate) for judgement in judgements for gate in _unreached(judgement)]
    wanted = [aim for aim in aims if aim is not None]
    if len(wanted) < len(aims):
        return replace(patient, returned=(), given_up="more than rounding is wrong with it")
    costs = patient.costs or _measured(pipeline, draft, cell)
    more = Choice(costs, draft.golden_count, patient.floor).more(patient.returned, wanted)
    if not more:
        reason = f"no further layer helps and leaves {100 * patient.floor:.0f} % of the multiply-adds in 8 bits"
        return replace(patient, costs=costs, returned=(), given_up=reason)
    return replace(patient, costs=costs, returned=(*patient.returned, *more), rounds=patient.rounds + 1)


def share_left(costs: Sequence[Costed], returned: Collection[str]) -> float:
    """Return the share of the multiply-adds that stays in 8 bits where layers, by first outputs, are returned; 0 of none."""
    return sum(entry.layer.macs for entry in costs if entry.layer.node not in returned) / _macs(costs)


def _macs(costs: Iterable[Costed]) -> int:
    """Return the multiply-adds of all layers; 1 where there are none, to divide by."""
    return sum(entry.layer.macs for entry in costs) or 1


def _measured(pipeline: Pipeline, draft: Draft, cell: Cell) -> tuple[Costed, ...]:
    """Measure what each layer of a cell costs."""
    made = draft.judged()
    quantizing = next(node for node in made.nodes if node.id == plan.quantize_id(cell))
    options, hub = quantizing.options, quantizing.inputs["graph"]
    assert isinstance(options, QuantizeOptions), "what that node takes"  # noqa: S101
    layers = cost.layers_of(pipeline.run(made.reaching([hub]))[hub].item, replace(options, kept=()))
    nodes = tuple(_cost_nodes(draft, quantizing, options, layers))
    measuring = made.reaching([*quantizing.inputs.values(), plan.GOLDEN])
    results = pipeline.run(Plan(measuring.given, (*measuring.nodes, *nodes)))
    found = [cost.read(results[node.id].item) for node in nodes[1:]]
    return tuple(Costed(layer, errors) for layer, errors in zip(layers, found, strict=True))


def _cost_nodes(
    draft: Draft, quantizing: Node, options: QuantizeOptions, layers: Sequence[cost.Layer]
) -> Iterator[Node]:
    """Yield the node of what the float32 graph answers, then one per layer."""
    rows = cost.RowsOptions(draft.original.input_name, draft.original.preprocess, cost.IMAGES)
    with_images = draft.request.calibration is not None
    inputs = {"graph": quantizing.inputs["graph"], "golden": plan.GOLDEN}
    inputs |= {"images": plan.CALIBRATION} if with_images else {}
    yield Node(ANSWERS, cost.answers_stage(with_images=with_images), rows, inputs)
    more = {**inputs, "ranges": quantizing.inputs["ranges"], "answers": ANSWERS}
    for number, layer in enumerate(layers, start=1):
        name = f"cost {number}/{len(layers)} {layer.module or layer.node}"
        chosen = cost.CostOptions(replace(options, kept=()), layer.node, rows)
        yield Node(name, cost.cost_stage(with_images=with_images), chosen, more)


@dataclass(frozen=True)
class Aim:
    """What the error has to come down to for a gate to be passed.

    Attributes:
        remaining: Share of the squared error that may remain.
        worst: Of the golden input with the largest error, rather than of the mean over all rows.
    """

    remaining: float
    worst: bool = False

    def of(self, errors: NDArray[np.float64], golden: int) -> float:
        """Return the error that counts, of predicted errors [N], the first `golden` of which are golden inputs."""
        return float(errors[:golden].max() if self.worst else errors.mean())


def aim_of(gate: GateResult) -> Aim | None:
    """Return what passes a gate that was not passed; None where a smaller error wouldn't.

    Noise to signal follows from decibels and, where it is small, from a cosine: 1 - cos = noise / 2. Answers flip about as
    often as the error's deviation is large, so that shares of flips go with its square.
    """
    aim = AIMS[gate.metric](gate) if gate.metric in AIMS else Aim(math.nan)
    return replace(aim, remaining=MARGIN * aim.remaining) if math.isfinite(aim.remaining) else None


def _squared(wanted: float, found: float) -> float:
    return (wanted / found) ** 2 if found > 0.0 else math.nan


#: From a gate that was not passed to what passes it, by metric.
AIMS: Final[Mapping[str, Callable[[GateResult], Aim]]] = {
    "relative_max": lambda gate: Aim(_squared(gate.bound, gate.value), worst=True),
    "sqnr_db": lambda gate: Aim(10 ** ((gate.value - gate.bound) / 10)),
    "cosine": lambda gate: Aim((1 - gate.bound) / (1 - gate.value), worst=True),
    "agreement": lambda gate: Aim(_squared(1 - gate.bound, 1 - gate.lower)),
    "equal": lambda gate: Aim(_squared(1 - gate.bound, 1 - gate.value)),
    "accuracy_drop": lambda gate: Aim(_squared(gate.bound, gate.upper)),
}


@dataclass(frozen=True)
class Choice:
    """What layers may be chosen from.

    Attributes:
        costs: Of every layer that may be int8.
        golden: How many of the rows are golden inputs; they are the first.
        floor: Least share of the multiply-adds in 8 bits.
    """

    costs: Sequence[Costed]
    golden: int
    floor: float

    def more(self, returned: Sequence[str], aims: Sequence[Aim]) -> tuple[str, ...]:
        """Choose which layers to return next, until what remains is predicted to meet every aim.

        In each step the layer goes back that relieves most for its price, which is its share of the multiply-adds and its
        share of the layers: each takes time of its own.

        Args:
            returned: First outputs of those that were returned already.
            aims: What the present error has to come down to.

        Returns:
            First outputs of the layers, in the order of their choice; none where the floor lets none go that helps.
        """
        present = [entry for entry in self.costs if entry.layer.node not in returned]
        limits = [(aim, aim.remaining * self._error(present, aim)) for aim in aims]
        chosen: list[str] = []
        while unmet := [aim for aim, limit in limits if self._error(present, aim) > limit]:
            values = {index: self._value(present, index, unmet) for index in range(len(present))}
            able = {index: value for index, value in values.items() if value > 0.0 and self._may_go(present, index)}
            if not able:
                break
            best = max(able, key=able.__getitem__)
            chosen.append(present.pop(best).layer.node)
        return tuple(chosen)

    def _may_go(self, present: Sequence[Costed], index: int) -> bool:
        left = sum(entry.layer.macs for entry in present) - present[index].layer.macs
        return left >= self.floor * _macs(self.costs)

    def _value(self, present: Sequence[Costed], index: int, unmet: Sequence[Aim]) -> float:
        """Return by how much a layer brings the error nearer to the aims, for its price."""
        price = present[index].layer.macs / _macs(self.costs) + 1 / len(self.costs)
        rest = [entry for entry in present if entry is not present[index]]
        return sum(1 - self._error(rest, aim) / self._error(present, aim) for aim in unmet) / price

    def _error(self, present: Sequence[Costed], aim: Aim) -> float:
        rows = [entry.errors for entry in present]
        return aim.of(np.sum(rows, axis=0), self.golden) if rows else 0.0


def _record(draft: Draft, cell: Cell, patient: Patient, *, own: bool) -> Repair:
    """Describe what was done; `own` tells that the artifact itself was judged, and not the graph that it is built from."""
    macs = _macs(patient.costs)
    error = sum(float(entry.errors.mean()) for entry in patient.costs) or 1.0
    by_node = {entry.layer.node: entry for entry in patient.costs}
    returned = [by_node[node] for node in patient.returned]
    return Repair(
        artifact=plan.artifact_name(draft.original, cell),
        rounds=patient.rounds,
        returned=tuple(
            Returned(entry.layer.module, entry.layer.node, float(entry.errors.mean()) / error, entry.layer.macs / macs)
            for entry in returned
        ),
        before=_metrics(patient.before),
        elsewhere=patient.twin.text,
        given_up=patient.given_up,
        after=None if own else _metrics(patient.after),
    )


def _metrics(judgements: Iterable[Judgement]) -> Mapping[str, Mapping[str, float]]:
    return {judgement.run.label: dict(judgement.metrics) for judgement in judgements}
