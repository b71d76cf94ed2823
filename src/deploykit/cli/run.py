"""`deploykit run`: what an artifact sees in images, or makes of noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import source
from deploykit.errors import UsageError

EXAMPLES = (
    "deploykit run deploy/tiny-convnext/tiny-convnext.fp32.onnx photo.jpg",
    "deploykit run deploy/tiny-lcm-unet --png pictures.png",
)


def run(
    artifact: Annotated[
        Path,
        typer.Argument(metavar="ARTIFACT", help="An artifact's file, made by deploykit; for --png its bundle too."),
    ],
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Image files.")] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to print.")] = 5,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what a diffusion model makes in four steps, beside the original's."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Other noise for --png.")] = None,
    vae: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Decoder of --png where latents aren't pixels: a diffusers folder."),
    ] = None,
    seal: source.Seal = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the most probable classes of each image. Labels and preprocessing are read from the artifact itself.

    With --png a diffusion model's artifact, or all of a bundle, walk from noise to pictures: a row each, the original's first.
    """
    source.check_seal(artifact, seal)
    if png is not None and images:
        raise UsageError("--png makes pictures and takes none: leave the images away")
    if png is not None:
        _sample(artifact, png, seed, vae, as_json=as_json)
        return
    if seed is not None or vae is not None:
        raise UsageError(f"{'--seed' if seed is not None else '--vae'} is for --png")
    if not images:
        raise UsageError("no images: name those to classify, or write what a diffusion model makes by --png FILE")
    _predict(artifact, images, top, as_json=as_json)


def _predict(artifact: Path, images: list[Path], top: int, *, as_json: bool) -> None:
    from deploykit.cli import render
    from deploykit.workflow.predict import predict

    predictions = predict(artifact, images, top)
    if as_json:
        from deploykit.serde import to_json

        render.print_json(to_json(predictions))
        return
    console = render.out()
    for prediction in predictions:
        console.print(prediction.image, markup=False, style="bold")
        for score in prediction.scores:
            console.print(f"  {100 * score.probability:5.1f} %  {score.label}", markup=False)


def _sample(target: Path, png: Path, seed: int | None, vae: Path | None, *, as_json: bool) -> None:
    from deploykit.cli import render
    from deploykit.workflow.sample import sample

    done = sample(target, png, seed, vae)
    if as_json:
        rows = [
            {"name": row.name, "psnr_db": row.psnr_db if math.isfinite(row.psnr_db) else None} for row in done.strips
        ]
        render.print_json({"png": str(png), "rows": rows, "skipped": list(done.skipped)})
        return
    console = render.out()
    for number, strip in enumerate(done.strips, start=1):
        told = f", {strip.psnr_db:.1f} dB from the original" if math.isfinite(strip.psnr_db) else ""
        console.print(f"row {number}   {strip.name}: {len(strip.pictures)} pictures{told}", markup=False)
    for reason in done.skipped:
        console.print(f"left out {reason}", markup=False)
    console.print(f"wrote   {png}", markup=False)


COMMAND = run
