"""Names of classes that nobody named: of the folders of labelled images, in the order in which training numbers them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from deploykit import paths
from deploykit.data.classnames import ClassNames
from deploykit.data.listing import children
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models.head import numbered
from deploykit.models.original import Original

#: Names that a note shows.
SHOWN = 3


def named(original: Original, images: str | None) -> Original:
    """Return an original whose classes are called as the folders of `images`, where nothing else names them.

    torchvision's ImageFolder numbers classes in the order of their folders' names, timm by numbers in the names and whatever
    their case: where these two differ, neither is taken.

    Raises:
        UsageError: They differ.
        BadInputError: The folder can't be read.
    """
    classes = len(original.labels)
    if images is None or original.labels != numbered(classes) or paths.fault(Path(images)) != "is a folder":
        return original
    try:
        found = [child.name for child in children(Path(images)) if child.is_dir()]
    except OSError as error:
        raise BadInputError(f"{images} can't be read: {error.strerror}") from error
    known = ClassNames(original.labels)
    if len(found) != classes or all(known.find(name) for name in found):
        return original
    if found != sorted(found, key=_natural):
        raise UsageError(
            f"{images}: nothing says which class is which: torchvision numbers its folders otherwise than timm does",
            Hint("--labels FILE", "names the classes, one per line, in the order of training"),
        )
    told = ", ".join(found[:SHOWN]) + (", …" if classes > SHOWN else "")
    note = (
        f"classes are called as the folders of {paths.shown(images)}, in their order: {told}; --labels FILE says others"
    )
    return replace(original, labels=tuple(found), notes=(*(original.notes or ()), note))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what timm orders folders by: numbers as numbers, letters whatever their case."""
    parts = re.split(r"(\d+)", name.lower())
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
