"""Names of a bare artifact beside those of its original."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import UsageError
from deploykit.runtime.golden import Golden
from deploykit.runtime.rollout import Rollout, Sized
from deploykit.workflow.matching import Interface, matched

ROWS = np.zeros((4, 3), np.float32)


def spec(name: str, *shape: int | Axis) -> TensorSpec:
    return TensorSpec(name, "float32", shape or (1, 3))


def golden(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Golden:
    rollout = Rollout(inputs[0], np.ones((2, 3)), np.zeros((2, 2, 3), np.float32), ROWS[:2])
    sized = (Sized("height", 4, dict.fromkeys(inputs, ROWS), dict.fromkeys(outputs, ROWS)),)
    return Golden(dict.fromkeys(inputs, ROWS), {"original": dict.fromkeys(outputs, ROWS)}, sized, rollout)


def test_the_same_names_in_any_order_are_left_alone() -> None:
    given = golden(("x", "t"), ("a", "b"))
    found, notes = matched(given, "net", Interface((spec("t"), spec("x")), (spec("b"), spec("a"))))
    assert (found, notes) == (given, ())


def test_one_input_and_one_output_are_renamed_everywhere_and_told() -> None:
    found, notes = matched(golden(("x",), ("y",)), "net", Interface((spec("images"),), (spec("output0"),)))
    assert (list(found.inputs), list(found.references["original"])) == (["images"], ["output0"])
    assert (list(found.sized[0].inputs), list(found.sized[0].outputs)) == (["images"], ["output0"])
    assert found.rollout is not None
    assert found.rollout.carried == "images"
    assert notes == (
        "its one input 'images' is taken for 'x' of net",
        "its one output 'output0' is taken for 'y' of net",
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (("x",), ("a", "b"), "outputs can't be matched by name: net has a, the artifact has a, b"),
        (("x", "t"), ("a",), "inputs can't be matched by name: net has x, the artifact has x, t"),
    ],
)
def test_several_of_other_names_are_refused_with_both_lists(
    inputs: tuple[str, ...], outputs: tuple[str, ...], words: str
) -> None:
    artifact = Interface(tuple(map(spec, inputs)), tuple(map(spec, outputs)))
    with pytest.raises(UsageError, match=words):
        matched(golden(("x",), ("a",)), "net", artifact)


@pytest.mark.parametrize(
    ("batch", "rows", "axes"),
    [(1, 1, {}), (5, 5, {}), (Axis("N", 1, 1, 8), 2, {"N": 2}), (Axis("N", 4, 4, 8), 4, {"N": 4})],
)
def test_the_original_is_asked_as_many_rows_at_once_as_the_artifact_takes(
    batch: int | Axis, rows: int, axes: dict[str, int]
) -> None:
    artifact = Interface((spec("x", batch, 3),), (spec("y"),))
    assert (artifact.rows, artifact.axes) == (rows, axes)
