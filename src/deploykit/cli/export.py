"""`deploykit export`: an original to a bundle with its proof."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import source
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.models.original import Original
    from deploykit.workflow.export import Exported, Preview

EXAMPLES = (
    "deploykit export tiny-convnext --ort --openvino",
    "deploykit export tiny-convnext --openvino --dynamic batch --out deploy/any-batch",
    "deploykit export convnext_tiny --weights last.pth.tar --labels classes.txt --ort",
    "deploykit export tf_efficientnetv2_s --random-weights --openvino --no-bench",
    "deploykit export hf:path/to/folder --data labels.csv --ort",
    "deploykit export tiny-lcm-unet --fp16 --ort --openvino",
    "deploykit export lcm:path/to/folder --dynamic height --dynamic width --openvino",
    "deploykit export model.onnx --openvino",
    "deploykit export tiny-convnext --opset 17 --ort",
    "deploykit export tiny-mobilenetv3 --int8 --fp16 --ort --openvino",
    "deploykit export convnext_tiny --weights last.pth.tar --int8 --openvino --calib photos/",
    "deploykit export tiny-mobilenetv3 --int8 --ort --for vnni",
    "deploykit export tiny-dinov2 --int8-weights --ort --openvino",
    "deploykit export tiny-convnext --fp16 --trt-rtx",
    "deploykit export tiny-convnext --int8 --trt-rtx --dynamic batch --profile batch=1,8,32 --sm 86,89,120",
    "deploykit export tiny-convnext --fp16 --trt --defer",
    "deploykit export tiny-convnext --cell fp32:ort --json",
)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The original: a name (shipped, or any of timm's), a file, hf:FOLDER, lcm:FOLDER, py:module:function.",
        ),
    ],
    fp32: Annotated[bool, typer.Option("--fp32", help="Precision float32 (the default).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Precision float16, with float32 where half overflows.")] = False,
    bf16: Annotated[
        bool,
        typer.Option("--bf16", help="Weights in bfloat16, run in bfloat16 where the hardware can: OpenVINO, TensorRT."),
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Precision int8, calibrated on --calib.")] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Precision fp8 (E4M3), calibrated on --calib: TensorRT only.")
    ] = False,
    int8_weights: Annotated[
        bool, typer.Option("--int8-weights", help="Weights alone in int8: a quarter of the file, no calibration.")
    ] = False,
    ort: Annotated[bool, typer.Option("--ort", help="Target ONNX Runtime: an .onnx file (the default).")] = False,
    openvino: Annotated[bool, typer.Option("--openvino", help="Target OpenVINO: an IR, .xml and .bin.")] = False,
    trt_rtx: Annotated[
        bool, typer.Option("--trt-rtx", help="Target TensorRT for RTX: an engine, built here without a GPU.")
    ] = False,
    trt: Annotated[
        bool, typer.Option("--trt", help="Target TensorRT: an engine for the GPU that is here, or see --defer.")
    ] = False,
    cell: Annotated[
        list[str] | None, typer.Option(metavar="PRECISION:TARGET", help="One cell, such as fp32:ort.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The bundle's folder, else deploy/<model>.")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the input.")] = 1,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS", help="Leave an axis of the inputs open: batch, or what the model has."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=MIN,OPT,MAX",
            help="Range of an open axis that an engine is tuned for: batch=1,8,32. Given again, a further one.",
        ),
    ] = None,
    sm: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="GPUs to build engines for, as 75,86,89; else all that can run it."),
    ] = None,
    processors: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CLASS,CLASS",
            help="Processors that int8 is for, as vnni or avx512-vnni,neon; else it is right on every one.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="ONNX operator set, for a runtime that takes none newer; else the model's."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Labelled images to judge on: a folder per class, or a CSV of images and labels."
        ),
    ] = None,
    eval_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the model's own images to judge on.")
    ] = 2000,
    golden: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Images or prepared inputs for golden inputs, or the word rendered; else some of --data or --calib.",
        ),
    ] = None,
    golden_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them to take and keep.")] = 16,
    calib: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Images to measure activations on, for int8: a folder, a .npy or .npz."),
    ] = None,
    calib_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many of them to take.")] = 300,
    calib_seed: Annotated[int, typer.Option(metavar="N", help="What the choice is drawn from.")] = 0,
    calib_few: Annotated[bool, typer.Option("--calib-few", help="Take fewer than 32 images.")] = False,
    calib_table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What activations were measured to be, from --save-calib-table: no images needed."
        ),
    ] = None,
    save_calib_table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write there what activations were measured to be.")
    ] = None,
    defer: Annotated[
        bool,
        typer.Option("--defer", help="Of --trt, write the typed graph that `deploykit build` makes the engine of."),
    ] = False,
    no_repair: Annotated[
        bool,
        typer.Option("--no-repair", help="Keep int8 as it is where it drifts too far, instead of returning layers."),
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Don't judge against the original.")] = False,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Don't measure latency.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write even where something else lies.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do everything anew and keep nothing.")] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show what the libraries print.")] = False,
) -> None:
    """Export a model to every precision and target that is named, judge each and write a bundle.

    Precisions and targets multiply: --fp32 --ort --openvino makes two artifacts. Exit code 0 when every gate passed, 3 when
    an artifact drifts too far, 6 when the images can't tell, 8 when a target refuses: the others are made all the same.
    """
    from deploykit.cli import render
    from deploykit.workflow.export import export_model
    from deploykit.workflow.options import ExportOptions

    options = ExportOptions(
        cells=_cells(
            {"fp32": fp32, "fp16": fp16, "bf16": bf16, "int8": int8, "fp8": fp8, "int8-weights": int8_weights},
            {"ort": ort, "openvino": openvino, "trt-rtx": trt_rtx, "trt": trt},
            cell or [],
        ),
        out=str(out) if out else None,
        batch=batch,
        dynamic=tuple(dynamic or ()),
        profile=tuple(profile or ()),
        sm=_capabilities(sm),
        processors=_words(processors),
        opset=opset,
        data=str(data) if data else None,
        eval_size=eval_size,
        golden=str(golden) if golden else None,
        golden_size=golden_size,
        calib=str(calib) if calib else None,
        calib_size=calib_size,
        calib_seed=calib_seed,
        calib_few=calib_few,
        calib_table=str(calib_table) if calib_table else None,
        save_calib_table=str(save_calib_table) if save_calib_table else None,
        repair=not no_repair,
        verify=not no_verify,
        bench=not no_bench,
        defer=defer,
        replace=replace,
        cache=not no_cache,
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
    command = shlex.join(["deploykit", *sys.argv[1:]])
    with render.stages(quiet=as_json or verbose) as watcher:
        exported = export_model(
            model,
            options,
            watcher=watcher,
            on_plan=None if as_json else show_plan,
            command=command,
            quiet=not verbose,
        )
    if as_json:
        from deploykit.runtime.report.records import export_record

        manifest = exported.bundle.manifest
        render.print_json(export_record(exported.bundle.root, manifest.artifacts, exported.report))
    else:
        _print_result(exported, verified=options.verify)
    raise typer.Exit(exported.report.exit_code(strict=False))


COMMAND = export


def _cells(precisions: dict[str, bool], targets: dict[str, bool], cells: list[str]) -> tuple[str, ...]:
    """Return the product of the flags that are set, and the cells that are named."""
    chosen = [name for name, is_set in precisions.items() if is_set]
    wanted = [name for name, is_set in targets.items() if is_set]
    if cells and not chosen and not wanted:
        return tuple(cells)
    product = [f"{precision}:{target}" for precision in chosen or ["fp32"] for target in wanted or ["ort"]]
    return tuple(dict.fromkeys([*product, *cells]))


def _capabilities(text: str | None) -> tuple[int, ...]:
    """Read "75,86".

    Raises:
        UsageError: Not of that form.
    """
    numbers = text.split(",") if text is not None else []
    if not all(number.strip().isdecimal() for number in numbers):
        raise UsageError(f"--sm {text}: write compute capabilities without their dots, such as 75,86,89")
    return tuple(int(number) for number in numbers)


def _words(text: str | None) -> tuple[str, ...]:
    """Read "vnni,neon", each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(","))) if text is not None else ()


def show_plan(preview: Preview) -> None:
    """Print what an export is about to do, before anything runs."""
    from deploykit.cli import render
    from deploykit.data.imageset import ships

    original = preview.original
    console = render.err()
    console.print(
        f"{original.id} · {original.parameters / 1e6:.2f} M parameters · weights {original.weights_sha256[:8]} · "
        f"{_takes(original)}",
        markup=False,
    )
    by_precision: dict[str, list[str]] = {}
    for cell in preview.cells:
        by_precision.setdefault(cell.kind, []).append(cell.target)
    cells = ", ".join(f"{precision}: {', '.join(targets)}" for precision, targets in by_precision.items())
    nodes = preview.plan.nodes
    graphs = [node.stage.name for node in nodes if node.stage.makes == "graph"]
    measured = dict.fromkeys(node.stage.name for node in nodes if node.stage.makes in {"judgement", "timings"})
    words = [*graphs, f"[{cells}]", *measured]
    for note in preview.notes:
        console.print(f"note  {note}", markup=False)
    kept = ", kept in the bundle" if preview.draft.request.golden and not ships(preview.golden_set) else ""
    golden = f"{preview.draft.golden_count} golden inputs of {preview.golden_set}{kept}"
    console.print(f"plan  {' → '.join(words)}   {len(preview.plan.nodes)} nodes · {golden}", markup=False)


def _takes(original: Original) -> str:
    """Return what an original takes, in a few words: how its images are prepared, else the shapes of its inputs."""
    recipe = original.preprocess
    if recipe is None:
        shapes = original.takes.at({})
        return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items())
    size = "×".join(str(dim) for dim in recipe.input_size[1:])
    return f"{size} {recipe.interpolation} crop {recipe.crop_pct}"


def _print_result(exported: Exported, *, verified: bool) -> None:
    from deploykit.cli import render
    from deploykit.runtime.report import gains, terminal

    bundle, report = exported.bundle, exported.report
    if verified:
        render.print_report(report, {artifact.name: artifact.bytes for artifact in bundle.manifest.artifacts})
    console = render.out()
    fewer = gains.table(bundle.manifest)
    if fewer is not None:
        console.print(fewer)
        for line in gains.notes(bundle.manifest):
            console.print(line, markup=False)
    render.print_shipping(report)
    console.print(f"bundle  {bundle.root}", markup=False)
    console.print(f"next    deploykit verify {bundle.root}", markup=False)
    if verified:
        console.print(terminal.summary(report), markup=False)
    else:
        for line in terminal.complaints(report):
            console.print(line, markup=False)
        refused = f", {len(report.refused)} refused" if report.refused else ""
        count = len(bundle.manifest.artifacts)
        console.print(f"0 passed{refused}, {count} not run (--no-verify)", markup=False)
