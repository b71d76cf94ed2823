"""`deploykit verify`: judge a bundle or a bare artifact on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import source
from deploykit.errors import Hint, UsageError

EXAMPLES = (
    "deploykit verify deploy/tiny-convnext",
    "deploykit verify deploy/tiny-convnext/tiny-convnext.fp32.onnx",
    "deploykit verify deploy/tiny-convnext --data val/",
    "deploykit verify deploy/tiny-convnext --data labels.csv",
    "deploykit verify deploy/net --data val/ --reference py:my.package:net --weights net.pth",
    "deploykit verify deploy/tiny-convnext --device cuda",
    "deploykit verify deploy/tiny-convnext --on avx2,sse4,arm64,arm64-a72",
    "deploykit verify deploy/tiny-lcm-unet --html report.html",
    "deploykit verify model.onnx --reference tiny-convnext",
)


def verify(
    target: Annotated[Path, typer.Argument(metavar="BUNDLE|FILE", help="A bundle's folder, or an artifact's file.")],
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The original of a bare artifact, or of a bundle for --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Labelled images: a folder per class, or a CSV of images and labels. Needs PyTorch."
        ),
    ] = None,
    eval_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the original's own images judge a file.")
    ] = 2000,
    golden: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Images or prepared inputs to judge a bare file by; else rendered ones.",
        ),
    ] = None,
    golden_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them to take.")] = 16,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Judge a bare file as this, such as int8, whatever its weights are held in."),
    ] = None,
    device: source.Device = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="SITE,...", help="Judge on emulated processors instead, such as avx2,arm64: see `site list`."
        ),
    ] = None,
    on_limit: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="What each artifact may take on each of them.")
    ] = 600.0,
    weights: source.Weights = None,
    random_weights: source.RandomWeights = False,
    checkpoint_key: source.CheckpointKey = None,
    num_classes: source.NumClasses = None,
    model_arg: source.ModelArg = None,
    labels: source.Labels = None,
    image_size: source.ImageSize = None,
    interpolation: source.Interpolation = None,
    crop_pct: source.CropPct = None,
    mean: source.Mean = None,
    std: source.Std = None,
    embedding: source.Embedding = False,
    family: source.Family = None,
    lora: source.Lora = None,
    allow_not_run: Annotated[bool, typer.Option("--allow-not-run", help="Exit 0 though some could not run.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report as one HTML file, a diffusion model's pictures in it."),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Decoder of --html where latents aren't pixels: a diffusers folder."),
    ] = None,
    seal: source.Seal = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare hashes, then judge every artifact afresh against the reference outputs. PyTorch is not needed for a bundle.

    Exit code 0 when every gate passed, 3 drift, 6 inconclusive or not run, 7 a file was changed, 8 an axis is baked.
    """
    from deploykit.bundle import Bundle
    from deploykit.cli import render
    from deploykit.manifest import FILE
    from deploykit.workflow.options import VerifyOptions
    from deploykit.workflow.verify import verify as verify_target

    source.check_seal(target, seal)
    if html is not None:
        from deploykit.workflow.page import check_page, write_page

        check_page(target, html, vae)
    elif vae is not None:
        raise UsageError("--vae is for the pictures of --html FILE")
    options = VerifyOptions(
        reference=reference,
        data=str(data) if data else None,
        eval_size=eval_size,
        golden=str(golden) if golden else None,
        golden_size=golden_size,
        precision=precision,
        device=device,
        on=_sites(on),
        on_limit_s=on_limit,
        source=source.source_options(
            weights=weights,
            random_weights=random_weights,
            checkpoint_key=checkpoint_key,
            num_classes=num_classes,
            model_arg=model_arg,
            labels=labels,
            image_size=image_size,
            interpolation=interpolation,
            crop_pct=crop_pct,
            mean=mean,
            std=std,
            embedding=embedding,
            family=family,
            lora=lora,
        ),
    )
    with render.steps(quiet=as_json) as progress:
        report = verify_target(target, options, progress)
    if html is not None:
        write_page(report, target, html, vae)
    if as_json:
        from deploykit.runtime.report.records import report_record

        render.print_json(report_record(report))
    else:
        from deploykit.runtime.report import terminal

        root = target if target.is_dir() else target.parent
        known = target.is_dir() or (reference is None and (root / FILE).is_file())
        artifacts = Bundle.open(root).manifest.artifacts if known else ()
        render.print_report(report, {artifact.name: artifact.bytes for artifact in artifacts})
        render.print_shipping(report)
        render.out().print(terminal.summary(report), markup=False)
        if html is not None:
            render.out().print(f"wrote   {html}", markup=False)
    raise typer.Exit(report.exit_code(strict=not allow_not_run, must_run=True))


def _sites(typed: str | None) -> tuple[str, ...]:
    """Return the names in a list.

    Raises:
        UsageError: There is none in it.
    """
    names = tuple(filter(None, (name.strip() for name in (typed or "").split(","))))
    if typed is not None and not names:
        raise UsageError("--on names no site", Hint("deploykit site list", "has their names"))
    return names


COMMAND = verify
