"""Judging and timing as plan nodes: they cache, record and parallelise as every other stage does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from deploykit import serde
from deploykit.artifact import Preprocess, RunConfig
from deploykit.bundle import load_tensors
from deploykit.errors import UnsupportedError
from deploykit.export.probe import golden_of
from deploykit.export.reference import ANSWERS, CROPS
from deploykit.export.stage import TENSORS, Facts, Inputs, Item, Stage, Workspace
from deploykit.manifest import Machine
from deploykit.models import sources
from deploykit.models.original import FORMS, Original
from deploykit.runtime import judge, power
from deploykit.runtime.arithmetic import judge_file
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.batches import load_outputs
from deploykit.runtime.drift import Answers
from deploykit.runtime.golden import HUB, ORIGINAL, Golden
from deploykit.runtime.latency import BenchOptions, Candidate
from deploykit.runtime.power import load_faults
from deploykit.verdict import Budget, Judgement, Timing
from deploykit.workflow.bench import time_beside_original

JUDGEMENT, TIMINGS = "judgement.json", "timings.json"

T = TypeVar("T")


@dataclass(frozen=True)
class JudgeOptions:
    """How an artifact is judged.

    Attributes:
        artifact: Its name.
        file: Its main file.
        run: How it is run.
        budgets: Bounds by grade; see `deploykit.verdict.GRADES`.
        precision: Of the artifact.
        axes: Dynamic axes and the sizes that they were traced at.
        preprocess: How crops become inputs; None where the original takes no images.
        machine: Where: a verdict is not carried from one machine to another.
        place: What that machine has for the run's device.
        away: Why it isn't judged on this machine; "" where it is.
    """

    artifact: str
    file: str
    run: RunConfig
    budgets: Mapping[str, Budget]
    precision: str
    axes: Mapping[str, int]
    preprocess: Preprocess | None
    machine: Machine
    place: str
    away: str = ""


def _judge(inputs: Inputs, options: JudgeOptions, workspace: Workspace) -> Facts:
    if options.away:
        return _write(judge.not_run(options.artifact, options.run, options.away), workspace)
    references = {name: load_outputs(inputs[name].path(TENSORS)) for name in (ORIGINAL, HUB)}
    evaluation = None
    if "images" in inputs and options.preprocess is not None:
        answers = Answers(**load_tensors(inputs["answers"].path(ANSWERS)))
        crops = np.load(inputs["images"].path(CROPS), mmap_mode="r")
        evaluation = judge.Evaluation(crops, answers, options.preprocess)
    brief = judge.Brief(
        golden=replace(
            golden_of(inputs["golden"], references), faults=load_faults(inputs[power.ROLE].path(power.FILE))
        ),
        budgets=options.budgets,
        axes=options.axes,
        evaluation=evaluation,
        precision=options.precision,
    )
    path = inputs["artifact"].path(options.file)
    found = judge_file(options.artifact, path, options.run, brief, workspace.progress)
    return _write(found, workspace)


def _write(found: Judgement, workspace: Workspace) -> Facts:
    (workspace.folder / JUDGEMENT).write_text(json.dumps(serde.to_json(found)), encoding="utf-8")
    return {"verdict": found.verdict.value}


_NUMERIC = {"artifact": "artifact", "golden": "tensors", ORIGINAL: "tensors", HUB: "tensors", power.ROLE: "tensors"}


def judge_stage(run: RunConfig, *, with_images: bool) -> Stage[JudgeOptions]:
    """Return the stage that judges in this RunConfig, with labelled images or without."""
    takes = {**_NUMERIC, "images": "images", "answers": "answers"} if with_images else _NUMERIC
    return Stage("judge", 8, takes, "judgement", (get_backend(run.backend).module,), _judge)


@dataclass(frozen=True)
class TimeOptions:
    """What is timed, and how.

    Attributes:
        candidates: Artifact name, main file and RunConfig of each; the original comes on top.
        bench: Rounds, bursts, warm-up, threads.
        machine: Where.
        places: What that machine has for the device of each candidate.
    """

    candidates: tuple[tuple[str, str, RunConfig], ...]
    bench: BenchOptions
    machine: Machine
    places: tuple[str, ...]


def _time(inputs: Inputs, options: TimeOptions, workspace: Workspace) -> Facts:
    golden = Golden(load_tensors(inputs["golden"].path(TENSORS)), {})
    files = [Candidate(name, str(inputs[name].path(file)), run) for name, file, run in options.candidates]
    timings = time_beside_original(
        sources.located(inputs["original"].identity), files, golden, options.bench, workspace.progress, _refuse
    )
    (workspace.folder / TIMINGS).write_text(json.dumps(serde.to_json(timings)), encoding="utf-8")
    return {"candidates": len(timings)}


def _refuse(candidate: Candidate, error: UnsupportedError) -> None:
    """Say that the artifact is refused, rather than timing."""
    error.node = candidate.name
    raise error


def time_stage(original: Original, candidates: tuple[tuple[str, str, RunConfig], ...]) -> Stage[TimeOptions]:
    """Return the stage that times these candidates beside the original."""
    takes = {"original": "original", "golden": "tensors", **{name: "artifact" for name, _, _ in candidates}}
    modules = sorted(
        {get_backend(run.backend).module for _, _, run in candidates} | set(FORMS[original.form].libraries)
    )
    return Stage("bench", 1, takes, "timings", tuple(modules), _time)


def read_judgement(item: Item) -> Judgement:
    """Read what a judge node wrote."""
    return serde.from_json(Judgement, json.loads(item.path(JUDGEMENT).read_bytes()))


def read_timings(item: Item) -> tuple[Timing, ...]:
    """Read what a bench node wrote."""
    data = json.loads(item.path(TIMINGS).read_bytes())
    return tuple(serde.from_json(Timing, entry) for entry in data)
