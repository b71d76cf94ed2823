"""Batches: any number of rows through a session, one inference after the other, and where an output's rows lie.

Nothing says that the first axis of an output is the batch: a detector answers [boxes, 6], a suppression of overlapping
boxes as many rows as it finds, a loss one number. So every output is kept whole, as each inference gave it, and is taken
apart into rows only where its rows are known to lie along one axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit.artifact import Axis, TensorSpec
from deploykit.bundle import load_tensors, save_tensors
from deploykit.runtime.backends.base import Session, Tensor, Tensors

#: Rows that a session of an open batch is given at once where nothing else asks for another number.
CHUNK = 16
#: By how much rows may differ that were computed of the same input in the same inference, of the largest value.
SAME_ROW = 1e-3
#: What an array is called in a file where an output has another shape in each inference.
_PIECE = "{name} of inference {index}"
_PIECES = re.compile(r"(.*) of inference (\d+)", re.DOTALL)


class MismatchError(ValueError):
    """Outputs are not those of the reference: others, in another order, or of another shape."""


@dataclass(frozen=True)
class Answered:
    """What a session answered to some rows.

    Attributes:
        pieces: By output, what each inference gave, whole.
        size: Rows of an inference.
        total: Rows that were asked for; what the last inference was filled up with lies beyond them.
        axes: By output, the axis that rows lie along; None where there is none.
    """

    pieces: Mapping[str, tuple[Tensor, ...]]
    size: int
    total: int
    axes: Mapping[str, int | None]

    def arranged(self) -> dict[str, Tensor]:
        """Return every output as `arrange` does, its rows first where it has any."""
        return {name: self.arrange(name, axis) for name, axis in self.axes.items()}

    def arrange(self, name: str, axis: int | None) -> Tensor:
        """Return an output as one array.

        Args:
            name: The output's.
            axis: That its rows lie along; None where it has none.

        Returns:
            [rows, ...]. Without rows [inferences, ...]; where shapes differ, an array of arrays, one for each inference.
        """
        pieces = self.pieces[name]
        if axis is not None:
            return np.concatenate([np.moveaxis(piece, axis, 0) for piece in pieces])[: self.total]
        if len({piece.shape for piece in pieces}) == 1:
            return np.stack(pieces)
        return _uneven(pieces)

    def like(self, name: str, expected: Tensor) -> Tensor:
        """Return an output arranged as a reference's is.

        A graph of fixed batch doesn't say whether its first axis is the batch; a reference that was asked at other sizes does.
        """
        own = self.arrange(name, self.axes[name])
        if own.shape == expected.shape:
            return own
        fits = all(piece.ndim and len(piece) == self.size for piece in self.pieces[name])
        others = [self.arrange(name, axis) for axis in ((0, None) if fits else (None,))]
        return next((other for other in others if other.shape == expected.shape), own)


def ask(session: Session, inputs: Tensors, size: int) -> Answered:
    """Run rows through a session, the same number in each inference: the last one is filled up by repeating its last row.

    Args:
        session: Its inputs' first dimension is the batch.
        inputs: Arrays [N, ...] by name, N at least 1.
        size: Rows of an inference where the batch is open.
    """
    batch = session.inputs[0].shape[0]
    size = min(size, batch.max) if isinstance(batch, Axis) else batch
    total = len(next(iter(inputs.values())))
    pieces: dict[str, list[Tensor]] = {spec.name: [] for spec in session.outputs}
    for start in range(0, total, size):
        rows = {name: array[start : start + size] for name, array in inputs.items()}
        missing = size - len(next(iter(rows.values())))
        if missing:
            rows = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in rows.items()}
        for name, array in session.infer(rows).items():
            pieces[name].append(array)
    found = {name: tuple(arrays) for name, arrays in pieces.items()}
    axes = _open_axes(session, inputs, batch) if isinstance(batch, Axis) else _fixed_axes(found, size, total)
    return Answered(found, size, total, axes)


def run_rows(session: Session, inputs: Tensors, chunk: int = CHUNK) -> dict[str, Tensor]:
    """Run any number of rows through a session of static or dynamic batch.

    Args:
        session: Its inputs' first dimension is the batch.
        inputs: Arrays [N, ...] by name, N at least 1.
        chunk: Most rows at a time where the batch is dynamic.

    Returns:
        Arrays by name, as `Answered.arrange` makes them: [N, ...] where an output has rows.
    """
    return ask(session, inputs, min(chunk, len(next(iter(inputs.values()))))).arranged()


def _fixed_axes(pieces: Mapping[str, tuple[Tensor, ...]], size: int, total: int) -> dict[str, int | None]:
    """Return where rows lie in outputs of a fixed batch, as far as their shapes tell: first, or nowhere."""
    filled = -total % size
    return {
        name: 0 if all(p.ndim and len(p) == size for p in arrays) and _repeats(arrays[-1], filled) else None
        for name, arrays in pieces.items()
    }


def _repeats(piece: Tensor, count: int) -> bool:
    """Tell whether the last `count` entries are that before them, as they are where the same row was given again."""
    if not count:
        return True
    last, again = (np.asarray(part, np.float64) for part in (piece[-count - 1], piece[-count:]))
    with np.errstate(all="ignore"):
        return bool(np.allclose(last[None], again, rtol=0.0, atol=SAME_ROW * _peak(last), equal_nan=True))


def _peak(array: Tensor) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def _open_axes(session: Session, inputs: Tensors, batch: Axis) -> dict[str, int | None]:
    """Return where rows lie in outputs of an open batch: where its name stands, else what grows with it."""
    places = {spec.name: _named(spec, batch.name) for spec in session.outputs}
    if all(len(found) == 1 for found in places.values()) or not (batch.accepts(1) and batch.accepts(2)):
        return {name: found[0] if len(found) == 1 else None for name, found in places.items()}
    one, two = (
        session.infer({name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()})
        for size in (1, 2)
    )
    grown = {name: grown_axis(one[name].shape, two[name].shape) for name in places}
    return {name: found[0] if len(found) == 1 else grown[name] for name, found in places.items()}


def _named(spec: TensorSpec, name: str) -> list[int]:
    return [place for place, dim in enumerate(spec.shape) if isinstance(dim, Axis) and dim.name == name]


def grown_axis(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """Return the axis that is 1 for one row and 2 for two, where nothing else differs."""
    if len(one) != len(two):
        return None
    differ = [place for place, (before, after) in enumerate(zip(one, two, strict=True)) if before != after]
    return differ[0] if len(differ) == 1 and (one[differ[0]], two[differ[0]]) == (1, 2) else None


def check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Compare names of outputs.

    Raises:
        MismatchError: Some are missing, too many, or in another order.
    """
    wanted, given = list(expected), list(found)
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if missing:
        raise MismatchError(f"output {missing[0]!r} is missing; found: {', '.join(given)}")
    if extra:
        raise MismatchError(f"output {extra[0]!r} is none of the reference's; it has: {', '.join(wanted)}")
    if wanted != given:
        raise MismatchError(f"outputs are in another order: {', '.join(given)}; the reference's is {', '.join(wanted)}")


def paired(name: str, expected: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Return two outputs of the same shape as arrays whose first axis holds samples.

    Args:
        name: The output's, for messages.
        expected: The reference's, as `Answered.arrange` makes it.
        found: Its like.

    Raises:
        MismatchError: Shapes differ.
    """
    if not any(array.dtype == object for array in (expected, found)):
        if expected.shape != found.shape:
            raise MismatchError(_told(name, expected.shape[1:], found.shape[1:], expected.shape, found.shape))
        return expected, found
    if len(expected) != len(found):
        raise MismatchError(
            f"output {name!r} has other shapes in each inference: they can be compared only where as many rows are asked at "
            f"once; the reference was asked in {len(expected)} inferences, this in {len(found)}"
        )
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.shape != other.shape:
            raise MismatchError(f"{_told(name, one.shape, other.shape, (), ())} (inference {index + 1})")
    return _joined(expected), _joined(found)


def _told(
    name: str,
    expected: tuple[int, ...],
    found: tuple[int, ...],
    all_expected: tuple[int, ...],
    all_found: tuple[int, ...],
) -> str:
    """Return which shapes differ: of a sample where these do, else of all samples together."""
    pair = (expected, found) if expected != found else (all_expected, all_found)
    return f"output {name!r}: shapes differ: reference {list(pair[0])}, candidate {list(pair[1])}"


def _joined(pieces: Tensor) -> Tensor:
    """Return arrays of several shapes as one: along the first axis where all others agree, else value by value."""
    whole = [np.asarray(piece) for piece in pieces]
    if all(piece.ndim for piece in whole) and len({piece.shape[1:] for piece in whole}) == 1:
        return np.concatenate(whole)
    return np.concatenate([piece.reshape(-1) for piece in whole])


def save_outputs(path: Path, outputs: Tensors) -> None:
    """Write outputs as an .npz: of one that is an array of arrays, each by itself."""
    save_tensors(path, dict(_packed(outputs)))


def _packed(outputs: Tensors) -> Iterator[tuple[str, Tensor]]:
    for name, array in outputs.items():
        if array.dtype == object:
            yield from ((_PIECE.format(name=name, index=index), piece) for index, piece in enumerate(array))
        else:
            yield name, array


def load_outputs(path: Path) -> dict[str, Tensor]:
    """Read what `save_outputs` wrote.

    Raises:
        BadInputError: The file is damaged, or holds objects.
    """
    arrays = load_tensors(path)
    found: dict[str, list[Tensor]] = {}
    for key, array in arrays.items():
        parts = _PIECES.fullmatch(key)
        name = parts[1] if parts and int(parts[2]) == len(found.get(parts[1], [])) else key
        found.setdefault(name, []).append(array)
    outputs: dict[str, Tensor] = {}
    for name, pieces in found.items():
        outputs[name] = pieces[0] if name in arrays else _uneven(pieces)
    return outputs


def _uneven(pieces: Sequence[Tensor]) -> Tensor:
    """Return arrays of several shapes as an array of arrays."""
    found = np.empty(len(pieces), object)
    for index, piece in enumerate(pieces):
        found[index] = piece
    return found
