"""Which class of a model is meant by a name that people gave to a folder or wrote into a list."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

#: How ImageNet's labels are written: "tench, Tinca tinca (n01440764)", or without the WordNet id.
_WORDNET = re.compile(r"(?P<names>.+) \((?P<id>n[0-9]{8})\)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")
#: Classes that a complaint shows.
NEAR = 3
#: Where none is near, a model with this many classes or fewer has them all shown.
FEW = 12


class ClassNames:
    """Finds classes by name.

    A name is compared in four steps. The first in which anything fits decides; where two classes fit in it, the name is
    ambiguous:

    1. with the labels, to the letter;
    2. to the letter with the WordNet id or the first name of labels such as "tench, Tinca tinca (n01440764)";
    3. with all of these, whatever the case, and spaces, underscores and hyphens being the same;
    4. likewise with the further names of such labels ("Tinca tinca").

    Args:
        labels: The model's classes, by index.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        exact: dict[str, list[int]] = {}
        short: dict[str, list[int]] = {}
        loose: dict[str, list[int]] = {}
        further: dict[str, list[int]] = {}
        for index, label in enumerate(labels):
            names, identity = _parts(label)
            _note(exact, [_composed(label)], index)
            _note(short, [_composed(name) for name in (*identity, names[0])], index)
            _note(loose, [_normal(name) for name in (label, *identity, names[0])], index)
            _note(further, [_normal(name) for name in names], index)
        self._steps = (exact, short, loose, further)

    @property
    def any_integer(self) -> bool:
        """Whether some class is called by an integer, so that integers are names."""
        return any(_INTEGER.fullmatch(name) for step in self._steps for name in step)

    def find(self, name: str) -> tuple[int, ...]:
        """Return the index of the class that is meant: none where the name is unknown, several where it is ambiguous."""
        composed, normal = _composed(name), _normal(name)
        for step, key in zip(self._steps, (composed, composed, normal, normal), strict=True):
            if key in step:
                return tuple(step[key])
        return ()

    def complaint(self, name: str) -> str:
        """Return why `name` is not one class: "'ct' is no class of this model; near: 'cat'"."""
        found = self.find(name)
        if found:
            return f"{name!r} may be any of {_quoted(self._labels[index] for index in found[:FEW])}"
        near = self._near(name)
        if near:
            return f"{name!r} is no class of this model; near: {_quoted(near)}"
        shown = self._labels if len(self._labels) <= FEW else self._labels[:NEAR]
        more = "" if shown == self._labels else f" and {len(self._labels) - len(shown)} more"
        return f"{name!r} is no class of this model; its classes: {_quoted(shown)}{more}"

    def _near(self, name: str) -> list[str]:
        """Return labels of which a name resembles `name`, the most similar first."""
        known = {**self._steps[3], **self._steps[2]}
        matches = difflib.get_close_matches(_normal(name), known, n=NEAR)
        return list(dict.fromkeys(self._labels[index] for match in matches for index in known[match]))[:NEAR]


class ClassIndices:
    """Finds classes by index, from 0.

    Args:
        count: Classes of the model.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def find(self, name: str) -> tuple[int, ...]:
        """Return the index that `name` writes, alone, or nothing where no class has it."""
        index = int(name)
        return (index,) if 0 <= index < self._count else ()

    def complaint(self, name: str) -> str:
        """Return why `name` is no class."""
        return f"{name} is no index of this model's {self._count} classes, from 0 to {self._count - 1}"


def classes_by_name_or_index(names: Iterable[str], labels: tuple[str, ...]) -> ClassNames | ClassIndices:
    """Return what finds `names`: by index where each of them is an integer and no class is called by one, else by name."""
    classes = ClassNames(labels)
    numbered = all(_INTEGER.fullmatch(name) for name in names) and not classes.any_integer
    return ClassIndices(len(labels)) if numbered else classes


def _parts(label: str) -> tuple[list[str], list[str]]:
    """Return the names in a label, and its WordNet id where it has one."""
    match = _WORDNET.fullmatch(label)
    names, identity = (match["names"], [match["id"]]) if match else (label, [])
    return [name for name in names.split(", ") if name.strip()] or [label], identity


def _note(step: dict[str, list[int]], names: Iterable[str], index: int) -> None:
    for name in dict.fromkeys(names):
        step.setdefault(name, []).append(index)


def _composed(name: str) -> str:
    """Return letters with accents as one character each, which macOS takes apart in file names."""
    return unicodedata.normalize("NFC", name)


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", _composed(name).casefold()).strip()


def _quoted(labels: Iterable[str]) -> str:
    return ", ".join(repr(label) for label in labels)
