"""Judge open axes: an artifact must make the same of its inputs at sizes that nothing was traced at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deploykit.artifact import Axis
from deploykit.errors import DeploykitError
from deploykit.runtime import drift, gate
from deploykit.runtime.backends.base import Session, Tensor, Tensors
from deploykit.runtime.batches import ask, paired
from deploykit.runtime.golden import ORIGINAL, Golden
from deploykit.runtime.rollout import Sized
from deploykit.verdict import Budget, GateKind, GateResult, Verdict

#: What the same row must keep at another batch size where the budget bounds no numeric metric.
DEFAULT_ROW_COSINE = 0.99
#: By how many dB about the mean answer rows of other sizes may lie farther away than an artifact does that drifts too far at
#: the traced size, where their raw SQNR is enough: what is wrong with it is not the axis.
LENIENCE = 6.0


@dataclass(frozen=True)
class _Measured:
    """How far an output lies from what it must be: a value, its bound, and which side of it passes."""

    output: str
    value: float
    bound: float
    higher_is_better: bool

    @property
    def passed(self) -> bool:
        return self.value >= self.bound if self.higher_is_better else self.value <= self.bound

    @property
    def margin(self) -> float:
        """What tells which of several is the worst: the smaller, the worse."""
        apart = self.value - self.bound if self.higher_is_better else self.bound - self.value
        return -np.inf if np.isnan(apart) else apart / (abs(self.bound) or 1.0)


@dataclass(frozen=True)
class Open:
    """An open axis: the size that it was traced at, and others that it is tried at."""

    name: str
    traced: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Measure:
    """How rows of other sizes are measured.

    Attributes:
        budget: What they may drift.
        means: Mean answers of the original, by output: what rows are measured about.
        own: What the artifact keeps at the traced size, dB.
    """

    budget: Budget
    means: Tensors
    own: float

    def about(self, name: str, expected: Tensor) -> Tensor | float:
        """Return the mean answer, where it has the shape of these rows."""
        mean = self.means.get(name)
        return mean if mean is not None and mean.shape[1:] == expected.shape[1:] else 0.0


def judge_axes(
    session: Session,
    golden: Golden,
    budget: Budget,
    axes: Mapping[str, int],
    skipped: list[str],
    own: float,
) -> Iterator[GateResult]:
    """Run every axis that the graph or the bundle calls dynamic at sizes other than the traced one.

    Args:
        session: The artifact.
        golden: What it is run on.
        budget: What it may drift.
        axes: Declared dynamic axes by name, with the size that each was traced at.
        skipped: What could not be judged is added, with its reason.
        own: SQNR of the artifact at the traced size, dB.
    """
    answers = golden.references.get(ORIGINAL, {})
    means = {name: drift.mean_answer(a) for name, a in answers.items() if a.dtype != object and a.ndim}
    measure = _Measure(budget, means, own)
    rows = {dim.name for spec in session.inputs for dim in spec.shape[:1] if isinstance(dim, Axis)}
    sized = [one for one in golden.sized if one.axis in axes]
    of_sizes = {one.axis for one in sized}
    for axis in sorted({axis.name for spec in session.inputs for axis in spec.axes} | set(axes)):
        if axis in of_sizes:
            at_once = golden.rows(next((axes[name] for name in rows if name in axes), None))
            fitting = [one for one in sized if one.axis == axis and _takes(session, axis, one.size)]
            yield from (_judge_size(session, measure, one, at_once) for one in fitting)
        elif axis in rows or axis in axes:
            sizes = [size for size in _sizes(session, axis, golden.sizes) if size != axes.get(axis)]
            yield from _judge_batch(session, golden, measure, Open(axis, axes.get(axis, 1), tuple(sizes)), skipped)
        else:
            skipped.append(f"axis {axis!r}: there are no golden inputs of other sizes")


def _takes(session: Session, axis: str, size: int) -> bool:
    """Tell whether a size lies in the bounds that a session gives an axis, as far as it gives any."""
    return all(dim.accepts(size) for spec in session.inputs for dim in spec.axes if dim.name == axis)


def _sizes(session: Session, axis: str, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes to try: those wanted that the session's bounds allow, else its least and its largest."""
    bounds = [dim for spec in session.inputs for dim in spec.axes if dim.name == axis]
    allowed = tuple(size for size in wanted if all(dim.accepts(size) for dim in bounds))
    return allowed or tuple(sorted({bounds[0].min, bounds[0].max}))


def _judge_batch(
    session: Session, golden: Golden, measure: _Measure, opened: Open, skipped: list[str]
) -> Iterator[GateResult]:
    """Run other numbers of golden rows at once: each must come out as it does at the traced size. Drift is no matter here."""
    for size in opened.sizes:
        problem, worst = "", _unknown(measure)
        try:
            pairs = _rows_at(session, golden, size, opened.traced)
            if not pairs:
                skipped.append(f"axis {opened.name!r}: no output has rows that could be compared")
                return
            worst = _worst(measure, pairs)
        except (DeploykitError, ValueError, RuntimeError) as error:
            problem = f"axis {opened.name!r} is baked: size {size} fails with: {_first_line(error)}"
        if not (worst.passed or problem):
            differ = f"at size {size} the outputs differ from those at the traced size{_told(session, worst)}"
            problem = f"axis {opened.name!r} is baked: {differ}"
        yield _result(f"{opened.name}={size}", "itself", size, worst, problem)


def _rows_at(session: Session, golden: Golden, size: int, traced: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return every output that has rows, of `size` rows: as it comes out `traced` at a time, and all at once.

    Rows that fill up the last inference are others: the same one again would hide that rows influence one another.
    """
    few = ask(session, _rows(golden, -(-size // traced) * traced), traced)
    whole = session.infer(_rows(golden, size))
    axes = {name: axis for name, axis in few.axes.items() if axis is not None}
    return {name: (few.arrange(name, axis)[:size], np.moveaxis(whole[name], axis, 0)) for name, axis in axes.items()}


def _rows(golden: Golden, count: int) -> dict[str, Tensor]:
    """Return that many golden inputs, from the first on, and again."""
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in golden.inputs.items()}


def _judge_size(session: Session, measure: _Measure, one: Sized, at_once: int) -> GateResult:
    """Run inputs of another size: what comes out must be what the original makes of them, within its drift."""
    problem, worst = "", _unknown(measure)
    try:
        found = ask(session, one.inputs, at_once)
        worst = _worst(measure, {name: (array, found.like(name, array)) for name, array in one.outputs.items()})
    except (DeploykitError, ValueError, RuntimeError) as error:
        problem = f"axis {one.axis!r} is baked: size {one.size} fails with: {_first_line(error)}"
    if not (worst.passed or problem):
        problem = f"at size {one.size} of axis {one.axis!r} the outputs are not the original's{_told(session, worst)}"
    return _result(f"{one.axis}={one.size}", ORIGINAL, len(next(iter(one.inputs.values()))), worst, problem)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _told(session: Session, worst: _Measured) -> str:
    """Return which output it is, where there are several."""
    return f": {worst.output!r}" if len(session.outputs) > 1 else ""


def _result(metric: str, reference: str, n: int, worst: _Measured, problem: str) -> GateResult:
    return GateResult(
        kind=GateKind.AXIS,
        metric=metric,
        reference=reference,
        value=worst.value,
        lower=worst.value,
        upper=worst.value,
        bound=worst.bound,
        higher_is_better=worst.higher_is_better,
        n=n,
        verdict=Verdict.FAIL if problem else Verdict.PASS,
        reason=problem,
    )


def _worst(measure: _Measure, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> _Measured:
    """Return the output that lies farthest from what it must be."""
    each = [_measured(measure, name, *paired(name, expected, found)) for name, (expected, found) in pairs.items()]
    return min(each, key=lambda one: one.margin)


def _measured(measure: _Measure, name: str, expected: Tensor, found: Tensor) -> _Measured:
    if gate.is_counted(expected):
        equal = drift.share_equal(expected, found)
        return _Measured(name, equal, gate.least_equal(measure.budget), higher_is_better=True)
    metric, bound, higher = _row_metric(measure.budget)
    if np.array_equal(expected, found, equal_nan=True):
        return _Measured(name, np.inf if higher else 0.0, bound, higher)
    made = _Measured(name, metric(expected, found, measure.about(name, expected)), bound, higher)
    if metric is drift.sqnr_db and measure.own < bound <= drift.sqnr_db(expected, found):
        return replace(made, bound=measure.own - LENIENCE)
    return made


def _unknown(measure: _Measure) -> _Measured:
    """Return what stands for a value where nothing could be measured."""
    _, bound, higher = _row_metric(measure.budget)
    return _Measured("", float("nan"), bound, higher)


def _row_metric(budget: Budget) -> tuple[Callable[[Tensor, Tensor, Tensor | float], float], float, bool]:
    """Return the metric that rows of other sizes are held to, its bound, and whether higher is better."""
    if budget.sqnr_db is not None:
        return drift.sqnr_db, budget.sqnr_db, True
    if budget.relative_max is not None:
        return drift.relative_max, budget.relative_max, False
    return _raw_cosine, budget.cosine if budget.cosine is not None else DEFAULT_ROW_COSINE, True


def _raw_cosine(expected: Tensor, found: Tensor, _about: Tensor | float) -> float:
    return drift.cosine_min(expected, found)
