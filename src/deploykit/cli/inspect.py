"""`deploykit inspect`: what a bundle or an artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deploykit.manifest import Manifest

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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show interface, files, hashes, verdicts and how each artifact is run."""
    from deploykit.bundle import Bundle
    from deploykit.cli import render
    from deploykit.serde import to_json

    if not target.is_dir():
        _inspect_file(target, as_json=as_json, code=code)
        return
    bundle = Bundle.open(target)
    bundle.check()
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
    source = manifest.source
    for label, text in (
        (
            "original",
            f"{source.id} · {source.parameters / 1e6:.2f} M parameters · weights {source.weights_sha256[:12]}",
        ),
        ("made", f"{manifest.created} by deploykit {manifest.deploykit} on {manifest.machine.cpu}"),
        ("command", manifest.command),
        ("labels", f"{len(manifest.labels)}: {', '.join(manifest.labels[:12])}"),
        ("stages", " → ".join(record.node for record in manifest.stages if record.stage not in {"judge", "bench"})),
    ):
        console.print(f"{label:<9} {text}", markup=False)
    for artifact in manifest.artifacts:
        console.print(f"{artifact.name}", markup=False, style="bold")
        for record in artifact.files:
            console.print(f"  file    {root / record.path}  {terminal.megabytes(record.bytes)}  sha256 {record.sha256}")
        for side, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
            for spec in specs:
                console.print(f"  {side:<7} {spec.name} {spec.dtype} {spec.text}", markup=False)
        for run in artifact.runs:
            console.print(f"  run     {run.label}", markup=False)
    report = Report(str(root), manifest.judgements, manifest.timings)
    render.print_report(report, {artifact.name: artifact.bytes for artifact in manifest.artifacts})


def _print_code(root: Path, manifest: Manifest) -> None:
    from deploykit.cli import render
    from deploykit.runtime.backends.base import get_backend

    console = render.out()
    for artifact in manifest.artifacts:
        for run in artifact.runs:
            console.print(f"# {artifact.name} as {run.label}", markup=False)
            console.print(get_backend(run.backend).code(str(root / artifact.main.path), run), markup=False)


def _inspect_file(path: Path, *, as_json: bool, code: bool) -> None:
    """Open a bare artifact in the backend that it is made for and say what it takes and returns."""
    from deploykit.cli import render
    from deploykit.runtime.backends.base import backend_for
    from deploykit.serde import to_json

    backend = backend_for(path.name)
    config = backend.default_run(backend.judged[0])
    if code:
        render.out().print(backend.code(str(path), config), markup=False)
        return
    with backend.open(str(path), config) as session:
        found = {
            "path": str(path),
            "inputs": to_json(session.inputs),
            "outputs": to_json(session.outputs),
            "ran": to_json(session.ran),
            "metadata": dict(session.metadata),
        }
        if as_json:
            render.print_json(found)
            return
        console = render.out()
        for side, specs in (("input", session.inputs), ("output", session.outputs)):
            for spec in specs:
                console.print(f"{side:<7} {spec.name} {spec.dtype} {spec.text}", markup=False)
        for key, text in session.metadata.items():
            console.print(f"{key}  {text[:200]}", markup=False)
