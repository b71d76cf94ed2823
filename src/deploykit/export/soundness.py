"""Is what an original answers fit to hold artifacts to: numbers, the same each time? Do rows influence one another?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import BadInputError, BakedAxisError, Hint, UnsupportedError
from deploykit.models.interface import BATCH
from deploykit.models.original import Original
from deploykit.models.randomness import random_places
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Session, Tensor, Tensors
from deploykit.runtime.batches import Answered, MismatchError, ask, paired

#: Rows that are asked again, at least: a few tell, and a large network takes seconds for each.
AGAIN = 2
#: By how much answers may differ that should be the same (relative max): what float32 rounds in another order.
SAME = 1e-4


@dataclass(frozen=True)
class Asked:
    """An original, opened, and what it answered.

    Attributes:
        original: What was asked.
        session: The original, opened.
        inputs: What it was asked, arrays [N, ...] by name.
        answered: What it said.
    """

    original: Original
    session: Session
    inputs: Tensors
    answered: Answered


def check_answers(asked: Asked) -> None:
    """Check that an original answers with numbers, and with the same ones when it is asked again.

    Raises:
        BadInputError: It does not.
    """
    _check_numbers(asked)
    count = min(len(next(iter(asked.inputs.values()))), -(-AGAIN // asked.answered.size) * asked.answered.size)
    again = ask(asked.session, _first(asked.inputs, count), asked.answered.size)
    apart = _apart(asked.answered, again)
    if not apart <= SAME:
        raise BadInputError(
            _unrepeatable(asked.original, apart), Hint("if self.training:", "draws random numbers in training alone")
        )


def _first(inputs: Tensors, count: int) -> dict[str, Tensor]:
    return {name: array[:count] for name, array in inputs.items()}


def _check_numbers(asked: Asked) -> None:
    for name, array in asked.answered.arranged().items():
        if not any(np.asarray(sample).size for sample in array):
            raise BadInputError(
                f"output {name!r} of the original holds no values for any of {len(array)} golden inputs: that proves nothing",
                Hint("--golden DIR", "takes images such as the model will see"),
            )
        bad = [_bad(np.asarray(sample)) for sample in array]
        words = [word for word in ("NaN", "infinity") if word in bad]
        if words:
            output = f" in output {name!r}" if len(asked.answered.pieces) > 1 else ""
            count = sum(bool(word) for word in bad)
            raise BadInputError(
                f"the original answers {' and '.join(words)} for {count} of {len(bad)} golden inputs{output}: nothing can be "
                f"compared with that ({asked.original.id})",
                Hint("--golden DIR", "takes images such as the model will see"),
            )


def _bad(sample: NDArray[np.float64]) -> str:
    """Return what isn't finite about a sample, "" where all is."""
    if sample.dtype.kind != "f" or np.isfinite(sample).all():
        return ""
    return "NaN" if np.isnan(sample).any() else "infinity"


def _apart(first: Answered, again: Answered) -> float:
    """Return how far the first inferences lie apart, of all outputs the most; inf where a shape differs."""
    worst = 0.0
    for name, pieces in again.pieces.items():
        for piece, before in zip(pieces, first.pieces[name], strict=False):
            try:
                one, other = paired(name, before[None], piece[None])
            except MismatchError:
                return np.inf
            if one.size:
                worst = max(worst, drift.relative_max(one, other))
    return worst


def _unrepeatable(original: Original, apart: float) -> str:
    try:
        where = random_places(original)
    except UnsupportedError:
        where = ""
    differs = "in other shapes" if np.isinf(apart) else f"by {apart:.0e} of the largest value"
    told = where or "it draws no random numbers in PyTorch: something that it keeps changes from call to call"
    return f"{original.id} answers differently each time: asked again for the same inputs, {differs}; {told}"


def influence(asked: Asked) -> float:
    """Return by how much a row's answer depends on the others of its batch (relative max); 0 where it can't be asked so."""
    size, axes, session = asked.answered.size, asked.answered.axes, asked.session
    with_rows = [name for name, axis in axes.items() if axis is not None]
    batch = session.inputs[0].shape[0]
    if isinstance(batch, int) or not with_rows or len(next(iter(asked.inputs.values()))) < 2:
        return 0.0
    rows = _first(asked.inputs, 2)
    alone = asked.answered if size == 1 else ask(session, rows, 1)
    together = asked.answered if size == 2 else ask(session, rows, 2)
    pairs = ((alone.arrange(name, axes[name])[:2], together.arrange(name, axes[name])[:2]) for name in with_rows)
    return max(drift.relative_max(one, other) for one, other in pairs)


def notes_on_rows(asked: Asked, *, is_open: bool) -> list[str]:
    """Return what is to be said where the rows of a batch influence one another.

    Args:
        asked: The original and its answers.
        is_open: The batch is to stay open.

    Raises:
        BakedAxisError: It is, and they do.
    """
    found = influence(asked)
    if found <= SAME:
        return []
    others = f"the other rows of its batch (by {found:.0e} of the largest value)"
    told = f"what {asked.original.id} answers for a row depends on {others}"
    if is_open:
        raise BakedAxisError(
            f"axis {BATCH!r} can't stay open: {told}", Hint("--batch N", "exports a batch of that size, judged as such")
        )
    return [f"{told}: it is judged at batch {asked.answered.size}, and serves no other"]
