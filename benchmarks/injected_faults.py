"""Are wrong artifacts caught? Faults injected into artifacts, judged on golden inputs, and what they do to other inputs.

    python benchmarks/injected_faults.py [MODEL ...] [--out docs/results/injected_faults.md]

Each network is exported to ONNX in float32 and float16. In twelve layers of each file one tensor at a time is made wrong,
and the file is judged as `verify` does, without labelled images. What the fault does is measured apart, on 64 images that no
golden input is among: it counts where the SQNR there is worse than the budget. The full-size networks have seeded weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

import deploykit
from deploykit.artifact import Artifact
from deploykit.bundle import Bundle
from deploykit.data.imageset import prepare_crops, rendered_images
from deploykit.data.preprocess import normalize
from deploykit.export import injected_faults, onnx_files
from deploykit.export.injected_faults import Change
from deploykit.manifest import Machine
from deploykit.models import sources
from deploykit.models.family import get_family
from deploykit.models.original import Original, SourceOptions
from deploykit.models.source_tiny import tiny_names
from deploykit.runtime import drift, judge
from deploykit.runtime.backends.base import Tensors, get_backend
from deploykit.runtime.batches import run_rows
from deploykit.runtime.golden import Golden
from deploykit.verdict import GRADE_OF, Judgement, Verdict
from deploykit.workflow.options import rendered_size
from deploykit.workflow.verify import golden_of

LARGE: Final = ("resnet18", "convnext_atto")
CELLS: Final = ("fp32:ort", "fp16:ort")
#: By precision, how ONNX calls the type of the weights.
WEIGHTS: Final = {"fp32": "FLOAT", "fp16": "FLOAT16"}
OTHERS: Final = 64


@dataclass(frozen=True)
class Row:
    """What became of the faults in one artifact.

    Attributes:
        network: Its name.
        precision: Of the artifact.
        unchanged: The verdict before anything was changed.
        faults: How many were injected.
        effective: Those whose effect on other inputs exceeds the budget.
        caught: Those of them that are no pass.
        missed: What was not caught, with the SQNR on other inputs.
        power: The share of 5 % weight faults, and of misplaced channels, that the verdict says it catches.
    """

    network: str
    precision: str
    unchanged: str
    faults: int
    effective: int
    caught: int
    missed: tuple[str, ...]
    power: tuple[float, float]

    @property
    def text(self) -> str:
        """The row of the table."""
        small, gross = (f"{100 * share:.0f}" for share in self.power)
        cells = (self.network, self.precision, self.unchanged, self.faults, self.effective, self.caught, small, gross)
        return f"| {' | '.join(map(str, cells))} |"


def others_of(original: Original, golden: Golden) -> dict[str, Any]:
    """Return inputs that no golden input is among: other images, or of a diffusion model other pairs of noise and prompt."""
    if original.preprocess is None:
        assert golden.rollout is not None
        carried = golden.rollout.carried
        return {**golden.inputs, carried: np.ascontiguousarray(golden.inputs[carried][..., ::-1])}
    images = rendered_images("rendered:test", OTHERS, rendered_size(original.recipe))
    return {original.input_name: normalize(prepare_crops(images, original.recipe), original.recipe)}


class Subject:
    """An artifact that faults are injected into."""

    def __init__(self, bundle: Bundle, artifact: Artifact, original: Original, folder: Path) -> None:
        self.artifact, self.run = artifact, artifact.runs[0]
        golden = golden_of(bundle)
        budgets = get_family(original.family).budgets
        self.brief = judge.Brief(golden, budgets, precision=artifact.precision)
        self.budget = budgets[GRADE_OF[artifact.precision]]
        self.path = folder / artifact.main.path
        self.model = onnx_files.load_whole(bundle.root / artifact.main.path)
        self.others = others_of(original, golden)
        with sources.open_original(original) as session:
            self.expected = run_rows(session, self.others, 1 if golden.rollout else 8)

    def judged(self, model: onnx.ModelProto, brief: judge.Brief) -> Judgement:
        """Judge a file of this model."""
        onnx.save(model, self.path)
        backend = get_backend(self.run.backend)
        return judge.judge(self.artifact.name, self.run, lambda: backend.open(str(self.path), self.run), brief)

    def effect(self) -> float:
        """Return the SQNR of the file on other inputs, dB."""
        with get_backend(self.run.backend).open(str(self.path), self.run) as session:
            found: Tensors = run_rows(session, self.others, 1)
        return min(drift.sqnr_db(a, found[name], drift.mean_answer(a)) for name, a in self.expected.items())

    def changed(self, change: Change) -> onnx.ModelProto:
        """Return the model with one tensor made wrong."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        tensor = next(each for each in copy.graph.initializer if each.name == change.tensor)
        made = injected_faults.CHANGES[change.kind](numpy_helper.to_array(tensor), change.axis)
        tensor.CopyFrom(numpy_helper.from_array(made, change.tensor))
        return copy

    def row(self, network: str) -> Row:
        """Inject every fault and count."""
        whole = self.judged(self.model, self.brief)
        quick = replace(self.brief, golden=replace(self.brief.golden, faults=(), rollout=None))
        changes = tuple(
            injected_faults.changes_of(injected_faults.layers_of(self.model, WEIGHTS[self.artifact.precision]))
        )
        counts: Counter[str] = Counter()
        missed = []
        for change in changes:
            verdict = self.judged(self.changed(change), quick).verdict
            kept = self.effect()
            if self.budget.sqnr_db is not None and not kept >= self.budget.sqnr_db:
                counts["effective"] += 1
                counts["caught"] += verdict is not Verdict.PASS
                missed += [] if verdict is not Verdict.PASS else [f"{change.kind} in {change.tensor}: {kept:.1f} dB"]
        return Row(
            network,
            self.artifact.precision,
            whole.verdict.value,
            len(changes),
            counts["effective"],
            counts["caught"],
            tuple(missed),
            (whole.metrics["detected_scaled"], whole.metrics["detected_misplaced"]),
        )


def rows_of(network: str, folder: Path) -> Iterator[Row]:
    """Export a network and give a row for each artifact."""
    source = SourceOptions(random_weights=network in LARGE)
    options = deploykit.ExportOptions(cells=CELLS, out=str(folder / network), bench=False, verify=False, source=source)
    bundle = deploykit.export_model(network, options).bundle
    original = sources.resolve(network, source)
    for artifact in bundle.manifest.artifacts:
        yield Subject(bundle, artifact, original, folder).row(network)


def document(command: str, rows: list[Row]) -> str:
    """Return the whole page."""
    machine = Machine.here()
    faults, effective, caught = (sum(getattr(row, key) for row in rows) for key in ("faults", "effective", "caught"))
    missed = [f"- {row.network} {row.precision}: {text}" for row in rows for text in row.missed]
    return "\n".join(
        [
            "# Injected faults",
            "",
            f"`{command}`, {machine.cpu}, {machine.cores} cores, Python {platform.python_version()},",
            f"ONNX Runtime {onnxruntime.__version__}.",
            "",
            f"{faults} faults, {effective} of them with an effect beyond the budget on {OTHERS} other images, {caught} of",
            f"these caught: {100 * caught / max(1, effective):.2f} %.",
            "",
            "- *unchanged* is the verdict of the artifact as it was exported.",
            "- *effective* faults leave less SQNR on other images than the budget asks for;",
            "  *caught* ones of them are no pass.",
            "- *5 %* and *misplaced* are what the verdict itself says that its gates catch, in per cent: of weight tensors",
            "  times 1.05, and of output channels shifted by one place.",
            "",
            "| network | made in | unchanged | faults | effective | caught | 5 % | misplaced |",
            "|---|---|---|---:|---:|---:|---:|---:|",
            *(row.text for row in rows),
            "",
            *(["Not caught:", "", *missed, ""] if missed else []),
        ]
    )


def main() -> int:
    """Measure and print; 3 where fewer than 99 % were caught or an unchanged artifact did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in asked.models or (*tiny_names(), "tiny-lcm-unet", *LARGE):
            for row in rows_of(network, Path(folder)):
                print(row.text, *row.missed, sep="\n    ", flush=True)
                rows.append(row)
    words = " ".join(["python benchmarks/injected_faults.py", *asked.models])
    text = document(words, rows)
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    effective, caught = sum(row.effective for row in rows), sum(row.caught for row in rows)
    good = caught >= 0.99 * effective and all(row.unchanged == Verdict.PASS.value for row in rows)
    return os.EX_OK if good else 3


if __name__ == "__main__":
    raise SystemExit(main())
