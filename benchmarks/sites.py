"""Judge bundles on emulated processors: how far each artifact drifts on each, and how long that takes.

python benchmarks/sites.py [--on avx2,arm64] BUNDLE|FILE ...      prints a table as Markdown

Sites must be ready (`deploykit site list`). Each artifact is verified by itself on each; times are of whole verifications,
the start of the emulator for each way among them. The first column is this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import deploykit
from deploykit.runtime.judge import least_sqnr
from deploykit.verdict import Judgement


def rows(target: Path, sites: tuple[str, ...]) -> Iterator[str]:
    """Yield a line of the table for each way to run each artifact of a bundle, or the one that a file in it is."""
    bundle = target if target.is_dir() else target.parent
    for artifact in deploykit.Bundle.open(bundle).manifest.artifacts:
        if target not in {bundle, bundle / artifact.main.path}:
            continue
        found: dict[str, list[Judgement]] = {}
        seconds: dict[str, float] = {}
        for site in ("", *sites):
            start = time.monotonic()
            options = deploykit.VerifyOptions(on=(site,) if site else ())
            for one in deploykit.verify(bundle / artifact.main.path, options).judgements:
                found.setdefault(one.run.label, []).append(one)
            seconds[site] = time.monotonic() - start
        for label, judged in found.items():
            yield f"| {artifact.name} | {label} | {' | '.join(map(cell, judged))} |"
        yield f"| | seconds | | {' | '.join(f'{seconds[site]:.0f}' for site in sites)} |"


def cell(one: Judgement) -> str:
    """Return the drift, the precision where it isn't the one that was asked for, and the verdict."""
    if one.ran is None:
        return f"not run: {one.reason.rpartition(': ')[2]}"
    precision = "" if one.ran.precision == one.run.precision else f" in {one.ran.precision}"
    share = one.metrics.get("int8_share")
    eight = f", {share:.0%} in 8 bits" if share is not None else ""
    return f"{least_sqnr(one.metrics):.1f} dB{precision}{eight}, {one.verdict.value}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--on", default="avx2,sse4,arm64,arm64-n1,arm64-a72", help="sites, separated by commas")
    parser.add_argument("targets", nargs="+", type=Path, help="bundles, or files in them")
    arguments = parser.parse_args()
    sites = tuple(arguments.on.split(","))
    print(f"| artifact | run as | here | {' | '.join(sites)} |")
    print("|---" * (len(sites) + 3) + "|")
    for target in arguments.targets:
        for row in rows(target, sites):
            print(row, flush=True)


if __name__ == "__main__":
    main()
