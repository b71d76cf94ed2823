"""What int8 costs on each class of processors: labelled images answered here and by emulated processors.

    python -m benchmarks.int8_classes BUNDLE ... [--on avx2] [--images 2000] [--out docs/results/int8_classes.md]

Each int8 artifact of a bundle is judged as `verify` does, on images evenly spread among those that the bundle was judged on.
Sites must be ready (`deploykit site list`). Ends with 3 where a network misses a bound.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import openvino

import deploykit
from deploykit.artifact import RunConfig
from deploykit.manifest import Machine
from deploykit.runtime import judge, processors
from deploykit.runtime.arithmetic import Place, judge_file
from deploykit.runtime.backends.base import Session
from deploykit.runtime.sites.guest import Guest
from deploykit.verdict import Judgement
from deploykit.workflow.emulated import guests_of
from deploykit.workflow.verify import golden_of, recorded_evaluation

#: Accuracy that may be lost, 0..1, and the least share of equal answers, by family where it isn't `AGREEMENT`.
DROP: Final = 0.005
AGREEMENT: Final = 0.96
AGREEMENTS: Final = {"mobilenetv3": 0.94}
COLUMNS: Final = (
    "network",
    "artifact",
    "run as",
    "class",
    "top-1, %",
    "drop, pp",
    "agreement, %",
    "SQNR, dB",
    "int8, %",
    "bounds",
)
ALIGNMENT: Final = "|---|---|---|---|---:|---:|---:|---:|---:|---|"


@dataclass(frozen=True)
class Row:
    """One artifact as one runtime ran it on one class.

    Attributes:
        network: Name of the bundle.
        family: Of its original.
        processor: The class; emulated ones are told.
        judgement: What was found.
    """

    network: str
    family: str
    processor: str
    judgement: Judgement

    @property
    def missed(self) -> tuple[str, ...]:
        """The bounds that it missed, in words; NaN keeps nothing."""
        metrics = self.judgement.metrics
        if "agreement" not in metrics:
            return (self.judgement.reason or "not judged",)
        least = AGREEMENTS.get(self.family, AGREEMENT)
        told = [] if metrics["agreement"] >= least else [f"agreement below {100 * least:g} %"]
        return (*told, *([] if metrics["accuracy_drop"] <= DROP else [f"drop above {100 * DROP:g} pp"]))

    @property
    def text(self) -> str:
        """The row of the table."""
        found, metrics = self.judgement, self.judgement.metrics
        cells = (
            self.network,
            found.artifact.removeprefix(f"{self.network}."),
            f"{found.run.backend} {found.ran.precision if found.ran else '–'}",
            self.processor,
            *(_number(metrics.get(name), 100) for name in ("top1", "accuracy_drop", "agreement")),
            _number(judge.least_sqnr(metrics), 1, digits=1),
            _number(metrics.get("int8_share"), 100),
            ", ".join(self.missed) or "kept",
        )
        return f"| {' | '.join(cells)} |"


def _number(value: float | None, factor: float, digits: int = 2) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"


def spread(found: judge.Evaluation, count: int) -> judge.Evaluation:
    """Return `count` of a set's images, evenly spread, all where it has no more."""
    chosen = np.unique(np.linspace(0, len(found.crops) - 1, min(count, len(found.crops))).round().astype(np.int64))
    answers = found.answers
    kept = replace(answers, top1=answers.top1[chosen], margin=answers.margin[chosen], labels=answers.labels[chosen])
    return replace(found, crops=found.crops[chosen], answers=kept)


def places(guests: Sequence[Guest]) -> Iterator[tuple[str, Place | None]]:
    """Yield this machine and each emulated processor, with how its class is told."""
    yield processors.here().name, None

    for guest in guests:

        def opened(path: Path, run: RunConfig, guest: Guest = guest) -> Session:
            return guest.open(path, run, None, lambda _rows: None)

        yield f"{guest.site.processor}, emulated", Place(guest.processor, opened)


def measure(folder: Path, guests: Sequence[Guest], count: int) -> Iterator[Row]:
    """Judge the int8 artifacts of a bundle on this machine and on each guest."""
    bundle = deploykit.Bundle.open(folder)
    manifest = bundle.manifest
    assert manifest.evaluation is not None, f"{folder} was judged on no labelled images"
    evaluation = recorded_evaluation(bundle, manifest.evaluation.images)
    assert evaluation is not None, f"{manifest.evaluation.images} is prepared to other pixels here"
    brief = judge.Brief(golden_of(bundle), manifest.budgets, manifest.axes, spread(evaluation, count))
    for artifact in manifest.artifacts:
        if artifact.precision != "int8":
            continue
        own = replace(brief, precision=artifact.precision)
        for run in artifact.runs:
            for name, place in places(guests):
                found = judge_file(artifact.name, folder / artifact.main.path, run, own, place=place)
                yield Row(folder.name, manifest.source.family, name, found)


def document(command: str, rows: Sequence[Row], count: int) -> str:
    """Return the whole page."""
    machine = Machine.here()
    missed = sum(bool(row.missed) for row in rows)
    lines = [
        "# int8 on each class of processors",
        "",
        f"`{command}`",
        "",
        f"{machine.cpu} ({processors.here().name}), {machine.cores} cores, Python {platform.python_version()}, "
        f"ONNX Runtime {onnxruntime.__version__},",
        f"OpenVINO {openvino.__version__.split('-')[0]}.",
        "",
        f"- Top-1, *drop* (accuracy lost, in points) and *agreement* (share of equal answers) are of {count} labelled",
        "  images; *SQNR* is of the bundle's golden inputs.",
        "- *int8* is the share of the multiply-adds that ran in 8 bits.",
        f"- *bounds*: a drop of {100 * DROP:g} points at most, an agreement of {100 * AGREEMENT:g} % at least "
        f"(MobileNetV3 {100 * AGREEMENTS['mobilenetv3']:g} %): {missed} of {len(rows)} rows miss one.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        ALIGNMENT,
        *(row.text for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--on", default="avx2", help="sites, separated by commas; '' for this machine alone")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    guests = guests_of(tuple(filter(None, options.on.split(","))))
    rows = []
    for folder in options.bundles:
        for row in measure(folder, guests, options.images):
            rows.append(row)
            print(row.text, flush=True)
    words = [*(str(folder) for folder in options.bundles), f"--on {options.on}", f"--images {options.images}"]
    text = document(" ".join(["python -m benchmarks.int8_classes", *words]), rows, options.images)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return 3 if any(row.missed for row in rows) else os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
