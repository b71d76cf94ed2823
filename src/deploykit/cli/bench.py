"""`deploykit bench`: latency of a bundle's artifacts on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import source

EXAMPLES = (
    "deploykit bench deploy/tiny-convnext",
    "deploykit bench deploy/tiny-convnext --threads 1 --rounds 40",
    "deploykit bench deploy/tiny-convnext --min-speedup 1.5",
    "deploykit bench deploy/tiny-convnext --device cuda",
    "deploykit bench deploy/net --reference py:my.package:net --weights net.pth",
)


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rounds; every candidate has one burst in each.")
    ] = 20,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads per inference, else one per physical core.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows per inference of a dynamic batch.")
    ] = None,
    device: source.Device = None,
    max_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Fail (exit 4) where a median surely exceeds this.")
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Fail (exit 4) where it surely is not X times faster.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The original, where it isn't one that ships with deploykit.")
    ] = None,
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
    seal: source.Seal = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Time every artifact beside the PyTorch original: one process each, asked in turn, ratios paired by round."""
    from deploykit.cli import render
    from deploykit.runtime.latency import BenchOptions
    from deploykit.workflow.bench import LatencyBudget
    from deploykit.workflow.bench import bench as bench_bundle

    source.check_seal(bundle, seal)
    chosen = {} if threads is None else {"threads": threads}
    options = BenchOptions(rounds=rounds, batch=batch, **chosen)
    with render.steps(quiet=as_json) as step:
        report = bench_bundle(
            bundle,
            options,
            LatencyBudget(max_ms=max_ms, min_speedup=min_speedup),
            lambda done, total: step("bursts", done, total),
            device,
            reference=reference,
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
    if as_json:
        from deploykit.runtime.report.records import report_record

        render.print_json(report_record(report))
    else:
        from deploykit.runtime.report import terminal

        console = render.out()
        console.print(terminal.timing_table(report))
        if any(timing.gpu for timing in report.timings):
            console.print(terminal.gpu_table(report))
        for line in terminal.complaints(report):
            console.print(line, markup=False)
        render.print_shipping(report)
        console.print(f"{options.rounds} rounds, {options.threads} threads", markup=False)
    raise typer.Exit(report.exit_code(strict=False))


COMMAND = bench
