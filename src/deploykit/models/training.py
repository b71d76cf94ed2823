"""What the options of a training script, saved beside the weights, say of the images that the network was trained on.

timm's names and Lightning's usual ones. What the caller says goes first, then these, then what is known of the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from deploykit.models.head import INTERPOLATIONS
from deploykit.models.original import SourceOptions

#: Sides of images that anybody trains on.
SIDES: Final = range(8, 8193)
CLASSES: Final = ("num_classes", "n_classes", "nb_classes")


def _side(value: object) -> int | None:
    """Return the side of square images: of a number, [H, W] or [C, H, W]."""
    sides = [value] if not isinstance(value, Sequence) or isinstance(value, str) else list(value)[-2:]
    (side, *_), same = sides, len(set(sides)) == 1
    return side if same and type(side) is int and side in SIDES else None


def _shares(value: object) -> tuple[float, ...] | None:
    """Return a mean of values in 0..1."""
    values = _numbers(value)
    return values if values and all(0 <= each <= 1 for each in values) else None


def _scales(value: object) -> tuple[float, ...] | None:
    values = _numbers(value)
    return values if values and all(0 < each <= 1 for each in values) else None


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return ()
    return tuple(float(each) for each in value if math.isfinite(each))


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _filter(value: object) -> str | None:
    return value if isinstance(value, str) and value in INTERPOLATIONS else None


@dataclass(frozen=True)
class Option:
    """An option of ours, and what scripts call it.

    Attributes:
        name: Of the field in `SourceOptions`.
        flag: On the command line.
        called: Names in scripts, the one that decides first.
        read: From a script's value to ours; None where it can't be one.
    """

    name: str
    flag: str
    called: tuple[str, ...]
    read: Callable[[object], Any]


OPTIONS: Final = (
    Option("image_size", "--image-size", ("input_size", "img_size", "image_size", "imgsz", "resolution"), _side),
    Option("mean", "--mean", ("mean", "image_mean", "pixel_mean"), _shares),
    Option("std", "--std", ("std", "image_std", "pixel_std"), _scales),
    Option("crop_pct", "--crop-pct", ("crop_pct",), _share),
    Option("interpolation", "--interpolation", ("interpolation",), _filter),
)


def told_by(
    script: Mapping[str, object], options: SourceOptions, channels: int = 3
) -> tuple[SourceOptions, tuple[str, ...]]:
    """Fill in what a training script says, where the caller says nothing.

    Args:
        script: Its options, as `checkpoint.read` returns them.
        options: The caller's.
        channels: Of the network's input.

    Returns:
        Options, and what is to be told of them.
    """
    found, notes = {}, []
    for option in OPTIONS:
        name = next((name for name in option.called if script.get(name)), None)
        if name is None or getattr(options, option.name) is not None:
            continue
        value = option.read(script[name])
        if value is None or (isinstance(value, tuple) and len(value) != channels):
            notes.append(f"the checkpoint's options say {name} {script[name]}, which isn't taken: say {option.flag}")
        else:
            found[option.name] = value
            notes.append(f"{name} {script[name]} is the checkpoint's; {option.flag} says another")
    return replace(options, **found), tuple(notes)


def classes_differ(script: Mapping[str, object], classes: int) -> tuple[str, ...]:
    """Return what to tell where a script names another number of classes than the network has."""
    said = [(name, script[name]) for name in CLASSES if isinstance(script.get(name), int) and script[name]]
    return tuple(
        f"the checkpoint's options say {name} {count}; the head has {classes}"
        for name, count in said[:1]
        if count != classes
    )
