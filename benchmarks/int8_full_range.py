"""What int8 weights that are right on every processor cost where those of the whole range would do: noise and time, in pairs.

    python -m benchmarks.int8_full_range --pair BUNDLE BUNDLE_FOR_VNNI ... [--rounds 20] [--out FILE]

Both bundles of a pair are exported from one network, the first one with fp32 too, the second one with `--for vnni`. Noise is
measured on images that the first one was judged on, against its fp32 in ONNX Runtime. This machine must have VNNI.
Ends with 3 where time or noise goes beyond the bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.int8_classes import evaluation_of
from benchmarks.pages import misses, page, publish
from numpy.typing import NDArray

from deploykit.artifact import RunConfig, TensorSpec
from deploykit.bundle import Bundle, load_tensors
from deploykit.runtime import drift, judge
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.latency import BenchOptions, Candidate, measure
from deploykit.verdict import Judgement, Ratio

#: Times as long, and decibels less, than weights of the whole range at most.
MOST_TIME: Final = 1.05
MOST_NOISE: Final = 1.0
COLUMNS: Final = (
    "network",
    "run as",
    "SQNR, dB",
    "for VNNI, dB",
    "time × for VNNI",
    "n",
    "bounds",
)
ALIGNMENT: Final = "|---|---|---:|---:|---:|---:|---|"


@dataclass(frozen=True)
class Row:
    """One way to run one network's int8.

    Attributes:
        network: Name of the bundle.
        run: How it was run.
        safe_db: SQNR of what is right everywhere, dB.
        full_db: SQNR of what has the whole range, dB.
        time: Of what is right everywhere, over the other's: paired, with a confidence interval.
        n: Inferences timed.
    """

    network: str
    run: str
    safe_db: float
    full_db: float
    time: Ratio
    n: int

    @property
    def missed(self) -> tuple[str, ...]:
        """The bounds that it missed; a time counts as beyond its bound where the whole interval is."""
        told = [] if self.safe_db >= self.full_db - MOST_NOISE else [f"over {MOST_NOISE:g} dB of noise"]
        return (*told, *([] if self.time.lower <= MOST_TIME else [f"over {MOST_TIME:g} × the time"]))

    @property
    def text(self) -> str:
        """The row of the table."""
        time = f"{self.time.median:.3f} ({self.time.lower:.3f} to {self.time.upper:.3f})"
        kept = ", ".join(self.missed) or "kept"
        return f"| {self.network} | {self.run} | {self.safe_db:.1f} | {self.full_db:.1f} | {time} | {self.n} | {kept} |"


def rows_of(safe: Bundle, full: Bundle, images: int, options: BenchOptions) -> Iterator[Row]:
    """Compare the int8 artifacts of two bundles, runtime by runtime."""
    fed = next(iter(load_tensors(safe.root / safe.manifest.golden.inputs.path).values()))
    seen = evaluation_of(safe, images)
    reference = next(one for one in safe.manifest.artifacts if one.name.endswith("fp32.ort"))
    expected = logits(safe.root / reference.main.path, reference.runs[0], seen)
    about = drift.mean_answer(expected)

    def feeds(specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[np.float32]]:
        return {specs[0].name: fed[:1]}

    for first in _judged(safe):
        other = next(one for one in _judged(full) if one.run == first.run)
        files = _file(safe, first), _file(full, other)
        pair = [Candidate(name, str(path), first.run) for name, path in zip(("safe", "full"), files, strict=True)]
        _, timing = measure(pair, feeds, options, baseline="safe")
        assert timing.speedup is not None, "it is compared"
        found = (logits(path, first.run, seen) for path in files)
        safe_db, full_db = (drift.sqnr_db(expected, one, about) for one in found)
        yield Row(safe.root.name, first.run.label, safe_db, full_db, timing.speedup, timing.n)


def logits(path: Path, run: RunConfig, seen: judge.Evaluation) -> NDArray[np.float32]:
    """Return what a file answers."""
    with get_backend(run.backend).open(str(path), run) as session:
        return judge.logits_of(session, seen.crops, seen.recipe)


def _judged(bundle: Bundle) -> list[Judgement]:
    int8 = {artifact.name for artifact in bundle.manifest.artifacts if artifact.precision == "int8"}
    return [one for one in bundle.manifest.judgements if one.artifact in int8]


def _file(bundle: Bundle, judged: Judgement) -> Path:
    return bundle.root / next(one.main.path for one in bundle.manifest.artifacts if one.name == judged.artifact)


def document(command: str, rows: Sequence[Row], images: int) -> str:
    """Return the whole page."""
    about = [
        f"- *SQNR* is of {images} images: of the weights that are right on every processor, and *for VNNI* of those of",
        "  the whole range (`--for vnni`).",
        "- *time* is that of the first over that of the second, paired by round, with a 95 % interval.",
        f"- *bounds*: at most {MOST_TIME:g} times as long and {MOST_NOISE:g} dB less: {misses(rows)}.",
    ]
    return page("int8 for every processor beside int8 for VNNI", command, about, (COLUMNS, ALIGNMENT), rows)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, type=Path, action="append", required=True, metavar="BUNDLE")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for pair in options.pair:
        safe, full = map(Bundle.open, pair)
        for row in rows_of(safe, full, options.images, BenchOptions(rounds=options.rounds)):
            rows.append(row)
            print(row.text, file=sys.stderr, flush=True)
    pairs = " ".join(f"--pair {safe.name} {full.name}" for safe, full in options.pair)
    words = f"{pairs} --images {options.images} --rounds {options.rounds}"
    text = document(f"python -m benchmarks.int8_full_range {words}", rows, options.images)
    return publish(text, options.out, rows)


if __name__ == "__main__":
    sys.exit(main())
