"""What fewer bits cost networks, as one Markdown table of the judgements in their bundles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.pages import misses, page

import deploykit
from deploykit.manifest import Manifest
from deploykit.verdict import GateResult, Judgement, Timing, Verdict, grade_of

CELLS: Final = tuple(
    f"{precision}:{target}" for precision in ("fp32", "fp16", "int8") for target in ("ort", "openvino")
)
#: Images that activations are measured on.
CALIBRATION: Final = 300
ABSENT: Final = "–"


@dataclass(frozen=True)
class Bounds:
    """What a network must keep on 10,000 images, by the measured values alone.

    The gates of a bundle ask for more images where an interval straddles a budget; these bounds are nearer than such an
    interval is wide.

    Attributes:
        agreement: Least share of equal top-1 answers, 0..1.
        drop: Largest loss of top-1 accuracy, 0..1; None: not bounded.
    """

    agreement: float
    drop: float | None = None

    def missed(self, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Return what was not kept, in words; NaN keeps nothing."""
        told = []
        if not metrics["agreement"] >= self.agreement:
            told.append(f"agreement below {100 * self.agreement:g} %")
        if self.drop is not None and not metrics["accuracy_drop"] <= self.drop:
            told.append(f"drop above {100 * self.drop:g} pp")
        return tuple(told)


HALF: Final = Bounds(agreement=0.995)
#: By network and by the grade that it is judged at.
BOUNDS: Final[Mapping[str, Mapping[str, Bounds]]] = {
    "tiny-convnext": {"f16": HALF, "int8": Bounds(agreement=0.97, drop=0.003)},
    "tiny-convnextv2": {"f16": HALF, "int8": Bounds(agreement=0.97, drop=0.004)},
    "tiny-dinov2": {"f16": HALF, "int8": Bounds(agreement=0.97, drop=0.003)},
    "tiny-efficientnetv2": {"f16": HALF, "int8": Bounds(agreement=0.97, drop=0.004)},
    "tiny-mobilenetv3": {"f16": HALF, "int8": Bounds(agreement=0.95, drop=0.005)},
}
COLUMNS: Final = (
    "network",
    "made in",
    "run as",
    "fp32 top-1, %",
    "top-1, %",
    "drop, pp",
    "agreement, %",
    "SQNR, dB",
    "worst cosine",
    "int8, %",
    "ms (× torch)",
    "bounds",
    "gates",
)
ALIGNMENT: Final = "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|"


@dataclass(frozen=True)
class Row:
    """One artifact as one runtime ran it.

    Attributes:
        network: Which network.
        precision: Of the artifact.
        judgement: The verdict on it.
        timing: Its latency, where it was measured.
    """

    network: str
    precision: str
    judgement: Judgement
    timing: Timing | None

    @property
    def missed(self) -> tuple[str, ...]:
        """The bounds that it missed, in words."""
        bounds = self._bounds
        if bounds is None:
            return ()
        return bounds.missed(self.judgement.metrics) if "agreement" in self.judgement.metrics else ("not judged",)

    @property
    def _bounds(self) -> Bounds | None:
        ran = self.judgement.ran
        return BOUNDS[self.network].get(grade_of(self.precision, ran.precision if ran else "f32"))

    @property
    def text(self) -> str:
        """The row of the table."""
        metrics, ran = self.judgement.metrics, self.judgement.ran
        kept = ABSENT if self._bounds is None else ", ".join(self.missed) or "kept"
        cells = (
            self.network,
            self.precision,
            f"{self.judgement.run.backend} {ran.precision if ran else ABSENT}",
            _percent(metrics.get("top1_reference")),
            _percent(metrics.get("top1")),
            self._drop,
            _percent(metrics.get("agreement")),
            _number(metrics.get("sqnr_db"), 1),
            _number(metrics.get("cosine"), 5),
            _percent(metrics.get("int8_share")),
            self._latency,
            kept,
            _gates(self.judgement),
        )
        return f"| {' | '.join(cells)} |"

    @property
    def _drop(self) -> str:
        """The accuracy lost, with the bounds of the gate where there is one."""
        drop = self.judgement.metrics.get("accuracy_drop")
        found = next((gate for gate in self.judgement.gates if gate.metric == "accuracy_drop"), None)
        interval = f" ({100 * found.lower:.2f} to {100 * found.upper:.2f})" if found else ""
        return f"{_percent(drop)}{interval}"

    @property
    def _latency(self) -> str:
        if self.timing is None:
            return ABSENT
        ratio = f" ({self.timing.speedup.median:.2f})" if self.timing.speedup else ""
        return f"{self.timing.median_ms:.2f}{ratio}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.2f}"


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _gates(judgement: Judgement) -> str:
    """Return the verdict, with the gates that didn't pass, each once."""
    told = dict.fromkeys(_gate(gate) for gate in judgement.gates if gate.verdict is not Verdict.PASS)
    reasons = [*told, *([judgement.reason] if judgement.reason else [])]
    return f"{judgement.verdict.value}{': ' if reasons else ''}{', '.join(reasons)}"


def _gate(gate: GateResult) -> str:
    straddles = " not certain" if gate.verdict is Verdict.INCONCLUSIVE else ""
    return f"{gate.metric} {'≥' if gate.higher_is_better else '≤'} {gate.bound:g}{straddles}"


def rows_of(network: str, manifest: Manifest) -> Iterator[Row]:
    """Give a row per judgement of a bundle."""
    precisions = {artifact.name: artifact.precision for artifact in manifest.artifacts}
    # What is timed runs with as many threads as the measurement chose; what is judged leaves that open.
    timings = {(timing.candidate, replace(timing.run, threads=None).label): timing for timing in manifest.timings}
    for judgement in manifest.judgements:
        name, run = judgement.artifact, judgement.run
        yield Row(network, precisions[name], judgement, timings.get((name, run.label)))


def export(model: str, options: deploykit.ExportOptions) -> Manifest:
    """Export a model to every cell; what was done before comes from the cache."""
    return deploykit.export_model(model, options).bundle.manifest


def document(title: str, command: str, about: Sequence[str], rows: Sequence[Row]) -> str:
    """Return the whole page.

    Args:
        title: Its heading.
        command: The command line that makes it again.
        about: Lines on networks and images.
        rows: What was found.
    """
    meanings = [
        "",
        "- *run as* is the backend and the precision that it computed in; `emulator` rounds to half after every operator.",
        "- *drop* is the accuracy lost, in points, with both one-sided 99 % bounds of the pairs where a gate judges it;",
        "  *agreement* is the share of equal answers.",
        "- *SQNR* and *worst cosine* are taken from 16 golden inputs, images of the kind that the network was trained on.",
        "- *int8* is the share of the multiply-adds that ran in 8 bits.",
        "- *ms* is the median of one inference, and how many times faster than PyTorch, paired.",
        f"- *bounds* are those of `benchmarks/{Path(__file__).name}`: {misses(rows)}.",
        "- *gates* is the verdict of the bundle.",
    ]
    return page(title, command, [*about, *meanings], (COLUMNS, ALIGNMENT), rows)
