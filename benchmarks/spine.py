"""Whole-process times of the main job: help, a first export, and a second one that finds everything in the cache.

    python benchmarks/spine.py [--pairs 3] [--out docs/results/spine.md]

Each pair is a first export with an empty cache and a second one of the same into the same folder; the ratio is taken within
the pair. Help is run in turn with a bare interpreter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploykit.manifest import Machine

EXPORT = ("export", "tiny-convnext", "--ort", "--openvino")
HELP_RUNS = 11


@dataclass(frozen=True)
class Pair:
    """Seconds of a first and a second run."""

    first: float
    second: float

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second / self.first


def seconds(words: list[str], env: dict[str, str]) -> float:
    """Return how long a process takes; it must end with 0."""
    started = time.perf_counter()
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return taken


def deploykit(*words: str) -> list[str]:
    """Return the command line of deploykit in this environment."""
    return [str(Path(sys.executable).parent / "deploykit"), *words]


def exports() -> Pair:
    """Export twice with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"DEPLOYKIT_CACHE": f"{folder}/cache"}
        words = deploykit(*EXPORT, "--out", f"{folder}/bundle")
        return Pair(seconds(words, env), seconds(words, env))


def helps() -> Pair:
    """Run a bare interpreter, then help."""
    return Pair(seconds([sys.executable, "-c", "pass"], {}), seconds(deploykit("--help"), {}))


def table(export_pairs: list[Pair], help_pairs: list[Pair]) -> str:
    """Return the results as Markdown."""
    machine = Machine.here()
    rows = [
        ("`deploykit --help`", statistics.median(p.second for p in help_pairs), len(help_pairs)),
        ("`python -c pass`", statistics.median(p.first for p in help_pairs), len(help_pairs)),
        ("first export, empty cache", statistics.median(p.first for p in export_pairs), len(export_pairs)),
        ("second export of the same", statistics.median(p.second for p in export_pairs), len(export_pairs)),
    ]
    ratio = statistics.median(pair.ratio for pair in export_pairs)
    lines = [
        "# The main job as a whole process",
        "",
        f"`python benchmarks/spine.py`, {machine.cpu}, {machine.cores} cores, Python {machine.python}; medians, wall seconds.",
        f"The export is `deploykit {' '.join(EXPORT)}`, verification and latency included.",
        "",
        "| what | seconds | n |",
        "|---|---:|---:|",
        *(f"| {name} | {value:.2f} | {n} |" for name, value, n in rows),
        "",
        f"Second over first, paired: {ratio:.3f} (n={len(export_pairs)}).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = table([exports() for _ in range(options.pairs)], [helps() for _ in range(HELP_RUNS)])
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
