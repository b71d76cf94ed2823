"""One graph in two runtimes: which of them, if any, is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import judgement

from deploykit.export.cache import Cache
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.export.request import Cell
from deploykit.verdict import Judgement, Verdict
from deploykit.workflow.draft import Draft
from deploykit.workflow.export import prepare
from deploykit.workflow.options import ExportOptions
from deploykit.workflow.twin import BLAME, asked_elsewhere

CELL = Cell("int8", "openvino")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Draft]:
    """A draft of an int8 artifact for OpenVINO, and what runs it."""
    options = ExportOptions(cells=("int8:openvino",), verify=False, bench=False, calib_size=32)
    folder: Path = tmp_path_factory.mktemp("cache")
    return Pipeline(Cache(folder), Silent()), prepare("tiny-convnext", options).draft


def judged(sqnr_db: float) -> Judgement:
    return replace(judgement(Verdict.FAIL), metrics={"sqnr_db": sqnr_db})


def test_a_runtime_that_lies_far_behind_another_one_on_the_same_graph_is_called_wrong(
    made: tuple[Pipeline, Draft],
) -> None:
    twin = asked_elsewhere(*made, CELL, (judged(-0.6),))
    assert twin.is_better
    assert twin.text.endswith("OpenVINO -0.6 dB: OpenVINO computes it wrongly")
    elsewhere = float(twin.text.split()[3])
    assert elsewhere > 20.0
    just = asked_elsewhere(*made, CELL, (judged(elsewhere - BLAME + 0.2),))
    assert not just.is_better
    assert "wrongly" not in just.text


def test_the_worst_run_counts_and_a_run_without_numbers_does_not(made: tuple[Pipeline, Draft]) -> None:
    assert asked_elsewhere(*made, CELL, (judged(60.0), judged(-0.6))).is_better
    assert not asked_elsewhere(*made, CELL, (replace(judged(0.0), metrics={}),)).is_better
