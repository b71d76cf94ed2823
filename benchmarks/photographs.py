"""What fewer bits cost networks that were trained on photographs.

    python -m benchmarks.photographs --archives FOLDER --state FOLDER [MODEL ...] [--cells CELL ...] [--for vnni] [--out FILE]

The architectures of the networks that ship with the package, trained by `scripts/train_photographs.py` where their weights are
not in `--state` yet, judged on all test images. Ends with 3 where a network misses a bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from benchmarks.drift_table import CALIBRATION, CELLS, Row, document, export, rows_of
from benchmarks.pages import publish
from scripts.train_photographs import PHOTOGRAPHS, Photographs, train_network, unpack, weights_of

import deploykit
from deploykit.models.original import SourceOptions

SOURCE: Final = "py:scripts.train_photographs:network"
#: Accuracy that training aims at, 0..1: what a network below it keeps says little of trained ones.
AIM: Final[Mapping[str, float]] = {**dict.fromkeys(PHOTOGRAPHS, 0.75), "tiny-dinov2": 0.65}


def source_of(model: str, photographs: Photographs, state: Path) -> SourceOptions:
    """Return how a trained network is opened: its weights, family, classes, and preprocessing as trained."""
    labels = state / "labels.txt"
    labels.write_text("\n".join(photographs.classes), encoding="utf-8")
    recipe = PHOTOGRAPHS[model]
    return SourceOptions(
        weights=str(weights_of(model, state)),
        model_args={"model": model, "classes": len(photographs.classes)},
        family=recipe.family,
        labels=str(labels),
        image_size=recipe.input_size,
        crop_pct=1.0,
    )


def measure(
    model: str, photographs: Photographs, state: Path, cells: Sequence[str] = CELLS, processors: str = ""
) -> list[Row]:
    """Export a trained network to cells, for classes of processors where they are named, and judge it on all test images."""
    options = deploykit.ExportOptions(
        cells=tuple(cells),
        out=str(state / "bundles" / "-".join(filter(None, (model, processors)))),
        processors=(processors,) if processors else (),
        data=str(photographs.folder / "test"),
        calib=str(photographs.folder / "train"),
        calib_size=CALIBRATION,
        golden=str(photographs.folder / "train"),
        bench=False,
        replace=True,
        source=source_of(model, photographs, state),
    )
    return list(rows_of(model, export(SOURCE, options)))


def about(rows: Sequence[Row]) -> list[str]:
    """Return what the page says of networks and images."""
    reached = {row.network: row.judgement.metrics["top1_reference"] for row in rows}
    epochs = ", ".join(f"{model} {PHOTOGRAPHS[model].epochs}" for model in reached)
    below = [f"{model} ({100 * AIM[model]:g} %)" for model, top1 in reached.items() if not top1 >= AIM[model]]
    return [
        "The architectures of the networks that ship with the package, trained on the photographs of CIFAR-10 by",
        f"`scripts/train_photographs.py` for a few epochs ({epochs}), on all test images;",
        f"activations measured on {CALIBRATION} training images.",
        f"Trained too little for the accuracy that was aimed at: {', '.join(below) or 'none'}.",
    ]


def main() -> int:
    """Train what is missing, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(PHOTOGRAPHS)}; none means all")
    parser.add_argument("--archives", type=Path, required=True, help="folder of train.tar.gz and test.tar.gz")
    parser.add_argument("--state", type=Path, required=True, help="folder of unpacked images, weights and bundles")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="CELL", help=f"of {', '.join(CELLS)}; else all")
    parser.add_argument("--for", dest="processors", default="", metavar="CLASS", help="as in `deploykit export`")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    photographs = unpack(options.archives, options.state / "photographs")
    rows = []
    for model in options.models or PHOTOGRAPHS:
        train_network(model, photographs, options.state)
        rows += measure(model, photographs, options.state, options.cells, options.processors)
    cells = [] if tuple(options.cells) == CELLS else [f"--cells {' '.join(options.cells)}"]
    words = ["python -m benchmarks.photographs", *options.models, "--archives FOLDER --state FOLDER", *cells]
    return publish(document("Photographs", " ".join(words), about(rows), rows), options.out, rows)


if __name__ == "__main__":
    sys.exit(main())
