"""Export the smallest model of every timm module with a dynamic batch, and stand the plain exporter beside it.

    nice -n 10 python scripts/breadth.py --state breadth.jsonl --table docs/results/timm.md

Each model is exported by `deploykit.workflow.export` with random weights, as fp32 for ONNX Runtime and OpenVINO, and judged
by its own gates; then `torch.onnx.export` writes the same network, and both runtimes run that at a batch that it was not
traced at. A model runs in a process of its own with one PyTorch thread. What is done is kept as JSON lines in `--state`: a
second run goes on where the first one ended. The exit code is 1 where a model passes plainly and fails here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from deploykit import optional, serde, telemetry
from deploykit.artifact import RunConfig
from deploykit.bundle import load_tensors
from deploykit.errors import DeploykitError
from deploykit.export.cache import Cache
from deploykit.manifest import Machine
from deploykit.models.original import INPUT_NAME, Original, SourceOptions
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.golden import ORIGINAL
from deploykit.verdict import Judgement, Verdict
from deploykit.workflow.export import Exported, export_model
from deploykit.workflow.options import ExportOptions

if TYPE_CHECKING:
    from torch import nn

PASS: Final = "pass"
CELLS: Final = ("fp32:ort", "fp32:openvino")
#: Pixels that a network of any size is tried at; the first that it runs at and that is below its native size is taken.
SIDES: Final = (128, 160, 192, 224)
#: The plain export: rows that it is traced at, rows that it is run at, and how far it may lie from PyTorch (relative max).
TRACED, RUN, TOLERANCE = 2, 5, 1e-3
OPSET: Final = 20
#: Seconds for an export with its judgements, and for a plain export with its runs.
OURS_LIMIT, PLAIN_LIMIT = 900.0, 300.0
#: Seconds for a child that has said all to end.
ENDING_LIMIT: Final = 20.0
#: Outputs that differ less than this from image to image (relative max) prove nothing.
LEAST_SPREAD: Final = 1e-3
#: What a network does to say that an image of this size isn't for it.
UNFIT = (TypeError, ValueError, AssertionError, LookupError, RuntimeError, AttributeError, NotImplementedError)
LIBRARIES: Final = ("torch", "timm", "onnx", "onnxscript", "onnxsim", "onnxruntime", "openvino")
#: What a child needs whatever it does: imported once, before children are forked.
PRELOADED: Final = ["deploykit.workflow.export", "timm", "torch.onnx", "torch.export", "onnxscript", "onnxsim"]

ABOUT: Final = """\
Each module is represented by its model with the fewest parameters, with random weights that are settled on images, and with
a dynamic batch. A network of a fixed image size has its own; any other has its stated minimum, else the first of {sides}
pixels at which it runs, but never more than its own.

- **deploykit** passes where the export does and the gates of both artifacts, ONNX Runtime's and OpenVINO's, run in float32,
  pass: drift from PyTorch on 16 images, and every row at batch sizes 1, 3, 5 and 8 as at the traced one.
- **plain** passes where `torch.onnx.export(dynamo=True)` of the same network does and both runtimes, in float32, answer a
  batch of {run} images within {tolerance:.0e} of PyTorch (relative max); it is traced at {traced} rows, opset {opset}.
- **auto** is OpenVINO's own choice of precision (bfloat16 on some processors), by deploykit's gates: another way to run the
  same file. It does not count.
"""


@dataclass(frozen=True)
class Pick:
    """The model that stands for a module.

    Attributes:
        module: Name of the module in `timm.models`.
        model: timm's name of its smallest model.
        parameters: Number of trained values.
        pixels: Height and width of the images.
        native: Whether these are the model's own.
        skipped: Models of the module that can't be built, each with the reason.
    """

    module: str
    model: str
    parameters: int
    pixels: int
    native: bool
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What was found out about a pick.

    Attributes:
        pick: The model.
        versions: Libraries that took part.
        ours: "pass", or why not, of the artifacts run in float32.
        exporter: How deploykit's trace came about, in its own words.
        auto: "pass", or why not, of OpenVINO's own choice of precision.
        plain: "pass", or why not, of the plain export.
        ours_seconds: How long the export took with its judgements.
        plain_seconds: How long the plain export took with its runs.
    """

    pick: Pick
    versions: Mapping[str, str]
    ours: str
    exporter: str
    auto: str
    plain: str
    ours_seconds: float
    plain_seconds: float

    @property
    def lost(self) -> bool:
        """Whether the plain exporter does what deploykit can't."""
        return self.plain == PASS and self.ours != PASS


@dataclass(frozen=True)
class Ours:
    """What an export's own gates say; attributes as in `Row`."""

    ours: str
    exporter: str = ""
    auto: str = ""


def pick(module: str) -> Pick:
    """Count the values of every model of a module, without memory for them, and take the smallest.

    Raises:
        SystemExit: No model of the module can be built.
    """
    import timm
    import torch

    sizes: list[tuple[int, str]] = []
    skipped: list[str] = []
    for name in timm.list_models(module=module):
        try:
            with torch.device("meta"):
                built = timm.create_model(name)
            sizes.append((sum(parameter.numel() for parameter in built.parameters()), name))
        except UNFIT as error:
            skipped.append(f"{name}: {_line(error)}")
    if not sizes:
        raise SystemExit(f"no model of timm.models.{module} can be built: {'; '.join(skipped)}")
    parameters, name = min(sizes)
    pixels, native = side(name)
    return Pick(module, name, parameters, pixels, native, tuple(skipped))


def side(name: str) -> tuple[int, bool]:
    """Return the smallest image that a model is for, and whether it is the model's own.

    A fixed input size stays; a stated minimum is taken; else the sides in `SIDES` are tried.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    native = int(config.input_size[1])
    if config.fixed_input_size:
        return native, True
    tried = (config.min_input_size[1],) if config.min_input_size else SIDES
    pixels = next((int(one) for one in tried if one < native and fits(name, int(one))), native)
    return pixels, pixels == native


def fits(name: str, pixels: int) -> bool:
    """Tell whether a model runs on images of this size."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            try:
                built = timm.create_model(name, img_size=pixels)
            except TypeError:  # networks of any size have no such argument
                built = timm.create_model(name)
            built.eval()(torch.empty(TRACED, 3, pixels, pixels))
    except UNFIT:
        return False
    return True


def source_of(picked: Pick) -> SourceOptions:
    """Return how the model is opened."""
    return SourceOptions(random_weights=True, image_size=None if picked.native else picked.pixels)


def child(picked: Pick, sender: Connection) -> None:
    """Export twice and send both results, each as soon as it is there."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sender.send(ours(picked))
    sender.send(plain(picked))


def ours(picked: Pick) -> Ours:
    """Export with deploykit into a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="breadth-") as folder:
        options = ExportOptions(
            cells=CELLS, out=f"{folder}/bundle", dynamic=("batch",), bench=False, cache=False, source=source_of(picked)
        )
        try:
            exported = export_model(f"timm:{picked.model}", options)
        except DeploykitError as error:
            return Ours(_line(error))
        except Exception as error:  # noqa: BLE001 - a bug is a result too
            return Ours(f"{type(error).__name__}: {_line(error)}")
        return judged(exported)


def judged(exported: Exported) -> Ours:
    """Sum up what the gates of a bundle say."""
    manifest = exported.bundle.manifest
    fixed = [one for one in manifest.judgements if one.run.precision == "f32"]
    loose = [one for one in manifest.judgements if one.run.precision != "f32"]
    facts = next(stage.facts for stage in manifest.stages if stage.stage == "trace")
    found = next((text for text in map(failure, fixed) if text), PASS)
    if len({one.artifact for one in fixed}) != len(CELLS):
        found = f"{len(fixed)} judgements in float32, not {len(CELLS)}"
    outputs = load_tensors(exported.bundle.path(manifest.golden.references[ORIGINAL]))
    if found == PASS and max(map(spread, outputs.values())) < LEAST_SPREAD:
        found = "the original answers every image alike: nothing is proved"
    return Ours(found, str(facts.get("exporter", "")), next((text for text in map(failure, loose) if text), PASS))


def failure(judgement: Judgement) -> str:
    """Return the first gate that isn't passed, or ""."""
    if judgement.verdict is Verdict.PASS:
        return ""
    where = judgement.run.label
    for gate in judgement.gates:
        if gate.verdict is not Verdict.PASS:
            return f"{where}: {gate.metric} {gate.value:.1e}, bound {gate.bound:.1e}" + (
                gate.reason and f" ({gate.reason})"
            )
    return f"{where}: {judgement.verdict.value}: {judgement.reason}"


def spread(rows: np.ndarray[Any, Any]) -> float:
    """Return how much answers differ from the first row's, relative to the largest value."""
    return drift.relative_max(rows, np.broadcast_to(rows[:1], rows.shape))


def plain(picked: Pick) -> str:
    """Export the same network with the stock exporter and run it; return "pass", or why not."""
    from deploykit.models import sources

    original = sources.resolve(f"timm:{picked.model}", source_of(picked))
    module = sources.open_module(original)
    with tempfile.TemporaryDirectory(prefix="breadth-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            stock_export(module, original, path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the exporter can't
            return f"export: {_cause(error)}"
        images = golden_images(original)
        expected = answers(module, images)
        found = (stock_run(path, backend, images, expected) for backend in ("onnxruntime", "openvino"))
        return next((text for text in found if text), PASS)


def stock_export(module: nn.Module, original: Original, path: Path) -> None:
    """Write ONNX as PyTorch's own documentation does."""
    import torch

    example = torch.randn((TRACED, *original.recipe.input_size), generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=[original.task],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    program.save(str(path))


def golden_images(original: Original) -> np.ndarray[Any, Any]:
    """Return images as the gates see them: float32 [RUN, C, H, W]."""
    from deploykit.models import head

    return np.asarray(head.sample_images(original.recipe)[:RUN])


def answers(module: nn.Module, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what PyTorch answers."""
    import torch

    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(images)))


def stock_run(path: Path, backend: str, images: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> str:
    """Run a file in float32; return why its answers don't do, or ""."""
    try:
        with get_backend(backend).open(str(path), RunConfig(backend, precision="f32", threads=1)) as session:
            found = session.infer({session.inputs[0].name: images})[session.outputs[0].name]
        error = drift.relative_max(expected, found)
    except (DeploykitError, ValueError) as refusal:
        return f"{backend}: {_line(refusal)}"
    return "" if error <= TOLERANCE else f"{backend}: relative max {error:.1e} at batch {RUN}"


def _line(error: BaseException) -> str:
    """Return the first line of a message, or the error's kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cause(error: BaseException) -> str:
    """Return what an exporter's error comes from: its own message is advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_line(error)}"


def measure(picked: Pick, versions: Mapping[str, str]) -> Row:
    """Run a child over a pick; one that dies or hangs is a result."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(picked, sender))
    process.start()
    sender.close()
    try:
        started = time.perf_counter()
        first = _receive(receiver, process, OURS_LIMIT)
        between = time.perf_counter()
        second = _receive(receiver, process, PLAIN_LIMIT) if isinstance(first, Ours) else "not reached"
        ended = time.perf_counter()
        process.join(ENDING_LIMIT)
    finally:
        process.kill()
        process.join()
        receiver.close()
    found = first if isinstance(first, Ours) else Ours(str(first))
    return Row(
        picked,
        versions,
        found.ours,
        found.exporter,
        found.auto,
        str(second),
        round(between - started, 1),
        round(ended - between, 1),
    )


def _receive(receiver: Connection, process: multiprocessing.process.BaseProcess, limit: float) -> object:
    if not receiver.poll(limit):
        return f"not done after {limit:.0f} s"
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"the process ended with {process.exitcode}"


class State:
    """Picks and rows as JSON lines; of two lines about the same, the later one holds."""

    def __init__(self, path: Path, versions: Mapping[str, str]) -> None:
        self.path = path
        self.versions = versions
        self.picks: dict[str, Pick] = {}
        self.rows: dict[str, Row] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            entry = json.loads(line)
            if "pick" in entry and entry["timm"] == versions["timm"]:
                made = serde.from_json(Pick, entry["pick"])
                self.picks[made.module] = made
            if "row" in entry:
                row = serde.from_json(Row, entry["row"])
                if row.versions == versions:
                    self.rows[row.pick.module] = row

    def pick(self, module: str) -> Pick:
        """Return the model of a module, found now or earlier."""
        if module not in self.picks:
            self.picks[module] = pick(module)
            self._write({"timm": self.versions["timm"], "pick": serde.to_json(self.picks[module])})
        return self.picks[module]

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows[row.pick.module] = row
        self._write({"row": serde.to_json(row)})

    def _write(self, entry: Mapping[str, object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def table(rows: list[Row], modules: int) -> str:
    """Return the results as Markdown."""
    machine, versions = Machine.here(), rows[0].versions
    lost = [row.pick.model for row in rows if row.lost]
    skipped = [text for row in rows for text in row.pick.skipped]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    counts = {
        "deploykit": sum(row.ours == PASS for row in rows),
        "plain": sum(row.plain == PASS for row in rows),
        "auto": sum(row.auto == PASS for row in rows),
    }
    return "\n".join(
        [
            "# The smallest model of every timm module",
            "",
            f"`python scripts/breadth.py --table docs/results/timm.md`, {machine.cpu}, {machine.cores} cores,",
            f"Python {machine.python}, {libraries}.",
            "",
            ABOUT.format(sides=", ".join(map(str, SIDES)), run=RUN, traced=TRACED, tolerance=TOLERANCE, opset=OPSET),
            "| | passed | of |",
            "|---|---:|---:|",
            *(f"| {name} | {count} | {len(rows)} |" for name, count in counts.items()),
            "",
            f"Modules without a row: {modules - len(rows)} of {modules}.",
            f"Passed plainly and failed here: {', '.join(lost) or 'none'}.",
            f"Models that can't be built: {'; '.join(skipped) or 'none'}.",
            "",
            "| module | model | parameters | pixels | deploykit | exporter | auto | plain | seconds | plain seconds |",
            "|---|---|---:|---:|---|---|---|---|---:|---:|",
            *map(_cells, rows),
            "",
        ]
    )


def _cells(row: Row) -> str:
    texts = (
        row.pick.module,
        row.pick.model,
        f"{row.pick.parameters:,}",
        str(row.pick.pixels),
        row.ours,
        row.exporter,
        row.auto,
        row.plain,
        f"{row.ours_seconds:.0f}",
        f"{row.plain_seconds:.0f}",
    )
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|")[:160] for text in texts) + " |"


def _wanted(state: State, modules: list[str], *, again: bool) -> Iterator[str]:
    """Yield modules that have no row yet, or with `again` none that passed."""
    for module in modules:
        row = state.rows.get(module)
        if row is None or (again and row.ours != PASS):
            yield module


def main() -> int:
    """Measure what is missing and write the table; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, help="JSON lines of what is done (default: in deploykit's cache)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="modules that match a shell pattern")
    parser.add_argument("--retry-failed", action="store_true", help="run models again that failed here")
    parser.add_argument("--table", type=Path, help="write the Markdown table of all that is done")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    telemetry.switch_off()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    import timm

    state = State(options.state or Cache.default().root / "breadth.jsonl", optional.installed(LIBRARIES))
    modules = timm.list_modules()
    for module in _wanted(state, [name for name in modules if fnmatch(name, options.only)], again=options.retry_failed):
        row = measure(state.pick(module), state.versions)
        state.add(row)
        print(json.dumps({**dataclasses.asdict(row), "versions": None}), flush=True)
    rows = [state.rows[module] for module in modules if module in state.rows]
    if options.table and rows:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(rows, len(modules)), encoding="utf-8")
    return 1 if any(row.lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
