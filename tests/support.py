"""What several test files share: a complete manifest made by hand, and a small stage that appends to a text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact, Axis, FileRecord, Preprocess, RunConfig, TensorSpec
from deploykit.export.cache import Made
from deploykit.export.pipeline import Silent
from deploykit.export.stage import Facts, Inputs, Item, Node, Plan, Stage, Workspace
from deploykit.manifest import EvaluationRecord, GoldenRecord, Machine, Manifest, SourceRecord, StageRecord
from deploykit.verdict import Budget, GateKind, GateResult, Judgement, Ran, Ratio, Timing, Verdict

RUN = RunConfig("onnxruntime", precision="f32", threads=1, hints={"session.intra_op.allow_spinning": "0"})
RAN = Ran("onnxruntime", "1.2.3", "CPUExecutionProvider", "f32", 1)
RECIPE = Preprocess((3, 16, 16), "bicubic", 0.875, "center", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
#: Labelled images that the fixture `exported` is judged on: enough to tell a loss of 1 % of accuracy from a few flips.
EVAL_SIZE = 1000
WHEN = "2025-01-02T03:04:05+00:00"


def record(path: str, content: bytes = b"content") -> FileRecord:
    """Return what a file of these bytes must be recorded as."""
    return FileRecord(path, len(content), hashlib.sha256(content).hexdigest())


def gate(
    kind: GateKind = GateKind.DRIFT, verdict: Verdict = Verdict.PASS, *, value: float = 1e-6, reason: str = ""
) -> GateResult:
    return GateResult(
        kind=kind,
        metric="relative_max",
        reference="original",
        value=value,
        lower=value,
        upper=value,
        bound=1e-4,
        higher_is_better=False,
        n=4,
        verdict=verdict,
        reason=reason,
    )


def judgement(verdict: Verdict, *gates: GateResult, not_run: tuple[str, ...] = (), reason: str = "") -> Judgement:
    return Judgement("net.fp32.ort", RUN, RAN, gates, {"relative_max": 1e-6}, verdict, reason, not_run, WHEN)


def timing() -> Timing:
    return Timing(
        candidate="net.fp32.ort",
        run=RUN,
        ran=RAN,
        batch=1,
        median_ms=2.5,
        median_lower_ms=2.25,
        median_upper_ms=2.75,
        p90_ms=3.0,
        p99_ms=3.5,
        min_ms=2.0,
        n=50,
        rounds=10,
        warmup=5,
        speedup=Ratio(median=2.0, lower=1.5, upper=2.5, rounds=10),
        measured_at=WHEN,
    )


@dataclass(frozen=True)
class Files:
    """The files that a manifest names."""

    model: tuple[FileRecord, ...]
    modules: FileRecord
    inputs: FileRecord
    original: FileRecord
    answers: FileRecord | None


FILES = Files(
    (record("net.fp32.onnx"),),
    record("modules.json"),
    record("golden/inputs.npz"),
    record("golden/original.npz"),
    record("golden/answers.npz"),
)
#: The same without labelled images.
UNLABELLED = dataclasses.replace(FILES, answers=None)


def manifest(files: Files = FILES, *, digest: str = "d" * 64, facts: Mapping[str, object] | None = None) -> Manifest:
    """Return a sealed manifest in which every kind of record occurs."""
    batch = Axis("batch", 1, 1, 8)
    return Manifest(
        manifest_version=1,
        deploykit="0.1.0",
        created=WHEN,
        command="deploykit export net --fp32 --ort",
        source=SourceRecord("net", "timm:net", "family", "logits", 1234, "a" * 64, digest),
        preprocess=RECIPE,
        labels=("cat", "dög"),
        axes={"batch": 2},
        budgets={"f32": Budget(relative_max=1e-4, untied_flips=0)},
        stages=(
            StageRecord(
                node="trace",
                stage="trace",
                version=1,
                options={"opset": 20, "dynamic": ["batch"]},
                inputs={"original": "b" * 64},
                output="c" * 64,
                libraries={"torch": "2.8.0"},
                facts=dict(facts or {"nodes": 12}),
                seconds=1.5,
                cached=False,
            ),
        ),
        artifacts=(
            Artifact(
                name="net.fp32.ort",
                format="onnx",
                precision="fp32",
                target="ort",
                inputs=(TensorSpec("input", "float32", (batch, 3, 16, 16)),),
                outputs=(TensorSpec("logits", "float32", (batch, 2)),),
                files=files.model,
                parent="e" * 64,
                runs=(RUN,),
            ),
        ),
        modules=files.modules,
        golden=GoldenRecord(4, "rendered:calib", files.inputs, {"original": files.original}),
        evaluation=EvaluationRecord("rendered:test", 100, "f" * 64, files.answers) if files.answers else None,
        judgements=(judgement(Verdict.PASS, gate()),),
        timings=(timing(),),
        machine=Machine("Linux 6", "x86_64", "A CPU", 4, ("avx2",), "3.11.7"),
        libraries={"numpy": "2.0.0"},
    ).sealed()


@dataclass(frozen=True)
class Suffix:
    """What is written after the input's text."""

    text: str = "!"


def append(inputs: Inputs, options: Suffix, workspace: Workspace) -> Facts:
    """Write the input's text and the suffix; note how long that is."""
    text = inputs["text"].path("t.txt").read_text(encoding="utf-8") + options.text
    (workspace.folder / "t.txt").write_text(text, encoding="utf-8")
    workspace.progress(1, 2)
    return {"length": len(text)}


STAGE: Stage[Suffix] = Stage("append", 1, {"text": "text"}, "text", (), append)


def stage(run: Callable[[Inputs, Any, Workspace], Facts]) -> Stage[Any]:
    return dataclasses.replace(STAGE, run=run)


def given_item(root: Path, text: str = "a") -> Item:
    root.mkdir(exist_ok=True)
    (root / "t.txt").write_text(text, encoding="utf-8")
    return Item("text", root, (FileRecord.of(root, "t.txt"),))


def chain(source: Item, *suffixes: str, of: Stage[Any] = STAGE) -> Plan:
    """Plan nodes "n0", "n1", ... each of which takes what the one before made."""
    nodes = [
        Node(f"n{index}", of, Suffix(text), {"text": f"n{index - 1}" if index else "source"})
        for index, text in enumerate(suffixes)
    ]
    return Plan({"source": source}, tuple(nodes))


class Log(Silent):
    """Remembers which nodes ran and which were finished how."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.cached: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def started(self, node: Node) -> None:
        self.ran.append(node.id)

    def progressed(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def finished(self, node: Node, made: Made) -> None:
        if made.cached:
            self.cached.append(node.id)
