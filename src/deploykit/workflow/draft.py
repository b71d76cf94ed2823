"""Draft: a request as a plan with its measurements, and how it changes when layers return to the higher precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from deploykit.artifact import Axis, RunConfig
from deploykit.export import plan
from deploykit.export.request import Cell, Request
from deploykit.export.stage import Node, Plan
from deploykit.export.target import Target
from deploykit.manifest import Machine
from deploykit.models.family import Family
from deploykit.models.original import Original
from deploykit.runtime import power, processors
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.golden import HUB, ORIGINAL
from deploykit.workflow import measure
from deploykit.workflow.bench import is_timed
from deploykit.workflow.options import ExportOptions

BENCH = "bench"


def judge_id(artifact: str, run: str) -> str:
    """Return the id of the node that judges `artifact` in the RunConfig labelled `run`."""
    return f"judge {artifact} ({run})"


@dataclass(frozen=True)
class Draft:
    """What is to be made and measured.

    Attributes:
        original: What is exported.
        request: Cells, shapes, images.
        options: What the caller chose.
    """

    original: Original
    request: Request
    options: ExportOptions

    @cached_property
    def _checked(self) -> tuple[Family, Mapping[Cell, Target]]:
        return plan.check_request(self.original, self.request)

    @property
    def family(self) -> Family:
        """The original's."""
        return self._checked[0]

    @property
    def targets(self) -> Mapping[Cell, Target]:
        """Each cell's."""
        return self._checked[1]

    @property
    def axes(self) -> Mapping[str, int]:
        """Dynamic axes, with the size that each is traced at."""
        return {name: self.family.axes[name].traced for name in self.request.dynamic}

    @property
    def bounds(self) -> Mapping[str, Mapping[str, Axis]]:
        """By target, the dynamic axes with their bounds."""
        return {target.name: plan.axes_of(self.original, self.request, target) for target in self.targets.values()}

    @property
    def golden_count(self) -> int:
        """How many golden inputs there are."""
        golden = self.request.golden
        return self.options.golden_size if golden is None or golden.count is None else golden.count

    def keeping(self, kept: Mapping[Cell, tuple[str, ...]]) -> Draft:
        """Return the draft in which these layers of each cell stay in the higher precision."""
        return replace(self, request=replace(self.request, kept=kept))

    def including(self, cells: Iterable[Cell]) -> Draft:
        """Return the draft that makes these cells as well."""
        return replace(self, request=replace(self.request, cells=tuple(dict.fromkeys([*self.request.cells, *cells]))))

    def only(self, cells: Iterable[Cell]) -> Draft:
        """Return the draft that makes these cells alone; what only the others made use of is not asked for any more."""
        chosen = tuple(cells)
        targets = [self.targets[cell] for cell in chosen]
        request = self.request
        return replace(
            self,
            request=replace(
                request,
                cells=chosen,
                profiles=request.profiles if any(target.bounded for target in targets) else {},
                capabilities=request.capabilities if any(target.capabilities for target in targets) else (),
            ),
        )

    def whole(self) -> Plan:
        """Return the whole plan: graphs, artifacts, judgements, timings."""
        judged = self.judged()
        timed = self._timed()
        bench = (self._bench_node(timed),) if self.options.bench and timed else ()
        return Plan(judged.given, (*judged.nodes, *bench))

    def judged(self) -> Plan:
        """Return the plan without timings."""
        made = plan.make_plan(self.original, self.request, self.golden_count)
        return Plan(made.given, (*made.nodes, *(self._judge_nodes() if self.options.verify else ())))

    def judge_ids(self, cell: Cell) -> tuple[str, ...]:
        """Return the ids of the nodes that judge a cell's artifact."""
        name = plan.artifact_name(self.original, cell)
        return tuple(judge_id(name, run.label) for run in self.targets[cell].runs[cell.precision])

    def _judge_nodes(self) -> Iterator[Node]:
        """Yield a node per artifact and RunConfig."""
        request, machine = self.request, Machine.here()
        for cell, name, file, run in self._runs():
            inputs = {
                "artifact": name,
                "golden": plan.GOLDEN,
                ORIGINAL: plan.GOLDEN_OUTPUTS,
                HUB: plan.HUB_OUTPUTS,
                power.ROLE: plan.FAULTS,
            }
            if request.evaluation is not None:
                inputs |= {"images": plan.EVALUATION, "answers": plan.ANSWERS}
            options = measure.JudgeOptions(
                artifact=name,
                file=file,
                run=run,
                budgets=self.original.budgets,
                precision=cell.precision,
                axes=self.axes,
                preprocess=self.original.preprocess,
                machine=machine,
                place=get_backend(run.backend).place(run),
                away=processors.excluded([one.name for one in processors.named(cell.processors)], run.backend),
            )
            stage = measure.judge_stage(run, with_images=request.evaluation is not None)
            yield Node(judge_id(name, run.label), stage, options, inputs)

    def _timed(self) -> tuple[tuple[str, str, RunConfig], ...]:
        """Return what can be timed on this machine: artifact, main file and RunConfig of each."""
        return tuple((name, file, run) for _, name, file, run in self._runs() if is_timed(run))

    def _bench_node(self, candidates: tuple[tuple[str, str, RunConfig], ...]) -> Node:
        """Return the node that times artifacts beside the original."""
        bench = replace(self.options.bench_options, batch=self.options.batch)
        inputs = {
            plan.ORIGINAL: plan.ORIGINAL,
            "golden": plan.GOLDEN,
            **{name: name for name, _, _ in candidates},
        }
        stage = measure.time_stage(self.original, candidates)
        places = tuple(get_backend(run.backend).place(run) for _, _, run in candidates)
        return Node(BENCH, stage, measure.TimeOptions(candidates, bench, Machine.here(), places), inputs)

    def _runs(self) -> Iterator[tuple[Cell, str, str, RunConfig]]:
        """Yield each way in which an artifact is run: its cell, its name, its main file and the RunConfig."""
        for cell, target in self.targets.items():
            name = plan.artifact_name(self.original, cell)
            file = plan.stem_of(self.original, cell) + target.endings[0]
            for run in target.runs[cell.precision]:
                yield cell, name, file, run
