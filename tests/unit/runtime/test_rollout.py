"""What becomes of a network's own outputs, and inputs of other sizes: stored, read back, replayed and gated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.artifact import RunConfig
from deploykit.bundle import save_tensors
from deploykit.errors import BadInputError
from deploykit.runtime import judge
from deploykit.runtime.backends.base import Tensors, get_backend
from deploykit.runtime.golden import ORIGINAL, Golden
from deploykit.runtime.judge import Brief
from deploykit.runtime.rollout import Rollout, Sized, load_sized, save_sized
from deploykit.verdict import Budget, Judgement, Report, Verdict

RUN = RunConfig("onnxruntime", precision="f32", threads=1)
ROWS, STEPS, CHANNELS, SIDE = 3, 4, 2, 4
BUDGET = Budget(sqnr_db=60.0, latent_psnr_db=60.0)
#: a, b and c of each step; the last one adds no noise.
COEFFICIENTS = np.asarray([[0.9, -0.8, 0.4], [0.8, 0.5, 0.3], [1.1, -0.6, 0.2], [0.7, 0.9, 0.0]])
RANDOM = np.random.default_rng(11)
NOISE: NDArray[np.float32] = RANDOM.standard_normal((STEPS, ROWS, CHANNELS, SIDE, SIDE)).astype(np.float32)
START: NDArray[np.float32] = RANDOM.standard_normal((ROWS, CHANNELS, SIDE, SIDE)).astype(np.float32)
TIMES = (9, 7, 4, 2)


def network(sample: NDArray[Any], timestep: NDArray[Any]) -> NDArray[np.float32]:
    """tanh(sample) + timestep / 10, float32."""
    added = (timestep.astype(np.float32) * np.float32(0.1)).reshape(-1, 1, 1, 1)
    made: NDArray[np.float32] = (np.tanh(sample) + added).astype(np.float32)
    return made


def recorded() -> Golden:
    """What `network` is given on the way, what it answers, and where that leads."""
    sample, given, answers = START, [], []
    for (of_sample, of_answer, of_noise), noise, time in zip(COEFFICIENTS, NOISE, TIMES, strict=True):
        given.append((sample, np.full(ROWS, time, np.int64)))
        answers.append(network(*given[-1]))
        sample = (of_sample * sample + of_answer * answers[-1] + of_noise * noise).astype(np.float32)
    inputs = {
        "sample": np.concatenate([one for one, _ in given]),
        "timestep": np.concatenate([one for _, one in given]),
    }
    return Golden(
        inputs,
        {ORIGINAL: {"out": np.concatenate(answers)}},
        tuple(sized("height", size) for size in (2, 6)),
        Rollout("sample", COEFFICIENTS, NOISE, sample),
    )


def sized(axis: str, size: int) -> Sized:
    sample = np.random.default_rng(size).standard_normal((2, CHANNELS, size, SIDE)).astype(np.float32)
    times = np.asarray([9, 2], np.int64)
    return Sized(axis, size, {"sample": sample, "timestep": times}, {"out": network(sample, times)})


def save(path: Path, *, height: int | str = "height", after: int | None = None, late: float = 0.0) -> str:
    """Write `network`: `after` bakes a height into a Reshape, `late` is added where the time step is 4 or less."""
    constants = {
        "tenth": np.asarray(0.1, np.float32),
        "axes": np.asarray([1, 2, 3], np.int64),
        "four": np.asarray(4, np.int64),
        "late": np.asarray(late, np.float32),
        "shape": np.asarray([-1, CHANNELS, after or SIDE, SIDE], np.int64),
    }
    nodes = [
        helper.make_node("Tanh", ["sample"], ["bent"]),
        helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["time", "tenth"], ["small"]),
        helper.make_node("LessOrEqual", ["timestep", "four"], ["is_late"]),
        helper.make_node("Cast", ["is_late"], ["lateness"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["lateness", "late"], ["error"]),
        helper.make_node("Add", ["small", "error"], ["sum"]),
        helper.make_node("Unsqueeze", ["sum", "axes"], ["wide"]),
        helper.make_node("Add", ["bent", "wide"], ["whole" if after else "out"]),
    ]
    nodes += [helper.make_node("Reshape", ["whole", "shape"], ["out"])] if after else []
    shape = ["batch", CHANNELS, height, SIDE]
    graph = helper.make_graph(
        nodes,
        "steps",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return str(path)


def judged(model: str, golden: Golden | None = None, budget: Budget = BUDGET) -> Judgement:
    brief = Brief(golden or recorded(), {"f32": budget}, {"batch": 2, "height": SIDE})
    return judge.judge("net", RUN, lambda: get_backend("onnxruntime").open(model, RUN), brief)


def failed(found: Judgement) -> set[str]:
    return {gate.metric for gate in found.gates if gate.verdict is Verdict.FAIL}


def test_shapes_that_do_not_fit_are_bad_input() -> None:
    latents = np.zeros((ROWS, CHANNELS, SIDE, SIDE), np.float32)
    for coefficients, noise in ((COEFFICIENTS[:2], NOISE), (COEFFICIENTS[:, :2], NOISE), (COEFFICIENTS, NOISE[:, :1])):
        with pytest.raises(BadInputError, match="don't fit one another"):
            Rollout("sample", coefficients, noise, latents)
    with pytest.raises(BadInputError, match="don't fit one another"):
        Rollout("sample", COEFFICIENTS[:0], NOISE[:0], latents)


@pytest.mark.parametrize("names", [(), ("sample/noise",), ("other",)])
def test_a_file_without_its_arrays_is_no_rollout(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_tensors(tmp_path / "r.npz", {name: np.zeros(2, np.float32) for name in names})
    with pytest.raises(BadInputError, match="is no rollout: it has no array"):
        Rollout.load(tmp_path / "r.npz")


@pytest.mark.parametrize(
    "key", ["height", "height=x/inputs/a", "height=8/elsewhere/a", "height=8/inputs/", "=8/inputs/a"]
)
def test_a_file_of_other_arrays_holds_no_sizes(tmp_path: Path, key: str) -> None:
    save_tensors(tmp_path / "s.npz", {key: np.zeros(2, np.float32)})
    with pytest.raises(BadInputError, match="holds no inputs of other sizes"):
        load_sized(tmp_path / "s.npz")


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    golden = recorded()
    assert golden.rollout is not None
    golden.rollout.save(tmp_path / "r.npz")
    found = Rollout.load(tmp_path / "r.npz")
    assert found.carried == "sample"
    for name in ("coefficients", "noise", "latents"):
        np.testing.assert_array_equal(getattr(found, name), getattr(golden.rollout, name))
        assert getattr(found, name).dtype == getattr(golden.rollout, name).dtype
    save_sized(tmp_path / "s.npz", golden.sized)
    again = load_sized(tmp_path / "s.npz")
    assert [(one.axis, one.size) for one in again] == [("height", 2), ("height", 6)]
    for one, before in zip(again, golden.sized, strict=True):
        for mine, theirs in ((one.inputs, before.inputs), (one.outputs, before.outputs)):
            assert list(mine) == list(theirs)
            for name, array in mine.items():
                np.testing.assert_array_equal(array, theirs[name])


@given(
    hnp.arrays(np.float64, (3, 3), elements=st.floats(-2, 2)),
    hnp.arrays(np.float32, (3, 2, 2), elements=st.floats(-1, 1, width=32)),
)
def test_a_rollout_is_its_recurrence(coefficients: NDArray[np.float64], noise: NDArray[np.float32]) -> None:
    start = np.asarray([[1.0, -1.0], [0.5, 2.0]], np.float32)
    inputs = {"x": np.concatenate([start, np.full((4, 2), np.nan, np.float32)]), "k": np.repeat(np.arange(3), 2)}
    asked: list[int] = []

    def ask(feeds: Tensors) -> NDArray[Any]:
        asked.append(int(feeds["k"][0]))
        assert set(feeds["k"]) == {asked[-1]}, "the other inputs are those of the step"
        return feeds["x"] + np.float32(1)

    found = Rollout("x", coefficients, noise, start).play(ask, inputs)
    expected = start.astype(np.float64)
    for (of_x, of_answer, of_noise), fresh in zip(coefficients, noise, strict=True):
        expected = of_x * expected + of_answer * (expected + 1) + of_noise * fresh
    assert asked == [0, 1, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_faithful_network_passes_alone_and_along_its_own_way(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx"))
    assert (found.verdict, found.reason, found.not_run) == (Verdict.PASS, "", ())
    metrics = [gate.metric for gate in found.gates]
    assert metrics.count("step_sqnr_db") == metrics.count("latent_psnr_db") == 1
    assert {"height=2", "height=6"} <= set(metrics)
    assert {f"sqnr_db_step_{step}" for step in range(1, STEPS + 1)} <= set(found.metrics)
    by_metric = {gate.metric: gate for gate in found.gates}
    assert (by_metric["step_sqnr_db"].n, by_metric["latent_psnr_db"].n) == (ROWS * STEPS, ROWS)


def test_one_bad_step_fails_though_all_steps_together_pass(tmp_path: Path) -> None:
    golden = recorded()
    loose = dataclasses.replace(BUDGET, sqnr_db=50.0, latent_psnr_db=None)
    found = judged(save(tmp_path / "m.onnx", late=2e-3), golden, loose)
    assert found.metrics["sqnr_db"] >= 50.0 > found.metrics["sqnr_db_step_4"]
    assert found.metrics["sqnr_db_step_1"] > 100.0
    assert "step_sqnr_db" in failed(found)
    assert Report("net", (found,)).exit_code(strict=True) == 3


def test_an_error_that_adds_up_fails_by_its_latents(tmp_path: Path) -> None:
    loose = dataclasses.replace(BUDGET, sqnr_db=20.0)
    found = judged(save(tmp_path / "m.onnx", late=0.02), None, loose)
    assert failed(found) == {"latent_psnr_db"}
    assert Report("net", (found,)).exit_code(strict=True) == 3


def test_a_latent_that_is_no_number_fails(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", late=float("nan")))
    assert {"finite", "step_sqnr_db", "latent_psnr_db"} <= failed(found)


def test_a_baked_height_is_called_by_its_name(tmp_path: Path) -> None:
    found = judged(save(tmp_path / "m.onnx", after=SIDE))
    assert {"height=2", "height=6"} <= failed(found)
    reasons = [gate.reason for gate in found.gates if gate.metric == "height=6"]
    assert "height" in reasons[0]
    assert Report("net", (found,)).exit_code(strict=True) == 8


def test_other_outputs_at_another_size_fail(tmp_path: Path) -> None:
    golden = recorded()
    wrong = dataclasses.replace(golden.sized[0], outputs={"out": golden.sized[0].outputs["out"] + np.float32(0.1)})
    found = judged(save(tmp_path / "m.onnx"), dataclasses.replace(golden, sized=(wrong,)))
    (gate,) = [gate for gate in found.gates if gate.metric == "height=2"]
    assert (gate.verdict, gate.reference, gate.n) == (Verdict.FAIL, "original", 2)
    assert "at size 2 of axis 'height' the outputs are not the original's" in gate.reason


def test_a_static_batch_that_does_not_divide_the_rows_is_filled_up(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", height=SIDE)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    brief = Brief(dataclasses.replace(recorded(), sized=()), {"f32": BUDGET})
    found = judge.judge("net", RUN, lambda: get_backend("onnxruntime").open(path, RUN), brief)
    assert (found.verdict, found.reason) == (Verdict.PASS, "")
