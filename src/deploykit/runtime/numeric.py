"""Numeric gates: every value of an output beside the reference's, about the mean answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np

from deploykit.errors import UnsupportedError
from deploykit.runtime import drift, gate
from deploykit.runtime.backends.base import Session, Tensor, Tensors
from deploykit.runtime.batches import MismatchError, paired
from deploykit.runtime.golden import HUB, ORIGINAL
from deploykit.verdict import Budget, GateResult, Verdict

#: Half of the distance between float32 numbers near 1.
EPSILON: Final = 2.0**-24
#: Noise may exceed what float32 rounds by this factor, and still be float32's own: another order of the same sums.
ROUNDED: Final = 4.0
#: An artifact of fewer bits whose noise is this many dB below what its budget allows of the whole answers keeps what so few
#: bits can; where it fails all the same, answers vary by too little to be told apart in them.
FAR_WITHIN: Final = 20.0
_BLIND: Final = "the answers to the golden inputs vary too little to tell, give others with --golden"
#: By how many dB a raw SQNR must lie above that about the mean answer to be worth a word.
SHARED: Final = 6.0
#: Least raw SQNR of two float32 computations of the same answers, dB: with less, one of them is wrong.
SAME_ANSWERS: Final = 100.0


@dataclass(frozen=True)
class Subject:
    """What is compared with what.

    Attributes:
        reference: "original" or "hub".
        name: The output's.
        is_first: It is the first output.
        is_only: There is no other one.
        rounding: Mean square of what float32 rounds of it.
        is_coarse: The artifact is made in, or computed in, fewer bits than float32's.
    """

    reference: str
    name: str
    is_first: bool = True
    is_only: bool = True
    rounding: float = 0.0
    is_coarse: bool = False

    @property
    def output(self) -> str | None:
        """Its name where gates have to tell it from others."""
        return None if self.is_only else self.name

    def key(self, metric: str) -> str:
        """Return the name of a metric among all numbers: of the first output its own, of others with the output's."""
        told = metric if self.reference == ORIGINAL else f"{metric}_from_{self.reference}"
        return told if self.is_first else f"{told}:{self.name}"


def rounding_of(references: Mapping[str, Tensors], measured: Mapping[str, float]) -> dict[str, float]:
    """Return the mean square of what float32 rounds of each output of the original.

    Args:
        references: Outputs of the original and of the hub graph, by name: two float32 computations of the same answers.
        measured: The same of the original beside itself in float64, where that was computed.
    """
    found = dict(measured)
    for name, expected in references.get(ORIGINAL, {}).items():
        if name in found or name not in references.get(HUB, {}):
            continue
        try:
            first, second = paired(name, expected, references[HUB][name])
        except MismatchError:
            continue
        if drift.sqnr_db(first, second) >= SAME_ANSWERS:
            found[name] = float(np.square(first.astype(np.float64) - second).mean())
    return found


def measured_rounding(session: Session, inputs: Tensors, rows: int) -> dict[str, float]:
    """Return the mean square of what float32 rounds of each output of an original, from the same rows in float64.

    Args:
        session: The original; where it can't compute in float64 nothing is returned.
        inputs: Arrays [N, ...] by name.
        rows: How many of them are asked.
    """
    feeds = {name: array[:rows] for name, array in inputs.items()}
    try:
        exact = session.infer_float64(feeds)
    except UnsupportedError:
        return {}
    found = session.infer(feeds)
    return {name: float(np.square(found[name].astype(np.float64) - exact[name]).mean()) for name in exact}


def numeric_gates(
    expected: Tensor, found: Tensor, budget: Budget, subject: Subject, metrics: dict[str, float]
) -> Iterator[GateResult]:
    """Judge one output, rows first.

    Args:
        expected: The reference's, [N, ...].
        found: The artifact's.
        budget: What it may drift.
        subject: What is compared.
        metrics: Every number is added under the name that `subject` gives it.
    """
    n = len(expected)
    result = partial(gate.numeric_gate, reference=subject.reference, n=n, output=subject.output)
    if gate.is_counted(expected):
        share = metrics[subject.key("equal")] = drift.share_equal(expected, found)
        yield result("equal", share, gate.least_equal(budget), higher_is_better=True)
        return
    yield result("finite", float(drift.is_finite(found)), 1.0, higher_is_better=True)
    about = drift.mean_answer(expected)
    raw = drift.sqnr_db(expected, found)
    excuse = _excuse(expected, found, about, subject.rounding)
    if subject.is_coarse and budget.sqnr_db is not None and raw >= budget.sqnr_db + FAR_WITHIN:
        excuse = f"of the whole answers it keeps {raw:.0f} dB, which is what so few bits can: {_BLIND}"
    least = drift.sqnr_db_least(expected, found, about)
    measured = {
        "relative_max": (drift.relative_max(expected, found, about), budget.relative_max, False, None),
        "sqnr_db": (drift.sqnr_db(expected, found, about), budget.sqnr_db, True, least),
        "channels_sqnr_db": (drift.channels_sqnr_db(expected, found, about), budget.sqnr_db, True, None),
        "cosine": (drift.cosine_min(expected, found), budget.cosine, True, None),
    }
    for metric, (value, bound, higher, lower) in measured.items():
        if value is None:
            continue
        metrics[subject.key(metric)] = value
        if bound is not None:
            judged = result(metric, value, bound, higher_is_better=higher, least=lower)
            if judged.verdict is Verdict.FAIL and excuse:
                judged = replace(judged, verdict=Verdict.INCONCLUSIVE, reason=excuse)
            yield _with_raw(judged, raw)
    if subject.reference == ORIGINAL:
        metrics |= _beside(expected, found, about, subject)


def _with_raw(judged: GateResult, raw: float) -> GateResult:
    """Add the raw SQNR to a failure that it would have hidden."""
    if judged.metric != "sqnr_db" or judged.verdict is not Verdict.FAIL or not raw - judged.value > SHARED:
        return judged
    return replace(judged, reason=f"the {raw:.0f} dB of the raw answers are mostly of what all of them share")


def _beside(expected: Tensor, found: Tensor, about: Tensor, subject: Subject) -> dict[str, float]:
    """Return what is told and not gated: the raw figures, and those of the median and the worst row."""
    rows = drift.rows_sqnr_db(expected, found, about)
    told = {
        "relative_max_raw": drift.relative_max(expected, found),
        "sqnr_db_raw": drift.sqnr_db(expected, found),
        "sqnr_db_median": float(np.median(rows)),
        "sqnr_db_worst": float(rows.min()),
    }
    return {subject.key(metric): value for metric, value in told.items()}


@np.errstate(all="ignore")
def _excuse(expected: Tensor, found: Tensor, about: Tensor, rounding: float) -> str:
    """Return why a failed gate proves nothing, or "": the artifact differs by no more than float32 itself rounds.

    Of answers that hardly vary, rounding is most of what does.
    """
    wide = expected.astype(np.float64)
    noise, varies = float(np.square(wide - found).mean()), float(np.square(wide - about).mean())
    floor = max(rounding, float(np.square(wide).mean()) * EPSILON**2)
    if not 0.0 < noise <= ROUNDED**2 * floor:
        return ""
    share = np.sqrt(varies / floor)
    return f"it differs by what float32 itself rounds, and the answers vary by no more than {share:.1g} times that: {_BLIND}"
