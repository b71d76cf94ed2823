from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import Preprocess, RunConfig
from deploykit.errors import BadInputError, MissingComponentError, UnsupportedError, UsageError
from deploykit.runtime import judge
from deploykit.runtime.backends.base import Session, get_backend
from deploykit.runtime.batches import run_rows
from deploykit.runtime.claims import Claims
from deploykit.runtime.drift import Answers
from deploykit.runtime.golden import HUB, ORIGINAL, Golden, feeds_of
from deploykit.runtime.judge import Brief, Evaluation
from deploykit.verdict import Budget, GateKind, Judgement, Report, Verdict

RUN = RunConfig("onnxruntime", precision="f32", threads=1)
SIDE, CLASSES, ROWS, TRACED = 4, 3, 6, 2
FEATURES = 3 * SIDE * SIDE
WEIGHTS: NDArray[np.float32] = np.random.default_rng(3).standard_normal((FEATURES, CLASSES)).astype(np.float32)
INPUTS: NDArray[np.float32] = np.random.default_rng(4).standard_normal((ROWS, 3, SIDE, SIDE)).astype(np.float32)
STRICT = Budget(relative_max=1e-5, sqnr_db=90.0, cosine=0.999999, untied_flips=0)
RECIPE = Preprocess((3, SIDE, SIDE), "bicubic", 1.0, "center", (0.5,) * 3, (0.25,) * 3)

Node = Any  # onnx.NodeProto, of a library without types
Build = Callable[[list[Node], dict[str, NDArray[Any]]], None]


def reference(inputs: NDArray[Any], weights: NDArray[Any] = WEIGHTS) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (inputs.reshape(len(inputs), FEATURES).astype(np.float64) @ weights).astype(np.float32)
    return found


def save(
    path: Path,
    *,
    batch: int | str = "batch",
    weights: NDArray[np.float32] = WEIGHTS,
    output: str = "logits",
    shape: list[int | str] | None = None,
    side: int | str = SIDE,
    add: Build | None = None,
) -> str:
    """Write Flatten, MatMul and what `add` appends between "flat_logits" and `output`."""
    constants: dict[str, NDArray[Any]] = {"weights": weights}
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
    ]
    if add is None:
        nodes.append(helper.make_node("Identity", ["raw"], [output]))
    else:
        add(nodes, constants)
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape if shape is not None else [batch, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return str(path)


def plus(value: float) -> Build:
    def add(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
        constants["shift"] = np.asarray([0.0, value, 0.0], np.float32)
        nodes.append(helper.make_node("Add", ["raw", "shift"], ["logits"]))

    return add


def baked(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
    """Reshape to the size that was traced."""
    constants["shape"] = np.asarray([TRACED, CLASSES], np.int64)
    nodes.append(helper.make_node("Reshape", ["raw", "shape"], ["logits"]))


def row_numbers(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
    """Compute "number": float32 [batch, 1], the index of each row."""
    constants |= {"zero": np.asarray(0, np.int64), "one": np.asarray(1, np.int64), "axis": np.asarray([1], np.int64)}
    nodes += [
        helper.make_node("Shape", ["raw"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "axis"], ["number"]),
    ]


def last_of_eight_is_off(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
    """Shift every row from the eighth on, which no golden batch reaches."""
    row_numbers(nodes, constants)
    constants["seven"], constants["shift"] = np.asarray(7, np.float32), np.asarray(1.0, np.float32)
    nodes += [
        helper.make_node("GreaterOrEqual", ["number", "seven"], ["late"]),
        helper.make_node("Cast", ["late"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["mask", "shift"], ["offset"]),
        helper.make_node("Add", ["raw", "offset"], ["logits"]),
    ]


def rows_see_each_other(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
    """Subtract the batch mean, as a BatchNorm does that was left in training mode."""
    constants["axes"] = np.asarray([0], np.int64)
    nodes += [
        helper.make_node("ReduceMean", ["raw", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["raw", "mean"], ["logits"]),
    ]


def brief(budget: Budget = STRICT, **changes: Any) -> Brief:
    golden = Golden({"input": INPUTS}, {ORIGINAL: {"logits": reference(INPUTS)}})
    return dataclasses.replace(Brief(golden, {"f32": budget}), **changes)


def judged(model: str, what: Brief | None = None) -> Judgement:
    return judge.judge("net", RUN, lambda: get_backend("onnxruntime").open(model, RUN), what or brief())


def code(found: Judgement, *, strict: bool = False) -> int:
    return Report("net", (found,)).exit_code(strict=strict)


def gates(found: Judgement, verdict: Verdict) -> set[str]:
    return {gate.metric for gate in found.gates if gate.verdict is verdict}


@pytest.mark.parametrize("batch", [1, 4, ROWS, ROWS + 3, "batch"])
def test_a_faithful_model_passes_whatever_its_batch(tmp_path: Path, batch: int | str) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=batch))
    assert (found.verdict, found.reason, found.not_run, code(found, strict=True)) == (Verdict.PASS, "", (), 0)
    assert gates(found, Verdict.PASS) >= {"finite", "relative_max", "sqnr_db", "cosine"}
    assert found.ran is not None
    assert found.ran.device == "CPUExecutionProvider"
    told = {"relative_max_raw", "sqnr_db_raw", "sqnr_db_median", "sqnr_db_worst"}
    assert set(found.metrics) == {"relative_max", "sqnr_db", "cosine"} | told


def test_drift_from_the_hub_is_measured_beside_that_from_the_original(tmp_path: Path) -> None:
    logits = reference(INPUTS)
    golden = Golden({"input": INPUTS}, {ORIGINAL: {"logits": logits}, HUB: {"logits": logits * np.float32(2)}})
    found = judged(save(tmp_path / "m.onnx", batch=1), brief(golden=golden))
    assert {gate.reference for gate in found.gates if gate.verdict is Verdict.FAIL} == {HUB}
    spread = np.abs(2 * (logits - logits.mean(axis=0))).max()
    assert found.metrics["relative_max_from_hub"] == pytest.approx(np.abs(logits).max() / spread, abs=1e-5)
    assert found.metrics["relative_max"] < 1e-5


def test_one_changed_weight_fails_as_drift(tmp_path: Path) -> None:
    weights = WEIGHTS.copy()
    weights[5, 1] += 0.1
    found = judged(save(tmp_path / "m.onnx", weights=weights), brief(axes={"batch": TRACED}))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert gates(found, Verdict.FAIL) == {"relative_max", "sqnr_db", "cosine"}
    worst, answers = np.abs(reference(INPUTS) - reference(INPUTS, weights)).max(), reference(INPUTS)
    assert found.metrics["relative_max"] == pytest.approx(
        worst / np.abs(answers - answers.mean(axis=0)).max(), rel=1e-3
    )
    assert found.metrics["relative_max_raw"] == pytest.approx(worst / np.abs(answers).max(), rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_breaks_numbers_fails_every_gate(tmp_path: Path, value: float) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=1, add=plus(value)), brief(Budget(relative_max=1e9, sqnr_db=-1e9)))
    assert (found.verdict, code(found), gates(found, Verdict.PASS)) == (Verdict.FAIL, 3, set())
    assert gates(found, Verdict.FAIL) == {"finite", "relative_max", "sqnr_db"}


def test_what_drifts_at_every_size_is_not_called_baked(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", add=plus(np.nan)), brief(axes={"batch": TRACED}))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert {gate.verdict for gate in found.gates if gate.kind is GateKind.AXIS} == {Verdict.PASS}


def test_finite_is_gated_though_nothing_else_is(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=1, add=plus(np.nan)), brief(Budget()))
    assert (found.verdict, gates(found, Verdict.FAIL)) == (Verdict.FAIL, {"finite"})


def test_an_output_of_another_name_is_missing(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", output="scores"))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert "output 'logits' is missing; found: scores" in found.reason


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        (Golden({"pixels": INPUTS}, {ORIGINAL: {"logits": reference(INPUTS)}}), "takes inputs"),
        (Golden({"input": INPUTS.astype(np.float64)}, {ORIGINAL: {"logits": reference(INPUTS)}}), "float32"),
        (Golden({"input": INPUTS}, {ORIGINAL: {"logits": reference(INPUTS)[:-1]}}), "shapes differ"),
        (Golden({"input": INPUTS[:0]}, {ORIGINAL: {"logits": reference(INPUTS[:0])}}), ""),
        (Golden({}, {ORIGINAL: {"logits": reference(INPUTS)}}), ""),
        (Golden({"input": INPUTS}, {}), ""),
        (Golden({"input": INPUTS}, {ORIGINAL: {}}), ""),
    ],
    ids=["input name", "dtype", "rows", "no rows", "no inputs", "no references", "no outputs"],
)
def test_golden_tensors_that_prove_nothing_fail(tmp_path: Path, golden: Golden, words: str) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=1), brief(golden=golden))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert found.reason
    assert words in found.reason


def test_an_output_without_rows_fails_with_a_reason(tmp_path: Path) -> None:
    def mean(nodes: list[Node], constants: dict[str, NDArray[Any]]) -> None:
        nodes.append(helper.make_node("ReduceMean", ["raw"], ["logits"], keepdims=0))

    found = judged(save(tmp_path / "m.onnx", batch=1, shape=[], add=mean))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert found.reason


@pytest.mark.parametrize("traced", [1, TRACED, 8])
def test_a_dynamic_batch_runs_at_sizes_that_were_not_traced(tmp_path: Path, traced: int) -> None:
    found = judged(save(tmp_path / "m.onnx"), brief(axes={"batch": traced}))
    axes = {gate.metric: gate.n for gate in found.gates if gate.kind is GateKind.AXIS}
    assert axes == {f"batch={size}": size for size in (1, 3, 5, 8) if size != traced}
    assert (found.verdict, code(found)) == (Verdict.PASS, 0)


@pytest.mark.parametrize("rows", [TRACED, ROWS])
def test_a_batch_baked_into_a_reshape_is_told_by_its_axis(tmp_path: Path, rows: int) -> None:
    golden = Golden({"input": INPUTS[:rows]}, {ORIGINAL: {"logits": reference(INPUTS[:rows])}})
    found = judged(save(tmp_path / "m.onnx", add=baked), brief(golden=golden, axes={"batch": TRACED}))
    failed = [gate for gate in found.gates if gate.verdict is Verdict.FAIL]
    assert {gate.metric for gate in failed} >= {"batch=1", "batch=3", "batch=5", "batch=8"}
    assert all("axis 'batch' is baked: size " in gate.reason for gate in failed if gate.kind is GateKind.AXIS)
    assert (found.verdict, code(found)) == (Verdict.FAIL, 8)


def test_a_batch_that_was_promised_dynamic_and_is_static_is_baked(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=TRACED), brief(axes={"batch": TRACED}))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 8)
    assert gates(found, Verdict.FAIL) == {"batch=1", "batch=3", "batch=5", "batch=8"}


@pytest.mark.parametrize(
    "budget", [STRICT, Budget(relative_max=1e-5), Budget(cosine=0.999999)], ids=["all", "relative", "cosine"]
)
def test_rows_that_depend_on_the_batch_are_noticed(tmp_path: Path, budget: Budget) -> None:
    """Only size 8 shows it: the golden inputs are six, and come out right."""
    found = judged(save(tmp_path / "m.onnx", add=last_of_eight_is_off), brief(budget, axes={"batch": TRACED}))
    assert gates(found, Verdict.FAIL) == {"batch=8"}
    assert (found.verdict, code(found)) == (Verdict.FAIL, 8)
    assert "differ" in next(gate.reason for gate in found.gates if gate.verdict is Verdict.FAIL)


def test_rows_that_see_each_other_are_noticed(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", add=rows_see_each_other), brief(axes={"batch": TRACED}))
    assert gates(found, Verdict.FAIL) >= {"batch=1", "batch=3", "batch=5", "batch=8"}


def test_an_axis_that_no_golden_input_can_vary_is_on_record_as_not_run(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", side="side"))
    assert found.not_run == ("axis 'side': there are no golden inputs of other sizes",)
    assert (code(found), code(found, strict=True)) == (0, 6)


def test_a_missing_component_is_not_run_with_its_reason() -> None:
    def absent() -> Session:
        raise MissingComponentError("OpenVINO is not installed here")

    found = judge.judge("net", RUN, absent, brief())
    assert (found.verdict, found.ran, found.gates) == (Verdict.NOT_RUN, None, ())
    assert found.reason == "OpenVINO is not installed here"
    assert (code(found), code(found, strict=True)) == (0, 6)


def test_a_broken_file_is_bad_input_and_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a garbage")
    with pytest.raises(BadInputError, match=r"m\.onnx"):
        judged(str(tmp_path / "m.onnx"))


def test_an_empty_budget_never_passes(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx")
    found = judged(model, brief(Budget()))
    assert (found.verdict, code(found)) == (Verdict.INCONCLUSIVE, 6)
    assert found.reason == "nothing bounds its drift: the budget for f32 is empty"
    assert judged(save(tmp_path / "n.onnx", weights=WEIGHTS * np.nan), brief(Budget())).verdict is Verdict.FAIL


def test_what_a_file_says_of_itself_is_compared(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"deploykit.labels": '["a", "c"]', "deploykit.precision": "int8"})
    onnx.save(model, path)
    assert judged(path).verdict is Verdict.PASS
    found = judged(path, brief(claims=Claims("its manifest", ("a", "b"))))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert found.reason == "class 1 is 'c' in the file, 'b' in its manifest"
    found = judged(path, brief(claims=Claims(faults=("it is something else",))))
    assert (code(found), found.reason) == (3, "it is something else")


def test_a_precision_without_a_budget_is_unsupported(tmp_path: Path) -> None:
    what = brief(budgets={"bf16": STRICT, "f16": STRICT})
    with pytest.raises(UnsupportedError, match="no budget for f32; there are: bf16, f16"):
        judged(save(tmp_path / "m.onnx"), what)


def test_the_session_is_closed_whatever_came_out(tmp_path: Path) -> None:
    opened: list[Session] = []

    def keep(model: str) -> Session:
        opened.append(get_backend("onnxruntime").open(model, RUN))
        return opened[-1]

    good, bad = save(tmp_path / "g.onnx"), save(tmp_path / "b.onnx", output="scores")
    judge.judge("net", RUN, lambda: keep(good), brief())
    judge.judge("net", RUN, lambda: keep(bad), brief())
    with pytest.raises(UnsupportedError):
        judge.judge("net", RUN, lambda: keep(good), brief(budgets={}))
    for session in opened:
        with pytest.raises(UsageError, match="closed"):
            session.infer({"input": INPUTS})
    assert len(opened) == 3


TASK = Budget(sqnr_db=90.0, untied_flips=0, agreement=0.9, accuracy_drop=0.1)


def evaluation(count: int, *, flips: int = 0) -> Evaluation:
    """Return crops whose answers are the linear model's own, but for the first `flips`."""
    crops = np.random.default_rng(5).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    logits = reference(((crops / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2))
    logits[:flips] = np.roll(logits[:flips], 1, axis=1)
    return Evaluation(crops, Answers.of(logits, logits.argmax(axis=1)), RECIPE)


@pytest.mark.parametrize("batch", [7, "batch"])
@pytest.mark.parametrize(
    ("count", "flips", "verdict", "exit_code"),
    [(200, 0, Verdict.PASS, 0), (20, 0, Verdict.INCONCLUSIVE, 6), (200, 100, Verdict.FAIL, 3), (0, 0, Verdict.FAIL, 3)],
)
def test_labelled_images_decide(
    tmp_path: Path, batch: int | str, count: int, flips: int, verdict: Verdict, exit_code: int
) -> None:
    found = judged(save(tmp_path / "m.onnx", batch=batch), brief(TASK, evaluation=evaluation(count, flips=flips)))
    assert (found.verdict, code(found)) == (verdict, exit_code)
    assert found.metrics.get("flips", 0) == flips
    if count:
        assert found.metrics["agreement"] == pytest.approx(1 - flips / count)
        assert found.metrics["top1"] == pytest.approx(1 - flips / count)
        assert found.metrics["top1_reference"] == 1.0


def test_no_images_fail_though_no_budget_asks_for_them(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx"), brief(Budget(sqnr_db=90.0), evaluation=evaluation(0)))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)


def test_answers_to_other_images_fail(tmp_path: Path) -> None:
    mixed = dataclasses.replace(evaluation(30), answers=evaluation(29).answers)
    found = judged(save(tmp_path / "m.onnx"), brief(TASK, evaluation=mixed))
    assert (found.verdict, code(found)) == (Verdict.FAIL, 3)
    assert "logits must be [29, classes]" in found.reason


def test_images_that_could_not_be_had_are_on_record(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx"), brief(without_evaluation="Pillow is not installed here"))
    assert found.not_run == ("task gates: Pillow is not installed here",)
    assert (found.verdict, code(found), code(found, strict=True)) == (Verdict.PASS, 0, 6)


def test_answers_that_never_differ_prove_nothing(tmp_path: Path) -> None:
    weights = np.zeros_like(WEIGHTS)
    model = save(tmp_path / "m.onnx", weights=weights)
    alike = {"logits": reference(INPUTS, weights)}
    found = judged(model, Brief(Golden({"input": INPUTS}, {ORIGINAL: alike}), {"f32": STRICT}))
    assert (found.verdict, code(found)) == (Verdict.INCONCLUSIVE, 6)
    assert "answers all 6 golden inputs alike" in found.reason
    assert "--golden" in found.reason
    one = {"logits": alike["logits"][:1]}
    single = judged(model, Brief(Golden({"input": INPUTS[:1]}, {ORIGINAL: one}), {"f32": STRICT}))
    assert single.verdict is Verdict.PASS
    wrong = judged(save(tmp_path / "w.onnx"), Brief(Golden({"input": INPUTS}, {ORIGINAL: alike}), {"f32": STRICT}))
    assert wrong.verdict is Verdict.FAIL


def test_progress_counts_images_up_to_all(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = save(tmp_path / "m.onnx")
    what = brief(TASK, evaluation=evaluation(40))
    judge.judge("net", RUN, lambda: get_backend("onnxruntime").open(model, RUN), what, lambda *step: seen.append(step))
    assert seen == [(16, 40), (32, 40), (40, 40)]


@pytest.mark.parametrize("batch", [1, 2, 5, 9, "batch"])
def test_rows_come_back_in_order_without_the_padding(tmp_path: Path, batch: int | str) -> None:
    with get_backend("onnxruntime").open(save(tmp_path / "m.onnx", batch=batch), RUN) as session:
        for rows in (1, 2, 4, 5, 6):
            found = run_rows(session, {"input": INPUTS[:rows]}, chunk=4)["logits"]
            assert found.shape == (rows, CLASSES)
            np.testing.assert_allclose(found, reference(INPUTS[:rows]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "asked", "expected"), [(4, 1, 4), ("batch", 1, 1), ("batch", 9, 9)])
def test_feeds_have_the_batch_that_the_file_takes(tmp_path: Path, batch: int | str, asked: int, expected: int) -> None:
    golden = brief().golden
    with get_backend("onnxruntime").open(save(tmp_path / "m.onnx", batch=batch), RUN) as session:
        feed = feeds_of(session.inputs, golden, asked)["input"]
    assert feed.shape == (expected, 3, SIDE, SIDE)
    assert np.array_equal(feed, INPUTS[np.arange(expected) % ROWS])
