"""The UNet of a latent consistency model at full size, 860 M parameters: memory, seconds, drift and speed.

    python -m benchmarks.lcm_sd15 --state FOLDER [--out docs/results/lcm_sd15.md]

Weights are random. Every export is a process of its own, whose tree's anonymous memory is looked at every 50 ms. `--state`
holds bundles and the cache, 50 GB. Speed is measured with one process per candidate, asked in turn, ratios paired by round.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from benchmarks.watched import Ran, watched

from deploykit.artifact import RunConfig, TensorSpec
from deploykit.bundle import Bundle
from deploykit.manifest import Machine, Manifest
from deploykit.models import lcm, sources
from deploykit.models.original import SourceOptions
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensors, get_backend
from deploykit.runtime.batches import run_rows
from deploykit.runtime.latency import BenchOptions, Candidate, measure

MODEL: Final = "lcm:sd15"
AXES: Final = ("batch", "height", "width", "sequence")
OPEN: Final = tuple(f"--dynamic={axis}" for axis in AXES)
#: Name, and how each bundle is asked for. Where nothing is judged, memory is that of making it.
EXPORTS: Final = (
    ("fp32, made alone", ("--fp32", "--ort", *OPEN, "--no-verify", "--no-cache")),
    ("fp16, made alone", ("--fp16", "--ort", *OPEN, "--no-verify", "--no-cache")),
    ("fp32, judged", ("--fp32", "--ort", "--openvino", *OPEN)),
    ("fp16, from it", ("--fp16", "--ort", *OPEN, "--no-verify")),
    ("fp16 and int8-weights, judged", ("--fp16", "--int8-weights", "--openvino", "--no-repair", *OPEN)),
    ("fp16 for TensorRT-RTX", ("--fp16", "--trt-rtx", "--no-verify", *OPEN)),
    ("int8, judged", ("--int8", "--openvino", "--no-repair")),
)
#: Height and width of latents that nothing was traced at.
SIZES: Final = ((64, 64), (48, 80), (96, 96))
ORT: Final = RunConfig("onnxruntime", precision="f32")
OPENVINO: Final = RunConfig("openvino", precision="f32")
OWN_CHOICE: Final = RunConfig("openvino", precision="auto")
#: What is compared at other sizes: the bundle, the end of the artifact's name, and how it is run.
SIZED: Final = (
    ("fp32, judged", "fp32.ort", ORT),
    ("fp32, judged", "fp32.openvino", OPENVINO),
    ("fp16 and int8-weights, judged", "fp16.openvino", OPENVINO),
    ("fp16 and int8-weights, judged", "int8-weights.openvino", OPENVINO),
)
#: What is timed, described alike.
TIMED: Final = (
    *SIZED[:2],
    ("fp32, judged", "fp32.openvino", OWN_CHOICE),
    ("int8, judged", "int8.openvino", OWN_CHOICE),
)
#: What stands above each table.
TITLES: Final = {
    "judged": (
        "| artifact | ran in | SQNR, dB | step 1 | step 2 | step 3 | step 4 | latents, dB | int8, % | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ),
    "timed": (
        "A step of one row, one process per candidate, paired:",
        "",
        "| candidate | ran in | s | n | times PyTorch's speed |",
        "|---|---|---:|---:|---:|",
    ),
    "sized": ("| artifact | latents | SQNR from PyTorch, dB |", "|---|---|---:|"),
}


def plain(out: Path) -> None:
    """Export with nothing but PyTorch: what `--plain` runs in a process of its own."""
    import torch

    original = sources.resolve(MODEL, SourceOptions(random_weights=True))
    module = sources.open_module(original)
    shapes = original.takes.at({"batch": 2, "height": 24, "width": 32, "sequence": 7})
    kinds = {each.name: getattr(torch, each.dtype) for each in original.takes.inputs}
    examples = tuple(torch.zeros(shape, dtype=kinds[name]) for name, shape in shapes.items())
    torch.onnx.export(module, examples, str(out), dynamo=True, external_data=True, opset_version=21, verbose=False)


def exports(state: Path) -> Iterator[tuple[str, Ran, Manifest]]:
    """Make every bundle."""
    for title, words in EXPORTS:
        out = bundle_of(state, title)
        command = [sys.executable, "-m", "deploykit", "export", MODEL, "--random-weights", *words, "--no-bench"]
        ran = watched([*command, "--replace", "--out", str(out)], state / "cache")
        print(f"{title}: exit {ran.code}, {ran.seconds:.0f} s, {ran.peak / 1e9:.2f} GB", file=sys.stderr, flush=True)
        yield title, ran, Bundle.open(out).manifest
        if title not in {wanted for wanted, *_ in (*SIZED, *TIMED)}:
            shutil.rmtree(out)


def bundle_of(state: Path, title: str) -> Path:
    """Return where a bundle lies."""
    return state / title.replace(", ", "-").replace(" ", "-")


def sized(state: Path) -> Iterator[str]:
    """Yield a line for each size and runtime: how far an artifact lies from PyTorch there."""
    original = sources.resolve(MODEL, SourceOptions(random_weights=True))
    feeds: dict[tuple[int, int], Tensors] = {
        (height, width): lcm.inputs_of(original.takes, {"height": height, "width": width}, [999])
        for height, width in SIZES
    }
    with sources.open_original(original) as session:
        wanted = {size: run_rows(session, rows, 1)["out_sample"] for size, rows in feeds.items()}
    for title, ending, run in SIZED:
        path = _file(state, title, ending)
        with get_backend(run.backend).open(str(path), run) as session:
            for size, rows in feeds.items():
                found = run_rows(session, rows, 1)["out_sample"]
                yield f"| {ending} | {size[0]}x{size[1]} | {drift.sqnr_db(wanted[size], found):.1f} |"


def _file(state: Path, title: str, ending: str) -> Path:
    root = bundle_of(state, title)
    return next(root / one.main.path for one in Bundle.open(root).manifest.artifacts if one.name.endswith(ending))


def timed(state: Path, options: BenchOptions) -> Iterator[str]:
    """Time a step of one row at 64x64 latents, and yield a line for each candidate, PyTorch first."""
    original = sources.resolve(MODEL, SourceOptions(random_weights=True))
    model, run = original.reference
    first = Candidate("PyTorch eager", model, run)
    others = [
        Candidate(f"{ending} {run.precision}", str(_file(state, title, ending)), run) for title, ending, run in TIMED
    ]
    rows = lcm.inputs_of(original.takes, {}, [999])

    def feeds(_specs: tuple[TensorSpec, ...]) -> Tensors:
        return rows

    def progress(done: int, total: int) -> None:
        print(f"{done} of {total} bursts", file=sys.stderr, flush=True)

    for timing in measure([first, *others], feeds, options, baseline=first.name, progress=progress):
        speed = timing.speedup
        ratio = "1" if speed is None else f"{speed.median:.2f} ({speed.lower:.2f} to {speed.upper:.2f})"
        cells = (timing.candidate, timing.ran.precision, f"{timing.median_ms / 1e3:.2f}", timing.n, ratio)
        yield f"| {' | '.join(map(str, cells))} |"


def verdicts(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each judgement."""
    for judgement in manifest.judgements:
        metrics, ran = judgement.metrics, judgement.ran
        share = metrics.get("int8_share")
        cells = (
            judgement.artifact.split(".", 1)[1],
            ran.precision if ran else "–",
            *(
                f"{metrics.get(key, np.nan):.1f}"
                for key in ("sqnr_db", *(f"sqnr_db_step_{step}" for step in range(1, 5)))
            ),
            f"{metrics.get('latent_psnr_db', np.nan):.1f}",
            "–" if share is None else f"{100 * share:.1f}",
            judgement.verdict.value,
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of bundles and the cache")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain(given.plain)
        return
    state: Path = given.state
    (state / "plain").mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "benchmarks.lcm_sd15",
        "--state",
        str(state),
        "--plain",
        str(state / "plain/model.onnx"),
    ]
    theirs, machine = watched(words, state / "cache"), Machine.here()
    shutil.rmtree(state / "plain")
    weights = 4 * sources.resolve(MODEL, SourceOptions(random_weights=True)).parameters
    head = [
        "# A UNet of 860 M parameters",
        "",
        f"`python -m benchmarks.lcm_sd15 --state FOLDER`, {machine.cpu}, {machine.cores} cores,",
        f"Python {platform.python_version()}.",
        "Random weights; latents of 64x64, prompts of 77 tokens. Memory is anonymous, of the whole process tree.",
        "",
        "| what | seconds | of these, tracing and saving | simplifying | peak, GB | of the fp32 weights | exit |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| torch.onnx.export alone | {theirs.seconds:.0f} | {theirs.seconds:.0f} | – | {theirs.peak / 1e9:.2f} | "
        f"{theirs.peak / weights:.2f} | {theirs.code} |",
    ]
    page = Page(given.out, head)
    for title, ran, manifest in exports(state):
        stages = {record.stage: record.seconds for record in manifest.stages if not record.cached}
        parts = (f"{stages[name]:.0f}" if name in stages else "–" for name in ("trace", "simplify"))
        peak = f"{ran.peak / 1e9:.2f} | {ran.peak / weights:.2f}"
        page.add("made", f"| {title} | {ran.seconds:.0f} | {' | '.join(parts)} | {peak} | {ran.code} |")
        page.add("judged", *verdicts(manifest))
    page.add("timed", *timed(state, BenchOptions(rounds=given.rounds, threads=given.threads)))
    page.add("sized", *sized(state))


@dataclass
class Page:
    """The results, written anew with every line, so that a run that is broken off leaves what it saw."""

    out: Path | None
    head: list[str]
    parts: dict[str, list[str]] = field(default_factory=lambda: {"made": [], **{name: [] for name in TITLES}})

    def add(self, part: str, *lines: str) -> None:
        """Add lines to a part."""
        self.parts[part] += lines
        told = [*self.head, *self.parts["made"]]
        for name, title in TITLES.items():
            told += ["", *title, *self.parts[name]] if self.parts[name] else []
        text = "\n".join([*told, ""])
        print("\n".join(lines), flush=True)
        if self.out:
            self.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
