"""Rows through sessions of any batch, and outputs that have no rows: kept whole, stored, compared by name and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import RunConfig
from deploykit.runtime import judge
from deploykit.runtime.backends.base import Session, Tensor, get_backend
from deploykit.runtime.batches import MismatchError, ask, check_names, load_outputs, paired, run_rows, save_outputs
from deploykit.runtime.golden import ORIGINAL, Golden
from deploykit.runtime.judge import Brief
from deploykit.runtime.numeric import Subject, numeric_gates
from deploykit.verdict import Budget, Judgement, Report, Verdict

RUN = RunConfig("onnxruntime", precision="f32", threads=1)
#: A score per column: where it is positive, its box is found.
INPUTS: NDArray[np.float32] = np.random.default_rng(8).standard_normal((6, 4, 3)).astype(np.float32)
STRICT = Budget(relative_max=1e-4, sqnr_db=80.0, cosine=0.999999)


def save(path: Path, batch: int | str, *, factors: NDArray[np.float32] | None = None, after: str = "") -> str:
    """Write a graph of a vector per row, the boxes of all rows on end, how often a value is positive and those that are.

    Args:
        path: To write.
        batch: Rows.
        factors: What boxes are multiplied by, [rows, 4, 3].
        after: Name of an output that is listed last.
    """
    value, constants = helper.make_tensor_value_info, {"s": np.array([-1, 3]), "z": np.array(0.0, np.float32)}
    constants["k"] = np.ones((1, 4, 3), np.float32) if factors is None else factors
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["scaled"]),
        helper.make_node("ReduceMax", ["x"], ["top"], axes=[2], keepdims=0),
        helper.make_node("Reshape", ["scaled", "s"], ["boxes"]),
        helper.make_node("Greater", ["scaled", "z"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["found"]),
        helper.make_node("Cast", ["positive"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones"], ["count"], keepdims=0),
    ]
    outputs = [
        value("top", TensorProto.FLOAT, [batch, 4]),
        value("boxes", TensorProto.FLOAT, [batch * 4 if isinstance(batch, int) else "all", 3]),
        value("found", TensorProto.INT64, [3, "positives"]),
        value("count", TensorProto.FLOAT, []),
    ]
    outputs.sort(key=lambda one: bool(one.name == after))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [batch, 4, 3])], outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return str(path)


def opened(model: str) -> Session:
    return get_backend("onnxruntime").open(model, RUN)


def golden_of(model: str, size: int) -> Golden:
    with opened(model) as session:
        return Golden({"x": INPUTS}, {ORIGINAL: ask(session, {"x": INPUTS}, size).arranged()})


def judged(model: str, golden: Golden, **axes: int) -> Judgement:
    return judge.judge("net", RUN, lambda: opened(model), Brief(golden, {"f32": STRICT}, axes))


def exit_code(found: Judgement) -> int:
    return Report("net", (found,)).exit_code(strict=False)


@pytest.mark.parametrize("batch", [1, 2, 4, "batch"])
def test_outputs_without_rows_are_kept_whole(tmp_path: Path, batch: int | str) -> None:
    with opened(save(tmp_path / "m.onnx", batch)) as session:
        answered = ask(session, {"x": INPUTS}, 2)
    size = batch if isinstance(batch, int) else 2
    inferences = -(-len(INPUTS) // size)
    found = answered.arranged()
    np.testing.assert_array_equal(found["top"], INPUTS.max(axis=2))
    assert found["boxes"].shape == (inferences, size * 4, 3)
    assert found["count"].shape == (inferences,)
    assert found["found"].shape == (inferences,)
    counted = [piece.shape[1] for piece in found["found"]]
    assert counted == found["count"].tolist()
    whole = (INPUTS[:size] > 0).sum()
    assert counted[0] == whole


def test_the_last_inference_is_filled_up_and_cut_only_where_rows_are(tmp_path: Path) -> None:
    """Four rows at a time of six: the second inference has two rows and two repeated ones."""
    with opened(save(tmp_path / "m.onnx", 4)) as session:
        found = ask(session, {"x": INPUTS}, 4).arranged()
    last = np.concatenate([INPUTS[4:], INPUTS[5:], INPUTS[5:]])
    assert len(found["top"]) == len(INPUTS)
    np.testing.assert_array_equal(found["boxes"][1], last.reshape(-1, 3))


def test_an_axis_of_the_batch_s_size_by_chance_is_not_cut(tmp_path: Path) -> None:
    """[4, 3] for four rows: what fills up an inference would be cut from it if it were rows."""
    value = helper.make_tensor_value_info
    node = helper.make_node("ReduceSum", ["x"], ["y"], axes=[0], keepdims=0)
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [4, 4, 3])], [value("y", TensorProto.FLOAT, [4, 3])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), tmp_path / "m.onnx")
    with opened(str(tmp_path / "m.onnx")) as session:
        assert run_rows(session, {"x": INPUTS})["y"].shape == (2, 4, 3)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_the_same_model_passes_whole(tmp_path: Path, batch: int | str) -> None:
    size = batch if isinstance(batch, int) else 2
    model = save(tmp_path / "m.onnx", batch)
    axes = {"batch": 2} if batch == "batch" else {}
    found = judged(model, golden_of(model, size), **axes)
    assert (found.verdict, found.reason, exit_code(found)) == (Verdict.PASS, "", 0)
    assert {gate.output for gate in found.gates if gate.kind.value == "drift"} == {"top", "boxes", "found", "count"}
    assert {"sqnr_db", "sqnr_db:boxes", "equal:found", "sqnr_db:count"} <= set(found.metrics)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_one_wrong_box_fails_by_the_name_of_its_output(tmp_path: Path, batch: int | str) -> None:
    size = batch if isinstance(batch, int) else 2
    golden = golden_of(save(tmp_path / "m.onnx", batch), size)
    factors = np.ones((1, 4, 3), np.float32)
    factors[0, 3, 2] = 1.5
    found = judged(
        save(tmp_path / "w.onnx", batch, factors=factors), golden, **({"batch": 2} if batch == "batch" else {})
    )
    assert exit_code(found) == 3
    assert {gate.output for gate in found.gates if gate.verdict is Verdict.FAIL} == {"boxes"}


def test_another_number_of_rows_found_is_a_failure_that_tells_both_shapes(tmp_path: Path) -> None:
    golden = golden_of(save(tmp_path / "m.onnx", 1), 1)
    factors = np.ones((1, 4, 3), np.float32)
    factors[0, 0, 0] = -1.0
    found = judged(save(tmp_path / "w.onnx", 1, factors=factors), golden)
    assert exit_code(found) == 3
    before, after = (INPUTS[0] > 0).sum(), (INPUTS[0] * factors[0] > 0).sum()
    assert before != after
    assert (
        f"output 'found': shapes differ: reference [3, {before}], candidate [3, {after}] (inference 1)" in found.reason
    )
    assert "crashed" not in found.reason
    assert {gate.output for gate in found.gates} >= {"top", "boxes", "count"}, "the others are compared all the same"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("top", "boxes", "found", "count", "scores"), "output 'scores' is missing; found: top, boxes, found, count"),
        (("top", "boxes", "found"), "output 'count' is none of the reference's; it has: top, boxes, found"),
        (("top", "boxes", "found", "classes"), "output 'classes' is missing"),
        (("boxes", "top", "found", "count"), "outputs are in another order: top, boxes, found, count"),
    ],
    ids=["missing", "extra", "renamed", "reordered"],
)
def test_other_outputs_fail_by_name(tmp_path: Path, wanted: tuple[str, ...], words: str) -> None:
    model = save(tmp_path / "m.onnx", 1)
    golden = golden_of(model, 1)
    known = golden.references[ORIGINAL]
    told = {name: known.get(name, known["top"]) for name in wanted}
    found = judged(model, Golden(golden.inputs, {ORIGINAL: told}))
    assert exit_code(found) == 3
    assert found.reason.startswith(words)
    with pytest.raises(MismatchError, match=words):
        check_names(wanted, known)


def test_a_reference_asked_at_another_size_serves_outputs_with_rows(tmp_path: Path) -> None:
    golden = golden_of(save(tmp_path / "m.onnx", 1), 1)
    only = {ORIGINAL: {"top": golden.references[ORIGINAL]["top"]}}
    found = judged(save(tmp_path / "two.onnx", 2), Golden(golden.inputs, only))
    assert not [gate for gate in found.gates if gate.verdict is Verdict.FAIL]
    found = judged(save(tmp_path / "two.onnx", 2), golden)
    assert exit_code(found) == 3
    assert "output 'boxes': shapes differ: reference [4, 3], candidate [8, 3]" in found.reason


def test_outputs_of_several_shapes_are_stored_and_read_back(tmp_path: Path) -> None:
    uneven = np.empty(3, object)
    for index in range(3):
        uneven[index] = np.full((index, 2), index, np.float32)
    outputs: dict[str, Tensor] = {"y": np.eye(2), "boxes": uneven, "z of inference 7": np.zeros(1)}
    save_outputs(tmp_path / "o.npz", outputs)
    found = load_outputs(tmp_path / "o.npz")
    assert list(found) == list(outputs)
    np.testing.assert_array_equal(found["y"], outputs["y"])
    assert [piece.shape for piece in found["boxes"]] == [(0, 2), (1, 2), (2, 2)]
    assert found["z of inference 7"].tolist() == [0.0]
    joined, again = paired("boxes", uneven, found["boxes"])
    assert joined.shape == (3, 2)
    np.testing.assert_array_equal(joined, again)


def wholes(draw: st.DrawFn) -> dict[str, Tensor]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = draw(st.lists(st.sampled_from([(1, 2, 3), (3, 64), (3,), (2, 1)]), min_size=1, max_size=3))
    made: dict[str, Tensor] = {f"o{i}": random.standard_normal(shape) for i, shape in enumerate(shapes)}
    if draw(st.booleans()):
        made["i"] = random.integers(0, 9, (3, 2))
    if draw(st.booleans()):
        made["u"] = np.empty(2, object)
        made["u"][0], made["u"][1] = random.standard_normal((1, 4)), random.standard_normal((3, 4))
    return made


@settings(max_examples=60, deadline=None)
@given(st.composite(wholes)(), st.data())
def test_any_single_value_beyond_the_budget_is_caught(expected: dict[str, Tensor], data: st.DataObject) -> None:
    """Wherever one value of one output is off by more than the bound of the largest error, a gate of that output fails."""
    name = data.draw(st.sampled_from(list(expected)))
    found: dict[str, Tensor] = {key: array.copy() for key, array in expected.items()}
    piece = found[name]
    if piece.dtype == object:
        index = data.draw(st.integers(0, len(piece) - 1))
        piece[index] = piece[index].copy()
        piece = piece[index]
    place = data.draw(st.integers(0, piece.size - 1))
    peak = max(float(np.abs(part).max()) for part in (expected[name] if expected[name].dtype == object else [piece]))
    flat = piece.reshape(-1)
    flat[place] += 1 if piece.dtype.kind == "i" else 2.0 * 1e-4 * peak * data.draw(st.sampled_from([1.0, -1.0, 50.0]))
    gates: list[Any] = []
    for key, array in expected.items():
        subject = Subject(ORIGINAL, key, is_only=False)
        gates += numeric_gates(*paired(key, array, found[key]), STRICT, subject, {})
    assert {gate.output for gate in gates if gate.verdict is Verdict.FAIL} == {name}
