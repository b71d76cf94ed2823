"""`deploykit build`: engines of the graphs that an export deferred, on the machine that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import source

EXAMPLES = (
    "deploykit build deploy/tiny-convnext",
    "deploykit build deploy/tiny-convnext --dry-run",
)


def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that was exported with --defer.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the lines of TensorRT's own tool that build the same.")
    ] = False,
    seal: source.Seal = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build the deferred engines of a bundle and add them to it. TensorRT and numpy are enough.

    Exit code 5 where TensorRT or its GPU is not here, 7 where a file was changed, 8 where the engine can't be built.
    """
    from deploykit.cli import render
    from deploykit.workflow.build import build as build_bundle
    from deploykit.workflow.build import commands

    source.check_seal(bundle, seal)
    if dry_run:
        lines = commands(bundle)
        if as_json:
            render.print_json({"commands": list(lines)})
        for line in () if as_json else lines:
            render.out().print(line, markup=False)
        return
    with render.steps(quiet=as_json) as progress:
        built = build_bundle(bundle, progress)
    paths = [str(bundle / artifact.main.path) for artifact in built]
    if as_json:
        render.print_json({"built": paths})
        return
    console = render.out()
    for path in paths:
        console.print(f"built   {path}", markup=False)
    console.print(f"next    deploykit verify {bundle}", markup=False)


COMMAND = build
