"""`deploykit inspect`: what a bundle or an artifact holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import source
from deploykit.optional import COMPONENTS
from deploykit.texts import one_line

if TYPE_CHECKING:
    from deploykit.artifact import RunConfig, TensorSpec
    from deploykit.manifest import Manifest
    from deploykit.runtime.backends.base import Backend
    from deploykit.runtime.backends.tensorrt_record import EngineRecord
    from deploykit.verdict import Ran

EXAMPLES = (
    "deploykit inspect deploy/tiny-convnext",
    "deploykit inspect deploy/tiny-convnext --code",
    "deploykit inspect model.onnx --json",
)


def inspect(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|FILE", help="A bundle's folder, or an artifact's file.")],
    code: Annotated[
        bool, typer.Option("--code", help="Print Python that opens each artifact without deploykit.")
    ] = False,
    seal: source.Seal = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show interface, files, hashes, verdicts and how each artifact is run."""
    from deploykit.cli import render
    from deploykit.serde import to_json
    from deploykit.workflow.opened import open_bundle

    source.check_seal(target, seal)
    if not target.is_dir():
        _inspect_file(target, as_json=as_json, code=code)
        return
    bundle = open_bundle(target)
    if as_json:
        render.print_json(to_json(bundle.manifest))
    elif code:
        _print_code(target, bundle.manifest)
    else:
        _print_manifest(target, bundle.manifest)


COMMAND = inspect


def _print_manifest(root: Path, manifest: Manifest) -> None:
    from deploykit.cli import render
    from deploykit.runtime.report import terminal
    from deploykit.verdict import Report

    console = render.out()
    for label, text in (
        *terminal.provenance(manifest).items(),
        *([("labels", f"{len(manifest.labels)}: {', '.join(manifest.labels[:12])}")] if manifest.labels else []),
        ("seal", manifest.seal),
        ("stages", " → ".join(record.node for record in manifest.stages if record.stage not in {"judge", "bench"})),
    ):
        console.print(f"{label:<9} {one_line(text)}", markup=False)
    for artifact in manifest.artifacts:
        console.print(f"{artifact.name}", markup=False, style="bold")
        for record in artifact.files:
            console.print(f"  file    {root / record.path}  {terminal.megabytes(record.bytes)}  sha256 {record.sha256}")
        for side, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
            for spec in specs:
                console.print(f"  {side:<7} {one_line(spec.name)} {spec.dtype} {one_line(spec.text)}", markup=False)
        for run in artifact.runs:
            console.print(f"  run     {one_line(run.label)}", markup=False)
    report = Report(
        str(root), manifest.judgements, manifest.timings, refused=manifest.refused or (), notes=manifest.notes
    )
    render.print_report(report, {artifact.name: artifact.bytes for artifact in manifest.artifacts})


def _print_code(root: Path, manifest: Manifest) -> None:
    from deploykit.cli import render
    from deploykit.runtime.backends.base import get_backend

    console = render.out()
    for artifact in manifest.artifacts:
        for run in artifact.runs:
            console.print(f"# {one_line(f'{artifact.name} as {run.label}')}")
            console.print(get_backend(run.backend).code(str(root / artifact.main.path), run), markup=False)


@dataclass(frozen=True)
class _Found:
    """What a bare artifact's file tells.

    Attributes:
        inputs: What it takes.
        outputs: What it returns.
        metadata: Texts that are embedded in it.
        ran: Where it was opened; None where it could not be.
        record: What lies beside an engine; None for all else.
        not_opened: Why it could not be opened here, "" where it was.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    ran: Ran | None
    record: EngineRecord | None
    not_opened: str = ""


def _inspect_file(path: Path, *, as_json: bool, code: bool) -> None:
    """Say what a bare artifact takes and returns."""
    from deploykit.cli import render
    from deploykit.runtime.backends.base import backend_for
    from deploykit.serde import to_json

    backend = backend_for(path.name)
    config = backend.default_run(backend.judged[0])
    if code:
        render.out().print(backend.code(str(path), config), markup=False)
        return
    found = _looked_at(path, backend, config)
    if as_json:
        render.print_json({"path": str(path), **to_json(found)})
        return
    console = render.out()
    for line in _record_lines(found.record) if found.record is not None else ():
        console.print(line, markup=False)
    for side, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            console.print(f"{side:<7} {one_line(spec.name)} {spec.dtype} {one_line(spec.text)}", markup=False)
    for key, text in found.metadata.items():
        console.print(one_line(f"{key}  {text[:200]}"), markup=False)
    if found.not_opened:
        console.print(f"not opened here: {found.not_opened}", markup=False)


def _looked_at(path: Path, backend: Backend, config: RunConfig) -> _Found:
    """Open a file in the backend that it is made for; of an engine that can't be opened here tells by its record."""
    from deploykit.errors import MissingComponentError
    from deploykit.runtime.backends.tensorrt_record import record_of

    record = record_of(path)
    try:
        with backend.open(str(path), config) as session:
            return _Found(session.inputs, session.outputs, dict(session.metadata), session.ran, record)
    except MissingComponentError as error:
        if record is None:
            raise
        return _Found(record.inputs, record.outputs, record.metadata, None, record, error.message)


def _record_lines(record: EngineRecord) -> Iterator[str]:
    """Yield what an engine's record says beyond its interface."""
    from collections import Counter

    from deploykit.runtime.report import terminal
    from deploykit.verdict import int8_share

    gpus = ", ".join(map(str, record.capabilities))
    built = f"{COMPONENTS[record.flavour].title} {record.built_by} on {record.platform}"
    yield f"engine  {record.precision} for SM {gpus}, built by {built}"
    yield f"file    {terminal.megabytes(record.size)}  sha256 {record.sha256}  of graph {record.source[:12]}"
    for axis in dict.fromkeys(axis for spec in record.inputs for axis in spec.axes):
        yield f"profile {axis.name} {axis.min} to {axis.max}, tuned for {axis.opt}"
    if record.layers:
        counts = Counter(layer.precision for layer in record.layers).most_common()
        share = f"; {100 * int8_share(record.layers):.0f} % of the multiply-adds in 8 bits"
        yield f"layers  {', '.join(f'{count} {kind}' for kind, count in counts)}{share}"
