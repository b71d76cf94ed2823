"""The table of int8 for every processor beside int8 for VNNI: what keeps its bounds."""

from __future__ import annotations

import pytest
from benchmarks.int8_full_range import Row

from deploykit.verdict import Ratio


def row(safe_db: float, full_db: float, time: Ratio) -> Row:
    return Row("net", "onnxruntime cpu f32", safe_db, full_db, time, 300)


SAME = Ratio(1.0, 0.99, 1.01, 20)


@pytest.mark.parametrize(
    ("safe_db", "full_db", "time", "missed"),
    [
        (30.0, 31.0, SAME, ()),
        (32.0, 31.0, SAME, ()),
        (29.9, 31.0, SAME, ("over 1 dB of noise",)),
        (float("nan"), 31.0, SAME, ("over 1 dB of noise",)),
        (30.0, 30.0, Ratio(1.06, 1.04, 1.08, 20), ()),
        (30.0, 30.0, Ratio(1.2, 1.1, 1.3, 20), ("over 1.05 × the time",)),
        (30.0, 30.0, Ratio(float("nan"), float("nan"), float("nan"), 20), ("over 1.05 × the time",)),
    ],
)
def test_bounds_of_a_row(safe_db: float, full_db: float, time: Ratio, missed: tuple[str, ...]) -> None:
    found = row(safe_db, full_db, time)
    assert found.missed == missed
    assert found.text.endswith(f"| {', '.join(missed) or 'kept'} |")
