"""Latency of int8 at real size beside other quantizers, or with --quantize the time and memory that quantizing takes.

    python benchmarks/int8_peers.py --nncf PATH/python [--model NAME ...] [--out docs/results/int8_peers.md]
    python benchmarks/int8_peers.py --nncf PATH/python --quantize [--out docs/results/int8_quantize.md]

NNCF lives in an environment of its own, whose interpreter `--nncf` names: `python -m venv DIR && DIR/bin/pip install nncf
pillow`. Weights are random, calibration images rendered at the model's size. The peers start from the fp32 graphs that
deploykit exports. Every candidate has a process of its own; they are asked in turn, a ratio compares bursts of one round.
Runtimes compute what stays float in their own choice of precision, and once more in float32.

Every peer that can be built and answers with finite numbers counts: random weights tell little about accuracy, so how far the
answers to the golden inputs lie from PyTorch's is shown and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import deploykit
from deploykit.artifact import Preprocess, RunConfig, TensorSpec
from deploykit.bundle import Bundle, load_tensors
from deploykit.data import images, rendered
from deploykit.data.preprocess import normalize
from deploykit.errors import DeploykitError
from deploykit.manifest import Machine
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.golden import ORIGINAL
from deploykit.runtime.latency import BenchOptions, Candidate, measure
from deploykit.verdict import Timing

MODELS = {
    "convnext_tiny": 288,
    "convnextv2_tiny": 288,
    "tf_efficientnetv2_s": 384,
    "vit_small_patch14_dinov2": 224,
    "mobilenetv3_large_100": 224,
}
CELLS = ("fp32:ort", "fp32:openvino", "int8:ort", "int8:openvino")
#: The candidate that all others are compared with, run in whichever way of its own a few rounds show to be the fastest.
OURS = "deploykit int8, OpenVINO"
ROUNDS_AMONG_OURS = 6
PRESETS = {"default": "performance", "mixed": "mixed"}
OPENVINO = (RunConfig("openvino", precision="auto"), RunConfig("openvino", precision="f32"))
ORT = (RunConfig("onnxruntime", precision="f32"),)
MEGABYTES = 1e6


@dataclass(frozen=True)
class Entry:
    """A file to time, or why there is none.

    Attributes:
        name: In the table.
        runs: How it is run.
        path: The file; "" where there is none.
        failed: Why not.
    """

    name: str
    runs: tuple[RunConfig, ...]
    path: str = ""
    failed: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table: a candidate with its answers' distance from PyTorch's, and its timing."""

    name: str
    run: RunConfig
    sqnr_db: float
    cosine: float
    timing: Timing


@dataclass(frozen=True)
class Quantized:
    """What quantizing took: seconds of the quantizer alone, and the largest resident set of its process in MB."""

    seconds: float
    megabytes: float


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def render(folder: Path, size: int, count: int) -> Path:
    """Write calibration images as PNG, as wide as the model wants them."""
    import PIL.Image

    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        PIL.Image.fromarray(rendered.render("calib", index, size)[0]).save(folder / f"{index:04d}.png")
    return folder


def export(model: str, size: int, calib: Path, count: int, out: Path) -> Bundle:
    """Export with the family's recipe; nothing is judged, since weights are random, and nothing repaired."""
    options = deploykit.ExportOptions(
        cells=CELLS,
        out=str(out),
        calib=str(calib),
        calib_size=count,
        verify=False,
        repair=False,
        bench=False,
        source=SourceOptions(random_weights=True, image_size=size),
    )
    return deploykit.export_model(model, options).bundle


def nncf_command(python: str, source: Path, made: Path, calib: Path, count: int, recipe: Preprocess) -> list[str]:
    """Return the command that quantizes with NNCF."""
    numbers = [",".join(map(str, values)) for values in (recipe.mean, recipe.std)]
    where = [python, str(Path(__file__).with_name("nncf_peer.py")), str(source), str(made)]
    return [*where, f"--images={calib}", f"--count={count}", f"--mean={numbers[0]}", f"--std={numbers[1]}"]


def finished(words: list[str], env: Mapping[str, str] | None = None) -> tuple[str, float]:
    """Run a process to its end, and return the last line that it printed and its largest resident set in MB.

    Raises:
        RuntimeError: It did not end with 0.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stdout=out, stderr=errors, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, errors):
            stream.seek(0)
            texts.append(stream.read().strip() or "-")
    if process.returncode != 0:
        raise RuntimeError(texts[1].splitlines()[-1])
    return texts[0].splitlines()[-1], usage.ru_maxrss * 1024 / MEGABYTES


def quantize_static(source: Path, made: Path, calib: Path, count: int, recipe: Preprocess, name: str) -> None:
    """Quantize with ONNX Runtime: Q/DQ, weights with a scale per channel."""
    import onnxruntime.quantization as ort

    feeds = inputs(calib, count, recipe)

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            row = next(feeds, None)
            return None if row is None else {name: row}

    ort.quantize_static(str(source), str(made), Reader(), quant_format=ort.QuantFormat.QDQ, per_channel=True)


def inputs(calib: Path, count: int, recipe: Preprocess) -> Iterator[NDArray[np.float32]]:
    """Yield calibration images as inputs, float32 [1, C, H, W]."""
    for path in sorted(calib.glob("*.png"))[:count]:
        yield normalize(images.decode(path)[None], recipe)


def _recipe(bundle: Bundle) -> Preprocess:
    return sources.located(bundle.manifest.source.locator).recipe


def peers(bundle: Bundle, calib: Path, count: int, python: str, folder: Path) -> Iterator[Entry]:
    """Quantize with the peers; one that fails is told, with the last line of what it said."""
    files = {artifact.name.split(".", 1)[1]: bundle.root / artifact.main.path for artifact in bundle.manifest.artifacts}
    artifact = bundle.manifest.artifacts[0]
    recipe, name = _recipe(bundle), artifact.inputs[0].name
    for title, preset in PRESETS.items():
        made = folder / f"nncf-{title}.xml"
        say(f"NNCF {title}")
        try:
            command = nncf_command(python, files["fp32.openvino"], made, calib, count, recipe)
            finished([*command, f"--preset={preset}"])
            yield Entry(f"NNCF {title}, OpenVINO", OPENVINO, str(made))
        except (OSError, RuntimeError) as error:
            yield Entry(f"NNCF {title}, OpenVINO", OPENVINO, failed=str(error))
    say("quantize_static")
    made = folder / "static.onnx"
    try:
        quantize_static(files["fp32.ort"], made, calib, count, recipe, name)
        yield Entry("quantize_static, ONNX Runtime", ORT, str(made))
    except Exception as error:  # whatever the peer raises is its result  # noqa: BLE001
        yield Entry("quantize_static, ONNX Runtime", ORT, failed=f"{type(error).__name__}: {error}")
    yield Entry("deploykit fp32, OpenVINO", OPENVINO, str(files["fp32.openvino"]))
    yield Entry("deploykit fp32, ONNX Runtime", ORT, str(files["fp32.ort"]))
    yield Entry("deploykit int8, ONNX Runtime", ORT, str(files["int8.ort"]))
    yield Entry(OURS, OPENVINO, str(files["int8.openvino"]))


def answers(path: str, run: RunConfig, golden: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a file answers to every golden input, one at a time."""
    with get_backend(run.backend).open(path, run) as session:
        name = session.inputs[0].name
        rows = [next(iter(session.infer({name: row[None]}).values())) for row in golden]
    return np.concatenate(rows)


def timed(model: str, bundle: Bundle, entries: list[Entry], options: BenchOptions) -> list[Row]:
    """Judge and time every candidate."""
    golden = bundle.manifest.golden
    fed = next(iter(load_tensors(bundle.root / golden.inputs.path).values()))
    wanted = next(iter(load_tensors(bundle.root / golden.references[ORIGINAL].path).values()))
    named = [(entry, run) for entry in entries if entry.path for run in entry.runs]
    candidates = [Candidate(f"{entry.name} {run.precision}", entry.path, run) for entry, run in named]
    ours = [candidate for candidate in candidates if candidate.name.startswith(OURS)]

    def feeds(specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[np.float32]]:
        return {specs[0].name: fed[:1]}

    def progress(done: int, total: int) -> None:
        if done % (5 * len(candidates)) == 0:
            say(f"{model}: {done} of {total} bursts")

    found = measure(ours, feeds, replace(options, rounds=ROUNDS_AMONG_OURS), baseline=None, progress=progress)
    first = min(zip(ours, found, strict=True), key=lambda pair: pair[1].median_ms)[0].name
    timings = measure(candidates, feeds, options, baseline=first, progress=progress)
    rows = []
    for (entry, run), timing in zip(named, timings, strict=True):
        answered = answers(entry.path, replace(run, threads=options.threads), fed)
        if not drift.is_finite(answered):
            raise RuntimeError(f"{entry.name}, {run.label}: answers are not finite")
        row = Row(entry.name, timing.run, drift.sqnr_db(wanted, answered), drift.cosine_min(wanted, answered), timing)
        rows.append(row)
    return rows


def latency_table(model: str, size: int, rows: list[Row], failed: list[Entry], options: BenchOptions) -> str:
    """Return one model's results as Markdown."""
    lines = [
        f"## {model}, {size} px",
        "",
        f"Batch 1, threads: {options.threads}, rounds: {options.rounds}.",
        "",
        "| candidate | float part | ran | ms | n | its time over ours, paired (95 % CI) | SQNR, dB | worst cosine |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: row.timing.median_ms):
        speed = row.timing.speedup
        ratio = "1" if speed is None else f"{1 / speed.median:.3f} ({1 / speed.upper:.3f} to {1 / speed.lower:.3f})"
        lines.append(
            f"| {row.name} | {row.run.precision} | {row.timing.ran.precision} | {row.timing.median_ms:.2f} | "
            f"{row.timing.n} | {ratio} | {row.sqnr_db:.1f} | {row.cosine:.4f} |"
        )
    lines += [f"| {entry.name} | | | not built: {entry.failed[:160]} | | | | |" for entry in failed]
    rivals = [row for row in rows if row.timing.speedup and not row.name.startswith("deploykit int8")]
    exact = [row for row in rivals if row.name.startswith("deploykit fp32") and row.run.precision == "f32"]
    for title, among in (("best peer", rivals), ("best fp32", exact)):
        best = min(among, key=lambda row: row.timing.median_ms)
        assert best.timing.speedup is not None
        lines += ["", f"Against the {title} ({best.name}, {best.run.precision}): {1 / best.timing.speedup.median:.2f}."]
    return "\n".join([*lines, ""])


def latency(models: list[str], python: str, count: int, options: BenchOptions) -> Iterator[str]:
    """Yield every model's table."""
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            say(f"{model}: rendering and exporting")
            calib = render(folder / "calib", MODELS[model], count)
            bundle = export(model, MODELS[model], calib, count, folder / "bundle")
            entries = list(peers(bundle, calib, count, python, folder))
            rows = timed(model, bundle, entries, options)
            yield latency_table(model, MODELS[model], rows, [entry for entry in entries if entry.failed], options)


def quantizing(model: str, python: str, count: int, pairs: int) -> str:
    """Compare time and memory of quantizing for OpenVINO."""
    size = MODELS[model]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say(f"{model}: rendering and exporting")
        calib = render(folder / "calib", size, count)
        bundle = export(model, size, calib, count, folder / "bundle")
        found = []
        for pair in range(pairs):
            say(f"{model}: pair {pair + 1} of {pairs}")
            found.append((_ours(model, size, calib, count, folder / f"own{pair}"), _nncf(bundle, python, calib, count)))
    ours, theirs = ([pair[index] for pair in found] for index in (0, 1))
    ratio = float(np.median([mine.seconds / other.seconds for mine, other in found]))
    lines = [
        f"## {model}, {size} px, {count} images",
        "",
        "| what | seconds | peak memory of the process, MB |",
        "|---|---:|---:|",
    ]
    for title, runs in (("deploykit: calibration, ranges, quantize", ours), ("`nncf.quantize`, OpenVINO", theirs)):
        seconds, megabytes = (float(np.median([getattr(run, key) for run in runs])) for key in ("seconds", "megabytes"))
        lines.append(f"| {title} | {seconds:.1f} | {megabytes:.0f} |")
    return "\n".join([*lines, "", f"Ratio of the times, paired: {ratio:.2f} (n={pairs}).", ""])


def _ours(model: str, size: int, calib: Path, count: int, folder: Path) -> Quantized:
    words = [sys.executable, "-m", "deploykit", "export", model, "--random-weights", f"--image-size={size}", "--int8"]
    words += ["--openvino", f"--calib={calib}", f"--calib-size={count}", "--no-repair", "--no-verify", "--no-bench"]
    cache = {"DEPLOYKIT_CACHE": str(folder / "cache")}
    _, megabytes = finished([*words, f"--out={folder / 'bundle'}"], cache)
    stages = json.loads((folder / "bundle" / "manifest.json").read_bytes())["stages"]
    seconds = sum(stage["seconds"] for stage in stages if stage["stage"] in {"calibration", "ranges", "quantize"})
    return Quantized(seconds, megabytes)


def _nncf(bundle: Bundle, python: str, calib: Path, count: int) -> Quantized:
    source = next(file.main.path for file in bundle.manifest.artifacts if file.name.endswith("fp32.openvino"))
    made = calib.parent / "nncf.xml"
    recipe = _recipe(bundle)
    line, megabytes = finished(nncf_command(python, bundle.root / source, made, calib, count, recipe))
    return Quantized(float(json.loads(line)["seconds"]), megabytes)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nncf", required=True, metavar="PYTHON", help="interpreter of an environment with NNCF")
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--quantize", action="store_true", help="time and memory of quantizing instead of latency")
    parser.add_argument("--images", type=int, help="calibration images: 32, or 300 with --quantize")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3, help="of --quantize")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        line, _ = finished(
            [given.nncf, "-c", "import nncf, openvino, PIL; print(nncf.__version__, openvino.__version__)"]
        )
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"{given.nncf} has no NNCF ({error}): DIR/bin/pip install nncf pillow, in a venv") from error
    machine = Machine.here()
    command = " ".join(["python benchmarks/int8_peers.py --nncf PYTHON", *sys.argv[1:]]).replace(
        f"--nncf {given.nncf} ", ""
    )
    parts = [
        "# Quantizing beside NNCF" if given.quantize else "# int8 beside other quantizers",
        "",
        f"`{command}`",
        "",
        f"{machine.cpu}, {machine.cores} cores, Python {machine.python}; NNCF and its OpenVINO: {line}. Random weights.",
        "",
    ]
    options = BenchOptions(rounds=given.rounds, threads=given.threads)
    if given.quantize:
        models = given.model or ["convnext_tiny"]
        tables: Iterator[str] = (quantizing(model, given.nncf, given.images or 300, given.pairs) for model in models)
    else:
        tables = latency(given.model or list(MODELS), given.nncf, given.images or 32, options)
    try:
        for table in tables:
            parts.append(table)
            print(table, flush=True)
            if given.out:
                given.out.write_text("\n".join(parts), encoding="utf-8")
    except DeploykitError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
