"""Every way of using an operator that ONNX has a model for, through adopting, simplifying, rewriting and casting.

`python -m tests.onnx_nodes` writes `refusals.json` anew. It may only shrink.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_nodes.passes import (
    PASSES,
    Case,
    DisagreeError,
    Result,
    cases,
    compare,
    known_refusals,
    pass_through,
    reason_of,
)

#: Every so many of them is one of the sample, and all of them in so many parts.
SAMPLED, PARTS = 40, 8
#: The runtime's and PyTorch's libraries warn of their own.
pytestmark = pytest.mark.filterwarnings("ignore")


def passed(chosen: tuple[Case, ...], folder: Path) -> list[Result]:
    results = []
    for case in chosen:
        (folder / case.name).mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(pass_through(case, folder / case.name))
    return results


def check(results: list[Result]) -> None:
    """Compare what is refused with what is known to be; nothing may fail."""
    failed = [f"{one.name} {one.at}: {one.told}" for one in results if one.kind == "failed"]
    assert failed == []
    names = {one.name for one in results}
    found = {one.name: reason_of(one) for one in results if one.kind == "refused"}
    known = {name: reason for name, reason in known_refusals().items() if name in names}
    assert found == known


def test_a_sample_agrees_or_is_known_to_be_refused(tmp_path: Path) -> None:
    results = passed(cases()[::SAMPLED], tmp_path)
    check(results)
    kinds = Counter(one.kind for one in results)
    assert kinds["agrees"] > len(results) // 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_all_agree_or_are_known_to_be_refused(part: int, tmp_path: Path) -> None:
    check(passed(cases()[part::PARTS], tmp_path))


def test_refusals_are_of_cases_that_there_are() -> None:
    text = (Path(__file__).parent / "refusals.json").read_text(encoding="utf-8")
    listed = [name for names in json.loads(text).values() for name in names]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= {case.name for case in cases()}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([np.zeros(3, np.float32)], [np.zeros(4, np.float32)]),
        ([np.zeros(3, np.float32)], [np.zeros(3, np.float64)]),
        ([np.zeros(3, np.float32)], []),
        ([np.array([1.0, 2.0])], [np.array([1.0, 2.001])]),
        ([np.array([1.0, np.nan])], [np.array([1.0, 2.0])]),
        ([np.array([1.0, np.inf])], [np.array([1.0, -np.inf])]),
        ([np.array([1.0, 2.0])], [np.array([1.0, np.nan])]),
        ([np.array([[1, 2], [3, 4]])], [np.array([[1, 2], [3, 5]])]),
        ([np.array(["a", "b"])], [np.array(["a", "c"])]),
        ([[np.zeros(1), np.zeros(1)]], [[np.zeros(1), np.ones(1)]]),
    ],
)
def test_whole_outputs_are_compared(before: list[object], after: list[object]) -> None:
    compare(before, before, 0.0)
    with pytest.raises(DisagreeError):
        compare(before, after, 1e-5)


def test_a_pass_that_changes_values_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import numpy_helper

    from deploykit.export import adopt, onnx_files

    whole = adopt.adopted

    def spoilt(source: Path, folder: Path, shapes: dict[str, tuple[int | str, ...]]) -> object:
        model = whole(source, folder, shapes)
        for node in model.graph.node:
            node.op_type = "Neg" if node.op_type == "Abs" else node.op_type
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        onnx_files.save(model, folder / onnx_files.MODEL)
        return model

    monkeypatch.setattr(adopt, "adopted", spoilt)
    (case,) = [case for case in cases() if case.name == "test_abs"]
    found = pass_through(case, tmp_path)
    assert (found.kind, found.at) == ("failed", PASSES[0])
