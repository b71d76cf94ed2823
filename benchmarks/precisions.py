"""What fewer bits cost the networks that ship with the package, on rendered images.

    python -m benchmarks.precisions [MODEL ...] [--images 10000] [--bench] [--out docs/results/precisions.md]

Ends with 3 where a network misses a bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.drift_table import CALIBRATION, CELLS, Row, document, export, rows_of
from benchmarks.pages import publish

import deploykit
from deploykit.models.source_tiny import tiny_names


def measure(model: str, count: int, *, bench: bool) -> list[Row]:
    """Export a network to every cell and judge it on the first `count` test images."""
    with tempfile.TemporaryDirectory() as folder:
        options = deploykit.ExportOptions(cells=CELLS, out=folder, eval_size=count, calib_size=CALIBRATION, bench=bench)
        return list(rows_of(model, export(model, options)))


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names that ship with the package; none means all")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bench", action="store_true", help="measure latency as well")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [
        row for model in options.models or tiny_names() for row in measure(model, options.images, bench=options.bench)
    ]
    words = [*options.models, f"--images {options.images}", *(["--bench"] if options.bench else [])]
    about = [
        f"The networks that ship with the package, on {options.images} images of `rendered:test`; activations measured on",
        f"{CALIBRATION} images of `rendered:calib`.",
    ]
    text = document("Precisions", " ".join(["python -m benchmarks.precisions", *words]), about, rows)
    return publish(text, options.out, rows)


if __name__ == "__main__":
    sys.exit(main())
