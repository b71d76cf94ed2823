"""Manifest: the whole story of a bundle, as one JSON file with a versioned, published schema.

The schema is `schema/manifest.v1.schema.json` beside this file. The manifest seals itself: `seal` is the SHA-256 of the
canonical bytes of everything else, and the file must be exactly what this module writes, so that one changed byte anywhere
is noticed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit import serde, texts
from deploykit.artifact import Artifact, Axis, FileRecord, Preprocess, TensorSpec
from deploykit.errors import BadInputError, Hint
from deploykit.serde import LATER
from deploykit.verdict import Budget, Judgement, Refusal, Repair, Timing

VERSION = 1
FILE = "manifest.json"
#: Values that an input may have at the sizes that a bundle is judged at.
MOST_VALUES = 1 << 28
#: Bytes that a manifest may have.
LARGEST = 1 << 26


@dataclass(frozen=True)
class SourceRecord:
    """The PyTorch original: what opens it again, its family, task, size and hashes."""

    id: str
    locator: str
    family: str
    task: str
    parameters: int
    weights_sha256: str
    digest: str

    def __post_init__(self) -> None:
        for name in (self.id, self.family, self.task):
            if reason := texts.name_fault(name):
                raise BadInputError(f"{texts.one_line(name)[:80]!r} is no name: {reason}")


@dataclass(frozen=True)
class StageRecord:
    """One node of the plan as it was run.

    Attributes:
        node: Its name in the plan.
        stage: Name of the stage.
        version: Version of the stage's code.
        options: What it was asked.
        inputs: Content hash of each input, by role.
        output: Content hash of what it made.
        libraries: Versions of those that did the work.
        facts: What it noted: node counts, errors measured.
        seconds: How long the work took, when it was done.
        cached: Whether this export took it from the cache.
    """

    node: str
    stage: str
    version: int
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    output: str
    libraries: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float
    cached: bool

    def __post_init__(self) -> None:
        for name in (self.node, self.stage):
            if texts.one_line(name) != name:
                raise BadInputError(f"{texts.one_line(name)[:80]!r} is no name: it holds characters that aren't seen")


@dataclass(frozen=True)
class Machine:
    """Where it was made."""

    os: str
    arch: str
    cpu: str
    cores: int
    flags: tuple[str, ...]
    python: str

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        cpu, flags = _cpu()
        return cls(
            os=f"{platform.system()} {platform.release()}",
            arch=platform.machine(),
            cpu=cpu,
            cores=os.cpu_count() or 1,
            flags=flags,
            python=platform.python_version(),
        )


#: Processor features that decide how fast and how exactly a network runs.
CPU_FLAGS = (
    "sse4_1",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
)


def _cpu() -> tuple[str, tuple[str, ...]]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, tuple(flag for flag in CPU_FLAGS if flag in words)


@dataclass(frozen=True)
class GoldenRecord:
    """Golden inputs and outputs: safe .npz files whose arrays are named after tensors, rows first.

    Attributes:
        count: Number of inputs.
        images: What they were taken from: an image set, or a model's own trajectories.
        inputs: The inputs.
        references: Outputs by who computed them: "original", "hub".
        further: What else the original is compared by: "sizes", its outputs for inputs of other sizes; "rollout", what it
            makes of its own outputs; "faults", what graphs that were made wrong answer. None where there is nothing.
    """

    count: int
    images: str
    inputs: FileRecord
    references: Mapping[str, FileRecord]
    further: Mapping[str, FileRecord] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class EvaluationRecord:
    """The labelled images that the task gates were judged on.

    Attributes:
        images: Name of the set.
        count: Number of images.
        crops_sha256: Hash of the prepared pixels, uint8 [N, height, width, 3]: who prepares others can't use `answers`.
        answers: A .npz with the original's `top1` int64 [N] and `margin` float32 [N], and the `labels` int64 [N].
    """

    images: str
    count: int
    crops_sha256: str
    answers: FileRecord


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says of itself.

    Attributes:
        manifest_version: Of the schema.
        deploykit: Version that wrote it.
        created: UTC, ISO 8601.
        command: The command line that makes it again.
        source: The original.
        preprocess: From image to input; None where the original takes no images.
        labels: Class names by index.
        axes: Dynamic axes by name, with the size that each was traced at.
        budgets: Bounds by the precision that a run computes in.
        stages: The plan as it was run.
        artifacts: The deployable files.
        modules: The map from graph nodes to nn.Module paths.
        golden: Fixed inputs and reference outputs.
        evaluation: Labelled images, where there were any.
        judgements: Verdicts, one per artifact and RunConfig.
        timings: Latencies.
        machine: Where it was made.
        libraries: Versions of the runtimes and tools that were there.
        seal: SHA-256 of all the others.
        repairs: What was done so that artifacts pass; None where nothing had to be.
        refused: What was asked for and can't be made; None where all could.
    """

    manifest_version: int
    deploykit: str
    created: str
    command: str
    source: SourceRecord
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    axes: Mapping[str, int]
    budgets: Mapping[str, Budget]
    stages: tuple[StageRecord, ...]
    artifacts: tuple[Artifact, ...]
    modules: FileRecord
    golden: GoldenRecord
    evaluation: EvaluationRecord | None
    judgements: tuple[Judgement, ...]
    timings: tuple[Timing, ...]
    machine: Machine
    libraries: Mapping[str, str]
    seal: str = ""
    repairs: tuple[Repair, ...] | None = field(default=None, metadata=LATER)
    refused: tuple[Refusal, ...] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        for artifact in self.artifacts:
            if not (artifact.files and artifact.inputs and artifact.outputs):
                raise BadInputError(f"{artifact.name} has no file, takes nothing or answers nothing")
            for spec in artifact.inputs:
                self._check_size(artifact, spec)

    def _check_size(self, artifact: Artifact, spec: TensorSpec) -> None:
        """Refuse sizes for which a judge would make more values than any golden input has."""
        sizes = [dim if isinstance(dim, int) else self.axes.get(dim.name, dim.min) for dim in spec.shape]
        inner = {dim.name for dim in spec.shape[1:] if isinstance(dim, Axis)}
        rows = max([*sizes[:1], *(size for name, size in self.axes.items() if name not in inner)], default=1)
        if min([*sizes, *self.axes.values()], default=1) < 1 or rows * math.prod(sizes[1:]) > MOST_VALUES:
            raise BadInputError(
                f"{artifact.name} would take {spec.name!r} of {spec.text} with axes {dict(self.axes)}: "
                f"that is below 1, or more than {MOST_VALUES:,} values"
            )

    @property
    def files(self) -> Iterator[FileRecord]:
        """Every file of the bundle but the manifest."""
        for artifact in self.artifacts:
            yield from artifact.files
        yield self.modules
        yield self.golden.inputs
        yield from self.golden.references.values()
        yield from (self.golden.further or {}).values()
        if self.evaluation is not None:
            yield self.evaluation.answers

    @property
    def notes(self) -> tuple[str, ...]:
        """What stages noted for people to know."""
        noted = [found for stage in self.stages if isinstance(found := stage.facts.get("notes"), list)]
        return tuple(str(note) for notes in noted for note in notes)

    def sealed(self) -> Manifest:
        """Return this manifest as a reader will find it, with its seal."""
        plain = serde.from_json(Manifest, serde.to_json(dataclasses.replace(self, seal="")))
        return dataclasses.replace(plain, seal=serde.digest(plain))

    def to_bytes(self) -> bytes:
        """Return the bytes of the file: JSON for people, in one fixed form."""
        return (json.dumps(serde.to_json(self), indent=2, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def parse(data: bytes, where: str = FILE) -> Manifest:
    """Read and check a manifest.

    Raises:
        BadInputError: Not JSON, newer than this version reads, not of the schema, or changed after it was sealed.
    """
    try:
        value = serde.parse(data)
    except ValueError as error:
        raise BadInputError(f"{where} is no JSON: {error}") from error
    version = value.get("manifest_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise BadInputError(
            f"{where} has manifest version {version}; this deploykit reads up to {VERSION}",
            Hint("pip install --upgrade deploykit"),
        )
    manifest = serde.from_json(Manifest, value, where)
    if manifest.manifest_version != VERSION:
        raise BadInputError(f"{where} has manifest version {manifest.manifest_version}, which never was")
    if manifest.sealed().seal != manifest.seal or manifest.to_bytes() != data:
        raise BadInputError(f"{where} was changed after it was written: its seal doesn't match")
    return manifest
