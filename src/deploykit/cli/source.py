"""The options that say how an original is opened, shared by the commands that open one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit import serde
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.models.original import SourceOptions

Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="Checkpoint to load: .safetensors, .pth, .pth.tar.")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Seeded weights, settled on images.")]
CheckpointKey = Annotated[str | None, typer.Option(metavar="KEY", help="Where in the checkpoint the weights are.")]
NumClasses = Annotated[int | None, typer.Option(metavar="N", help="Size of the head, else the checkpoint's.")]
ModelArg = Annotated[list[str] | None, typer.Option(metavar="K=V", help="Argument of the model's constructor.")]
Labels = Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one per line.")]
ImageSize = Annotated[int | None, typer.Option(metavar="PIXELS", help="Height and width of the input.")]
Interpolation = Annotated[str | None, typer.Option(metavar="NAME", help="bicubic, bilinear, nearest or lanczos.")]
CropPct = Annotated[float | None, typer.Option(metavar="SHARE", help="Share of the short side that the crop keeps.")]
Mean = Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean per channel, of values in 0..1.")]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation per channel.")]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="Run everything on it: cpu, cuda, cuda:1; else where each says.")
]
Seal = Annotated[
    str | None,
    typer.Option(metavar="SHA256", help="Exit 7 unless the manifest has this very seal, which inspect prints."),
]
Family = Annotated[str | None, typer.Option(metavar="NAME", help="Whose recipes and budgets hold, else by name.")]
Embedding = Annotated[bool, typer.Option("--embedding", help="Features instead of logits.")]
Lora = Annotated[Path | None, typer.Option(metavar="FILE", help="LoRA to fuse into a diffusion model's UNet.")]


def check_seal(target: Path, seal: str | None) -> None:
    """Do what `--seal` asks for.

    Raises:
        UsageError: It is no seal.
        BadInputError: The manifest has another one.
    """
    if seal is not None:
        from deploykit.workflow.opened import check_seal

        check_seal(target, seal)


def source_options(**typed: object) -> SourceOptions:
    """Gather what was typed, by the names of the options above.

    Raises:
        UsageError: A text that can't be read.
    """
    from deploykit.models.original import SourceOptions

    values: dict[str, Any] = dict(typed)
    values["model_args"] = _arguments(values.pop("model_arg") or ())
    for name in ("weights", "labels", "lora"):
        values[name] = str(values[name]) if values[name] is not None else None
    for name in ("mean", "std"):
        values[name] = _numbers(name, values[name])
    return SourceOptions(**values)


def _arguments(texts: Iterable[str]) -> dict[str, bool | int | float | str]:
    found: dict[str, bool | int | float | str] = {}
    for text in texts:
        key, value = _argument(text)
        if key in found:
            raise UsageError(f"--model-arg {key} is given twice")
        found[key] = value
    return found


def _argument(text: str) -> tuple[str, bool | int | float | str]:
    """Read "key=value": a number, true, false, or a text."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--model-arg {text!r}: write KEY=VALUE, such as drop_rate=0.1")
    if value.lower() in {"true", "false"}:
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if isinstance(number, int) and not serde.has_64_bits(number):
            raise UsageError(f"--model-arg {text[:80]!r}: integers have 64 bits")
        if not math.isfinite(number):
            raise UsageError(f"--model-arg {text!r}: numbers are finite")
        return key, number
    return key, value


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name} {text!r}: write numbers with commas between, such as 0.485,0.456,0.406") from None
