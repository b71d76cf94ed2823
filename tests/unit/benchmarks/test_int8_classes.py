"""The table of int8 by class of processor: what a row tells, and which images are asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.int8_classes import Row, spread
from tests.support import RECIPE

from deploykit.artifact import RunConfig
from deploykit.runtime import judge
from deploykit.runtime.drift import Answers

RUN = RunConfig("onnxruntime", precision="f32")


def row(family: str, agreement: float, drop: float) -> Row:
    metrics = {"agreement": agreement, "accuracy_drop": drop, "top1": 0.7, "sqnr_db.original": 20.0}
    found = replace(judge.not_run("net.int8.ort", RUN, ""), metrics=metrics)
    return Row("net", family, "avx2, emulated", found)


@pytest.mark.parametrize(
    ("family", "agreement", "drop", "missed"),
    [
        ("convnext", 0.96, 0.005, ()),
        ("convnext", 0.9599, 0.0, ("agreement below 96 %",)),
        ("mobilenetv3", 0.95, -0.01, ()),
        ("mobilenetv3", 0.93, 0.006, ("agreement below 94 %", "drop above 0.5 pp")),
        ("convnext", float("nan"), float("nan"), ("agreement below 96 %", "drop above 0.5 pp")),
    ],
)
def test_bounds_of_a_row(family: str, agreement: float, drop: float, missed: tuple[str, ...]) -> None:
    assert row(family, agreement, drop).missed == missed


def test_what_was_not_judged_misses() -> None:
    one = Row("net", "convnext", "avx2, emulated", judge.not_run("net.int8.ort", RUN, "over 60 s on avx2"))
    assert one.missed == ("over 60 s on avx2",)
    assert one.text.endswith("| over 60 s on avx2 |")


@pytest.mark.parametrize("count", [1, 3, 10, 11])
def test_images_are_spread_over_all(count: int) -> None:
    crops = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3)
    numbers = np.arange(10)
    found = spread(judge.Evaluation(crops, Answers(numbers, numbers.astype(np.float32), numbers), RECIPE), count)
    assert len(found.crops) == min(count, 10)
    assert found.answers.labels.tolist() == found.crops[:, 0, 0, 0].tolist()
    assert len(set(found.answers.labels.tolist())) == min(count, 10)
    assert count < 2 or found.answers.labels[-1] == 9
