"""What a file says of itself, compared with what has to be true: an application believes the file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit import serde
from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError
from deploykit.verdict import GRADES, grade_of

#: Where a file keeps its class names and its preprocessing, as JSON texts.
LABELS_KEY, PREPROCESS_KEY = "deploykit.labels", "deploykit.preprocess"
#: Mean, standard deviation and crop are the same where they differ by less than float32 can hold.
SAME = 1e-6


@dataclass(frozen=True)
class Claims:
    """What a file must say of itself, if it says anything.

    Attributes:
        by: Who says so, such as "its manifest"; "" compares nothing.
        labels: Class names by index; none where nobody knows them.
        preprocess: From image to input; None where the model takes no images.
        faults: What was found to contradict the file already.
    """

    by: str = ""
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    faults: tuple[str, ...] = ()

    def contradictions(self, texts: Mapping[str, str]) -> tuple[str, ...]:
        """Return what contradicts a file whose embedded texts are these, a sentence each."""
        return (*self.faults, *(self._found(texts) if self.by else ()))

    def _found(self, texts: Mapping[str, str]) -> Iterator[str]:
        if LABELS_KEY in texts and self.labels:
            yield from self._of_labels(texts[LABELS_KEY])
        if PREPROCESS_KEY in texts:
            yield from self._of_preprocess(texts[PREPROCESS_KEY])

    def _of_labels(self, text: str) -> Iterator[str]:
        found = _json(text)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            yield f"{LABELS_KEY} in the file is no list of names: {text[:80]!r}"
        elif len(found) != len(self.labels):
            yield f"the file names {len(found)} classes, {self.by} {len(self.labels)}"
        else:
            differ = [index for index, pair in enumerate(zip(found, self.labels, strict=True)) if pair[0] != pair[1]]
            if differ:
                first = differ[0]
                more = f" ({len(differ)} of {len(found)} names differ)" if len(differ) > 1 else ""
                yield f"class {first} is {found[first]!r} in the file, {self.labels[first]!r} in {self.by}{more}"

    def _of_preprocess(self, text: str) -> Iterator[str]:
        try:
            found = serde.from_json(Preprocess, _json(text), PREPROCESS_KEY)
        except BadInputError as error:
            yield f"the file's preprocessing can't be read: {error.message}"
            return
        if self.preprocess is None:
            yield f"the file says how images are prepared; by {self.by} the model takes none"
            return
        for field in dataclasses.fields(Preprocess):
            own, wanted = getattr(found, field.name), getattr(self.preprocess, field.name)
            if not _same(own, wanted):
                yield f"preprocess: {field.name} is {_shown(own)} in the file, {_shown(wanted)} in {self.by}"


def precision_fault(precision: str, held: str, by: str) -> str:
    """Return why a precision can't be claimed of a file whose weights are held in another grade; "" where it can.

    A finer claim is harmless: the artifact is held to more than it needs.

    Args:
        precision: Claimed, such as "int8".
        held: Grade of the weights; "" where it can't be told.
        by: Who claims it.
    """
    claimed = grade_of(precision, "f32")
    if not held or claimed not in GRADES or GRADES.index(claimed) <= GRADES.index(held):
        return ""
    return f"{by} calls it {precision}; its weights are {held}: nothing so coarse is in it"


def _json(text: str) -> Any:  # noqa: ANN401 - whatever it is
    try:
        return serde.parse(text)
    except ValueError:
        return None


def _same(one: object, other: object) -> bool:
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)
    return one == other


def _shown(value: object) -> str:
    return (
        f"({', '.join(map(_shown, value))})"
        if isinstance(value, Sequence) and not isinstance(value, str)
        else str(value)
    )
