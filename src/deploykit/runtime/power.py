"""Power: would the gates have noticed, on these golden inputs, if an artifact were wrong?

A gate that no fault could fail says nothing when it passes. So the fp32 graph is made wrong on purpose, in one tensor at a
time, spread over its depth, and what that does to its answers is put on record. How much of it a budget would have caught
is told beside each verdict; where it is too little, the verdict is inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from deploykit.bundle import load_tensors, save_tensors
from deploykit.errors import BadInputError
from deploykit.verdict import Budget, GateKind, GateResult, Verdict

#: Kinds of faults: a weight tensor times 1.05, its output channels shifted by one place, one of them zeroed, its largest
#: weight doubled, one bias shifted by a tenth, two outputs swapped.
SCALED, SHIFTED, ZEROED = "5 % weight faults", "misplaced channels", "lost channels"
DOUBLED, BIASED, SWAPPED = "doubled weights", "shifted biases", "swapped outputs"
KINDS: Final = (SCALED, SHIFTED, ZEROED, DOUBLED, BIASED, SWAPPED)
#: What counts as noticed where inputs are judged, not artifacts: what float32 artifacts of most families are held to.
NOTICEABLE: Final = Budget(relative_max=1e-4, sqnr_db=80.0)
#: Least share of the 5 % weight faults that the golden inputs must make noticeable, or a pass would mean too little.
LEAST: Final = 0.5
RESOLVED, DETECTED = "resolved_faults", "detected_faults"
#: What is told of a budget, and under which names.
TOLD: Final[Mapping[str, str]] = {"detected_scaled": SCALED, "detected_misplaced": SHIFTED}
#: Under which manifests keep the record, and the file that stages hand on.
ROLE: Final = "faults"
FILE: Final = "faults.npz"
_NUMBERS: Final = ("relative_max", "sqnr_db", "cosine")


@dataclass(frozen=True)
class InjectedFault:
    """One fault, and what it does to the answer to one golden input.

    Attributes:
        kind: One of `KINDS`.
        tensor: Name of the initializer that was changed.
        relative_max: Of the answer, about the mean answer; NaN where it isn't finite.
        sqnr_db: The same, dB, against what answers usually vary by.
        cosine: Of the answer.
    """

    kind: str
    tensor: str
    relative_max: float
    sqnr_db: float
    cosine: float

    def exceeds(self, budget: Budget) -> bool:
        """Tell whether a gate of this budget fails on it."""
        within = (
            budget.relative_max is None or self.relative_max <= budget.relative_max,
            budget.sqnr_db is None or self.sqnr_db >= budget.sqnr_db,
            budget.cosine is None or self.cosine >= budget.cosine,
        )
        return not all(within) or not np.isfinite(self.relative_max)


def save_faults(path: Path, faults: Iterable[InjectedFault]) -> None:
    """Write faults as an .npz: kinds and names as text, numbers as float64."""
    rows = tuple(faults)
    texts = {key: np.asarray([getattr(row, key) for row in rows], np.str_) for key in ("kind", "tensor")}
    numbers = {key: np.asarray([getattr(row, key) for row in rows], np.float64) for key in _NUMBERS}
    save_tensors(path, {**texts, **numbers})


def load_faults(path: Path) -> tuple[InjectedFault, ...]:
    """Read what `save_faults` wrote.

    Raises:
        BadInputError: The file is damaged, or holds something else.
    """
    found = load_tensors(path)
    columns = [found.get(key) for key in ("kind", "tensor", *_NUMBERS)]
    known = [column for column in columns if column is not None and column.ndim == 1]
    wanted = ("U", "U", "f", "f", "f")
    if tuple(column.dtype.kind for column in known) != wanted or len({len(column) for column in known}) != 1:
        raise BadInputError(f"{path} is no record of faults: it holds {', '.join(found) or 'nothing'}")
    rows = zip(*(column.tolist() for column in known), strict=True)
    return tuple(InjectedFault(*row) for row in rows)


def detected(faults: Sequence[InjectedFault], budget: Budget) -> float:
    """Return the share of faults that a budget's gates fail on; NaN of none."""
    return sum(fault.exceeds(budget) for fault in faults) / len(faults) if faults else float("nan")


def shares(faults: Sequence[InjectedFault], budget: Budget) -> dict[str, float]:
    """Return what share of each kind in `TOLD` a budget's gates fail on, by the name it is told under; of those on record."""
    by_name = {name: [fault for fault in faults if fault.kind == kind] for name, kind in TOLD.items()}
    return {name: detected(of_kind, budget) for name, of_kind in by_name.items() if of_kind}


def power_gates(faults: Sequence[InjectedFault], budget: Budget) -> tuple[GateResult, GateResult]:
    """Judge the judging. Neither gate can fail: inputs that can't tell prove nothing, so they pass or are inconclusive.

    The first asks whether the golden inputs show a fault of 5 % in one tensor at all, whatever the budget. The second asks
    whether this budget catches anything of channels that are another's, which no rounding excuses.

    Args:
        faults: All that are on record.
        budget: That the artifact is held to.
    """
    fine = [fault for fault in faults if fault.kind == SCALED]
    gross = [fault for fault in faults if fault.kind == SHIFTED]
    return (
        _gate(RESOLVED, SCALED, detected(fine, NOTICEABLE), LEAST, len(fine), _BLIND_INPUTS),
        _gate(DETECTED, SHIFTED, detected(gross, budget), 1 / max(1, len(gross)), len(gross), _BLIND_BUDGET),
    )


_BLIND_INPUTS: Final = "the golden inputs can't tell a wrong artifact from a right one: give others with --golden"
_BLIND_BUDGET: Final = "this budget lets every one of them through: its other gates guard nothing"


def _gate(metric: str, kind: str, share: float, least: float, n: int, reason: str) -> GateResult:
    told = share >= least
    return GateResult(
        kind=GateKind.DRIFT,
        metric=metric,
        reference=kind,
        value=share,
        lower=share,
        upper=share,
        bound=least,
        higher_is_better=True,
        n=n,
        verdict=Verdict.PASS if told else Verdict.INCONCLUSIVE,
        reason="" if told else reason,
    )
