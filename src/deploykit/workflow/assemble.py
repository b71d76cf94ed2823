"""From the results of a plan to a committed bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np

from deploykit import optional
from deploykit.artifact import Artifact, Axis, FileRecord
from deploykit.bundle import Bundle, BundleWriter, Placement, load_tensors
from deploykit.export import onnx_files, reference
from deploykit.export import plan as plans
from deploykit.export.cache import Made
from deploykit.export.pipeline import record_of
from deploykit.export.probe import get_probe
from deploykit.export.request import Cell
from deploykit.export.stage import TENSORS, Item, Plan
from deploykit.export.target import Target, get_target
from deploykit.manifest import VERSION, EvaluationRecord, GoldenRecord, Machine, Manifest, SourceRecord, StageRecord
from deploykit.models.original import Original
from deploykit.runtime import power, processors
from deploykit.runtime.golden import HUB, ORIGINAL
from deploykit.runtime.rollout import FURTHER
from deploykit.verdict import Refusal, Repair
from deploykit.workflow import measure


@dataclass(frozen=True)
class Story:
    """What the manifest tells beside the results.

    Attributes:
        original: What was exported.
        plan: What was run.
        cells: What was made.
        axes: Dynamic axes, with the size that each was traced at.
        bounds: By target, the dynamic axes with their bounds.
        command: The command line that asks for it.
        repairs: What was done so that artifacts pass.
        refused: What was asked for and can't be made.
    """

    original: Original
    plan: Plan
    cells: tuple[Cell, ...]
    axes: Mapping[str, int]
    bounds: Mapping[str, Mapping[str, Axis]]
    command: str
    repairs: tuple[Repair, ...] = ()
    refused: tuple[Refusal, ...] = ()


class Assembly:
    """Gathers the files of a bundle and writes its manifest."""

    def __init__(self, story: Story, results: Mapping[str, Made], writer: BundleWriter) -> None:
        self.story = story
        self.results = results
        self.writer = writer
        self.items: dict[str, Item] = {name: made.item for name, made in results.items()}
        self.hub = self.items[plans.hub_of(story.plan)]
        self.placements: list[Placement] = []

    def put(self, stem: str, files: Mapping[str, Path]) -> tuple[FileRecord, ...]:
        """Name files that share a stem; return their records in the order given."""
        placed = self.writer.place(stem, files)
        self.placements.extend(placed)
        return tuple(placement.record for placement in placed)

    def artifacts(self) -> Iterator[Artifact]:
        """Yield each cell's artifact, its files named and its interface read from the graph."""
        story = self.story
        graph = onnx_files.load(self.hub.path(onnx_files.MODEL)).graph
        parents = {node.id: node.inputs.get("graph", "") for node in story.plan.nodes}
        for cell in story.cells:
            target, name = get_target(cell.target), plans.artifact_name(story.original, cell)
            axes = story.bounds[cell.target]
            stem = plans.stem_of(story.original, cell)
            yield Artifact(
                name=name,
                format=target.format,
                precision=cell.precision,
                target=target.name,
                inputs=onnx_files.specs(graph.input, axes),
                outputs=onnx_files.specs(graph.output, axes),
                files=self.artifact_files(self.items[name], stem, target),
                parent=self.items[parents[name]].digest,
                runs=target.runs[cell.precision],
                processors=tuple(one.name for one in processors.named(cell.processors)) or None,
            )

    def artifact_files(self, item: Item, stem: str, target: Target) -> tuple[FileRecord, ...]:
        """Name an artifact's files: those that share its stem, then those that they refer to by name."""
        stemmed = {ending: item.path(f"{stem}{ending}") for ending in target.endings}
        named = [record.path for record in item.files if item.root / record.path not in stemmed.values()]
        placed = [self.writer.place_named(name, item.path(name)) for name in named]
        self.placements.extend(placed)
        return (*self.put(stem, stemmed), *(placement.record for placement in placed))

    def golden(self) -> GoldenRecord:
        """Name the golden tensors."""
        made = {"inputs": plans.GOLDEN, ORIGINAL: plans.GOLDEN_OUTPUTS, HUB: plans.HUB_OUTPUTS}
        records = {
            role: self.put(f"golden/{role}", {".npz": self.items[node].path(TENSORS)})[0] for role, node in made.items()
        }
        golden = self.items[plans.GOLDEN]
        further = {
            role: self.put(f"golden/{role}", {".npz": golden.path(name)})[0]
            for role, name in FURTHER.items()
            if golden.has(name)
        }
        faults = self.items[plans.FAULTS].path(power.FILE)
        further |= {power.ROLE: self.put(f"golden/{power.ROLE}", {".npz": faults})[0]}
        count = len(next(iter(load_tensors(golden.path(TENSORS)).values())))
        taken = get_probe(self.story.original.takes.probe).described(self.set_of(plans.GOLDEN_IMAGES), count)
        return GoldenRecord(count, taken, records.pop("inputs"), records, further)

    def set_of(self, node: str) -> str:
        """Return the name of the images that a node was asked for, "" where there is no such node.

        Not what the node's item noted: that may have been made of the same pixels under another name.
        """
        options = next((each.options for each in self.story.plan.nodes if each.id == node), None)
        return options.images if isinstance(options, reference.ImagesOptions) else ""

    def evaluation(self) -> EvaluationRecord | None:
        """Name the original's answers, where there were labelled images."""
        if plans.ANSWERS not in self.items:
            return None
        images = self.items[plans.EVALUATION]
        crops = np.load(images.path(reference.CROPS), mmap_mode="r")
        (record,) = self.put("golden/answers", {".npz": self.items[plans.ANSWERS].path(reference.ANSWERS)})
        return EvaluationRecord(
            self.set_of(plans.EVALUATION), len(crops), hashlib.sha256(crops.tobytes()).hexdigest(), record
        )

    def stages(self) -> Iterator[StageRecord]:
        """Yield what is on record of each node."""
        digests = {name: item.digest for name, item in {**self.story.plan.given, **self.items}.items()}
        for node in self.story.plan.nodes:
            yield record_of(node, self.results[node.id], digests)

    def manifest(self) -> Manifest:
        """Write the whole story, sealed."""
        original = self.story.original
        measured = [self.items[node.id] for node in self.story.plan.nodes]
        timings = [timing for item in measured if item.kind == "timings" for timing in measure.read_timings(item)]
        return Manifest(
            manifest_version=VERSION,
            deploykit=metadata.version("deploykit"),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self.story.command,
            source=SourceRecord(
                id=original.id,
                locator=original.locator,
                family=original.family,
                task=original.task,
                parameters=original.parameters,
                weights_sha256=original.weights_sha256,
                digest=original.digest,
            ),
            preprocess=original.preprocess,
            labels=original.labels,
            axes=self.story.axes,
            budgets=original.budgets,
            stages=tuple(self.stages()),
            artifacts=tuple(self.artifacts()),
            modules=self.put("modules", {".json": self.hub.path(onnx_files.MODULES)})[0],
            golden=self.golden(),
            evaluation=self.evaluation(),
            judgements=tuple(measure.read_judgement(item) for item in measured if item.kind == "judgement"),
            timings=tuple(timings),
            machine=Machine.here(),
            libraries=optional.installed(),
            repairs=self.story.repairs or None,
            refused=self.story.refused or None,
        ).sealed()


def assemble(story: Story, results: Mapping[str, Made], writer: BundleWriter) -> Bundle:
    """Name the files of a plan's results and commit them with their manifest.

    Raises:
        ResourceError: The disk is full or the folder can't be written.
    """
    assembly = Assembly(story, results, writer)
    manifest = assembly.manifest()
    return writer.commit(assembly.placements, manifest)
