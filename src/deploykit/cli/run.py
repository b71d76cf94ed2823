"""`deploykit run`: what an artifact sees in images, or makes of noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import source
from deploykit.errors import Hint, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.workflow.predict import Prediction

EXAMPLES = (
    "deploykit run deploy/tiny-convnext photo.jpg",
    "deploykit run deploy/tiny-convnext/tiny-convnext.fp32.onnx photos/ --json",
    "deploykit run deploy/embedding photo.jpg --nearest photos/",
    "deploykit run deploy/embedding photos/ --out features.npy",
    "deploykit run deploy/tiny-lcm-unet --png pictures.png",
)
#: Numbers of an embedding that are printed.
SHOWN = 6


def run(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT|BUNDLE",
            help="An artifact's file, made by deploykit, or a bundle: then the fastest that passed.",
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE...]", help="Image files, or folders of them.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes, or nearest images, to print.")] = 5,
    nearest: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of features: the nearest images in a folder, by their cosine."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of features: write them, .npy [images, features] or .json.")
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the most probable classes of each image, or its features. Preprocessing is read from the artifact itself.

    Of a bundle the fastest artifact that passed is run, by the bundle's own record. With --png a diffusion model's artifact,
    or all of a bundle, walk from noise to pictures: a row each, the original's first.
    """
    source.check_seal(artifact, seal)
    if png is not None:
        for name, given in (("IMAGE", images), ("--nearest", nearest), ("--out", out)):
            if given:
                raise UsageError(f"--png makes pictures and takes no {name}: leave it away")
        _sample(artifact, png, seed, vae, as_json=as_json)
        return
    if seed is not None or vae is not None:
        raise UsageError(f"{'--seed' if seed is not None else '--vae'} is for --png")
    if not images:
        raise UsageError("no images: name those to classify, or write what a diffusion model makes by --png FILE")
    _predict(artifact, images, top, nearest, out, as_json=as_json)


def _predict(
    artifact: Path, images: list[Path], top: int, nearest: Path | None, out: Path | None, *, as_json: bool
) -> None:
    from deploykit.cli import render
    from deploykit.data.images import SUFFIXES
    from deploykit.workflow.predict import check_out, predict, write
    from deploykit.workflow.shipped import chosen

    if artifact.suffix.lower() in SUFFIXES and not artifact.is_dir():
        raise UsageError(f"{artifact} is an image: the artifact comes first", Hint("deploykit run ARTIFACT IMAGE..."))
    if out is not None:
        check_out(out)
    taken = chosen(artifact)
    if taken.reason:
        render.err().print(f"runs  {taken.path} ({taken.run.label}): {taken.reason}", markup=False)
    predictions = predict(taken, images, top, nearest)
    if out is not None:
        write(out, predictions)
    if as_json:
        records = [prediction.record() for prediction in predictions]
        chosen_as = {"artifact": str(taken.path), "run": taken.run.label, "reason": taken.reason}
        render.print_json({**chosen_as, "images": records})
        return
    console = render.out()
    for prediction in predictions:
        console.print(prediction.image, markup=False, style="bold")
        _print_prediction(console, prediction)
    if out is not None:
        console.print(f"wrote   {out}", markup=False)


def _print_prediction(console: Console, prediction: Prediction) -> None:
    for score in prediction.scores:
        console.print(f"  {100 * score.probability:5.1f} %  {score.label}", markup=False)
    for near in prediction.nearest:
        console.print(f"  {near.cosine:7.4f}  {near.image}", markup=False)
    if prediction.embedding is not None and not prediction.nearest:
        values = ", ".join(f"{value:.4g}" for value in prediction.embedding[:SHOWN])
        more = ", …" if len(prediction.embedding) > SHOWN else ""
        console.print(f"  {len(prediction.embedding)} features: {values}{more}", markup=False)


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
