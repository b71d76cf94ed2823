"""Time, memory and size of building TensorRT-RTX engines of networks of real size, without a GPU.

    python -m benchmarks.trt_builds [--model NAME ...] [--runs 3] [--out docs/results/trt_builds.md]

Weights are random; int8 is calibrated on images that are rendered at the network's size. The graphs are those that
`deploykit export --trt-rtx` makes, for every architecture that can hold the precision. Each build has a process of its own:
seconds are those of the build alone, memory is what that process held at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.int8_peers import MEGABYTES, finished, render, say
from benchmarks.pages import table

import deploykit
from deploykit.export import onnx_files
from deploykit.export.cache import Cache
from deploykit.export.engines.tensorrt import layers_of, order_of
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.export.target import PackageOptions
from deploykit.manifest import Machine
from deploykit.models.original import SourceOptions
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.runtime.backends.tensorrt_record import BuildOrder
from deploykit.verdict import Executed, int8_share
from deploykit.workflow.export import prepare

MODELS: Final = {
    "convnext_tiny": 288,
    "convnextv2_tiny": 288,
    "tf_efficientnetv2_s": 384,
    "mobilenetv3_large_100": 224,
    "vit_small_patch14_dinov2": 224,
    "vit_small_patch14_reg4_dinov2": 224,
}
#: Calibration images.
IMAGES: Final = 32
#: A build may take so long, and so much memory beyond the process as it was and three times the engine.
MOST_SECONDS: Final = 10.0
MOST_BYTES: Final = 300_000_000
ENGINES: Final = 3


@dataclass(frozen=True)
class Kind:
    """A kind of engine: its precision, and the open batch with its range, "" where it is one image."""

    precision: str
    profile: str = ""

    @property
    def title(self) -> str:
        """As the table has it."""
        return f"{self.precision}, batch {self.profile or 1}"


KINDS: Final = (Kind("fp16"), Kind("int8"), Kind("fp16", "1,8,32"))


@dataclass(frozen=True)
class Build:
    """One build.

    Attributes:
        seconds: Of the build alone.
        parser_s: Of asking the parser what it takes, before.
        bare: Anonymous memory before, bytes.
        peak: The most while it was built, bytes.
        size: Of the engine, bytes.
        sha256: Of the engine.
    """

    seconds: float
    parser_s: float
    bare: int
    peak: int
    size: int
    sha256: str

    @property
    def allowed(self) -> int:
        """The most memory that it may hold, bytes."""
        return self.bare + MOST_BYTES + ENGINES * self.size


@dataclass(frozen=True)
class Row:
    """All builds of one engine.

    Attributes:
        model: Of which network.
        kind: What was built.
        order: For which GPUs.
        builds: In the order in which they were made.
        layers: As the engine's program has them.
    """

    model: str
    kind: Kind
    order: BuildOrder
    builds: tuple[Build, ...]
    layers: tuple[Executed, ...]

    @property
    def seconds(self) -> float:
        """Median of the builds."""
        return statistics.median(build.seconds for build in self.builds)

    @property
    def worst(self) -> Build:
        """The build that held most."""
        return max(self.builds, key=lambda build: build.peak)

    @property
    def is_same(self) -> bool:
        """Whether every build gave the same bytes."""
        return len({build.sha256 for build in self.builds}) == 1

    @property
    def missed(self) -> tuple[str, ...]:
        """What was not kept, in words."""
        told = [f"{self.seconds:.1f} s"] if self.seconds > MOST_SECONDS else []
        told += [f"{self.worst.peak / MEGABYTES:.0f} MB"] if self.worst.peak > self.worst.allowed else []
        return (*told, *(() if self.is_same else ("other bytes",)))

    @property
    def text(self) -> str:
        """The row of the table."""
        spread = [build.seconds for build in self.builds]
        worst = self.worst
        eighths = 100 * int8_share(self.layers)
        cells = (
            self.model,
            self.kind.title,
            ", ".join(map(str, self.order.capabilities)),
            f"{self.seconds:.2f} ({min(spread):.2f} to {max(spread):.2f})",
            f"{statistics.median(build.parser_s for build in self.builds):.2f}",
            f"{worst.size / MEGABYTES:.1f}",
            f"{worst.peak / MEGABYTES:.0f}",
            f"{worst.allowed / MEGABYTES:.0f}",
            "yes" if self.is_same else "no",
            f"{eighths:.1f}" if self.kind.precision == "int8" else "",
            ", ".join(self.missed) or "kept",
        )
        return f"| {' | '.join(cells)} |"


COLUMNS: Final = (
    *("network", "engine", "SM", "build, s", "parser, s", "engine, MB", "peak, MB", "limit, MB", "same bytes"),
    *("int8, %", "limits"),
)
ALIGNMENT: Final = "|---|---|---|---:|---:|---:|---:|---:|---|---:|---|"


def measure(model: str, kind: Kind, calib: Path, runs: int) -> Row:
    """Make one graph, from the cache where it is known, and build its engine several times."""
    options = deploykit.ExportOptions(
        cells=(f"{kind.precision}:trt-rtx",),
        dynamic=("batch",) if kind.profile else (),
        profile=(f"batch={kind.profile}",) if kind.profile else (),
        calib=str(calib),
        calib_size=IMAGES,
        verify=False,
        bench=False,
        source=SourceOptions(random_weights=True, image_size=MODELS[model]),
    )
    preview = prepare(model, options)
    packaging = next(node for node in preview.plan.nodes if node.stage.makes == "artifact")
    source = packaging.inputs["graph"]
    say(f"{model} {kind.title}: {preview.plan.reaching([source]).text()}")
    item = Pipeline(Cache.default(), Silent()).run(preview.plan.reaching([source]))[source].item
    graph = item.path(onnx_files.MODEL)
    structure = onnx_files.load(graph)
    assert isinstance(packaging.options, PackageOptions), "what the node of an artifact takes"
    order = order_of(RTX, item.digest, packaging.options, structure)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "order.json").write_bytes(order.to_bytes())
        builds = []
        for number in range(runs):
            builds.append(_build(graph, Path(scratch)))
            say(f"{model} {kind.title}: build {number + 1} of {runs}, {builds[-1].seconds:.2f} s")
        layers = tuple(layers_of(structure, (Path(scratch) / "engine").read_bytes()))
    return Row(model, kind, order, tuple(builds), layers)


def _build(graph: Path, folder: Path) -> Build:
    program = Path(__file__).with_name("trt_build_process.py")
    made = folder / "engine"
    line, _ = finished([sys.executable, str(program), str(graph), str(folder / "order.json"), str(made)])
    told = json.loads(line)
    if told["refused"]:
        raise SystemExit(f"the parser refuses {told['refused']} nodes of {graph}")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    return Build(told["build_s"], told["parser_s"], told["bare"], told["peak"], made.stat().st_size, digest)


def rows_of(models: Sequence[str], runs: int) -> Iterator[Row]:
    """Measure every kind of engine of every network."""
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            calib = render(Path(scratch) / "calib", MODELS[model], IMAGES)
            for kind in KINDS:
                yield measure(model, kind, calib, runs)


def document(command: str, rows: Sequence[Row], runs: int) -> str:
    """Return the whole page."""
    machine = Machine.here()
    lines = [
        "# Building TensorRT-RTX engines",
        "",
        f"`{command}`, {machine.cpu}, {machine.cores} cores, no GPU, Python {machine.python},",
        f"TensorRT for RTX {COMPONENTS[RTX.module].version()}. Random weights, n={runs} builds of each, a process for each.",
        "",
        "- *build* is the median of the build alone, with the least and the most; *parser* is how long it was asked which",
        "  nodes it takes, before.",
        "- *peak* is the most anonymous memory of the two processes, the one that asks and the one that builds, in the worst",
        "  build; the *limit* is what the first held with the library imported, "
        f"{MOST_BYTES / MEGABYTES:.0f} MB and {ENGINES} times the engine.",
        "- *same bytes*: every one was the same engine.",
        "- *int8* is the share of the multiply-adds that the engine's own program has in 8 bits.",
        f"- *limits*: less than {MOST_SECONDS:.0f} s, no more memory than the limit, the same bytes.",
        *table((COLUMNS, ALIGNMENT), rows),
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and write; returns 3 where a limit was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: list[Row] = []
    command = " ".join(["python -m benchmarks.trt_builds", *sys.argv[1:]])
    for row in rows_of(given.model or list(MODELS), given.runs):
        rows.append(row)
        if given.out is not None:
            given.out.write_text(document(command, rows, given.runs), encoding="utf-8")
    print(document(command, rows, given.runs))
    return 3 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
