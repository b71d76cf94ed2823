"""What int8 costs on each class of processors: labelled images answered here and by emulated processors.

    python -m benchmarks.int8_classes BUNDLE ... [--on avx2] [--images 2000] [--nncf PYTHON --calib FOLDER] [--out FILE.md]

Each int8 artifact of a bundle is judged as `verify` does, on images evenly spread among those that the bundle was judged on.
Sites must be ready (`deploykit site list`). `--nncf` names an interpreter that has NNCF, OpenVINO, onnx and Pillow: what NNCF
makes of the bundle's float32 files and as many images of `--calib` as the bundle was calibrated on is judged in the same way.
Ends with 3 where a network misses a bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.drift_table import CALIBRATION
from benchmarks.int8_peers import PRESETS, finished, nncf_command
from benchmarks.pages import misses, page, publish
from PIL import Image

import deploykit
from deploykit.artifact import RunConfig
from deploykit.calibration.images import CalibrationImages, open_calibration
from deploykit.data.preprocess import crop
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
        ours: It was made by deploykit, and has bounds to keep.
    """

    network: str
    family: str
    processor: str
    judgement: Judgement
    ours: bool = True

    @property
    def missed(self) -> tuple[str, ...]:
        """The bounds that it missed, in words; NaN keeps nothing."""
        metrics = self.judgement.metrics
        if not self.ours:
            return ()
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
            found.artifact.partition(".")[2] or found.artifact,
            f"{found.run.backend} {found.ran.precision if found.ran else '–'}",
            self.processor,
            *(_number(metrics.get(name), 100) for name in ("top1", "accuracy_drop", "agreement")),
            _number(judge.least_sqnr(metrics), 1, digits=1),
            _number(metrics.get("int8_share"), 100),
            (", ".join(self.missed) or "kept") if self.ours else "–",
        )
        return f"| {' | '.join(cells)} |"


def _number(value: float | None, factor: float, digits: int = 2) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"


def evaluation_of(bundle: deploykit.Bundle, count: int) -> judge.Evaluation:
    """Return `count` of the images that a bundle was judged on, evenly spread."""
    record = bundle.manifest.evaluation
    assert record is not None, f"{bundle.root} was judged on no labelled images"
    found = recorded_evaluation(bundle, record.images)
    assert found is not None, f"{record.images} is prepared to other pixels here"
    return spread(found, count)


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


#: What is judged: its name, how it is run, its file, and whether it is ours.
Job = tuple[str, RunConfig, Path, bool]


def own_jobs(bundle: deploykit.Bundle) -> Iterator[Job]:
    """Yield the int8 artifacts of a bundle, each in every way that it is run."""
    for artifact in bundle.manifest.artifacts:
        if artifact.precision == "int8":
            yield from ((artifact.name, run, bundle.root / artifact.main.path, True) for run in artifact.runs)


def peer_jobs(bundle: deploykit.Bundle, python: str, calib: str, scratch: Path) -> Iterator[Job]:
    """Yield what NNCF makes of the float32 artifacts, in the ways that those are run."""
    recipe = bundle.manifest.preprocess
    assert recipe is not None, "images were judged"
    images = open_calibration(calib, CALIBRATION, 0, recipe)
    assert isinstance(images, CalibrationImages), f"{calib} holds no images"
    for index in range(len(images)):
        Image.fromarray(crop(images.image(index), recipe)).save(scratch / f"{index:04d}.png")
    for artifact in bundle.manifest.artifacts:
        if artifact.precision == "fp32":
            source = bundle.root / artifact.main.path
            for title, preset in PRESETS.items():
                made = scratch / f"{title}{source.suffix}"
                command = nncf_command(python, source, made, scratch, len(images), recipe)
                finished([*command, f"--preset={preset}"])
                yield from ((f"NNCF {title}", run, made, False) for run in artifact.runs)


def measure(bundle: deploykit.Bundle, jobs: Iterable[Job], guests: Sequence[Guest], count: int) -> Iterator[Row]:
    """Judge files by what a bundle holds of its original, on this machine and on each guest."""
    manifest = bundle.manifest
    seen = evaluation_of(bundle, count)
    brief = judge.Brief(golden_of(bundle), manifest.budgets, manifest.axes, seen, precision="int8")
    for title, run, path, ours in jobs:
        away = guests if run.precision == "f32" else ()  # emulated x86 chooses no other precision by itself
        for name, place in places(away):
            found = judge_file(title, path, run, brief, place=place)
            yield Row(bundle.root.name, manifest.source.family, name, found, ours)


def document(command: str, rows: Sequence[Row], count: int) -> str:
    """Return the whole page."""
    about = [
        f"- Top-1, *drop* (accuracy lost, in points) and *agreement* (share of equal answers) are of {count} labelled",
        "  images; *SQNR* is of the bundle's golden inputs.",
        "- *int8* is the share of the multiply-adds that ran in 8 bits.",
        f"- *bounds*: a drop of {100 * DROP:g} points at most, an agreement of {100 * AGREEMENT:g} % at least "
        f"(MobileNetV3 {100 * AGREEMENTS['mobilenetv3']:g} %): {misses(rows)}.",
    ]
    return page("int8 on each class of processors", command, about, (COLUMNS, ALIGNMENT), rows)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--on", default="avx2", help="sites, separated by commas; '' for this machine alone")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument(
        "--nncf", metavar="PYTHON", help="interpreter that has NNCF; without it our files alone are judged"
    )
    parser.add_argument("--calib", metavar="FOLDER", help="images that NNCF measures activations on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if bool(options.nncf) != bool(options.calib):
        parser.error("--nncf and --calib belong together")
    guests = guests_of(tuple(filter(None, options.on.split(","))))
    rows = []
    for folder in options.bundles:
        bundle = deploykit.Bundle.open(folder)
        with tempfile.TemporaryDirectory() as scratch:
            jobs = own_jobs(bundle)
            if options.nncf:
                jobs = chain(jobs, peer_jobs(bundle, options.nncf, options.calib, Path(scratch)))
            for row in measure(bundle, jobs, guests, options.images):
                rows.append(row)
                print(row.text, file=sys.stderr, flush=True)
    peers = ["--nncf PYTHON --calib FOLDER"] if options.nncf else []
    words = [*(folder.name for folder in options.bundles), f"--on {options.on}", f"--images {options.images}", *peers]
    text = document(" ".join(["python -m benchmarks.int8_classes", *words]), rows, options.images)
    return publish(text, options.out, rows)


if __name__ == "__main__":
    sys.exit(main())
