from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from deploykit import serde
from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import BadInputError, UnsupportedError, UsageError
from deploykit.runtime.latency import (
    LEAST_BURST,
    BenchOptions,
    Candidate,
    ceiling_gate,
    measure,
    median_interval,
    random_feeds,
    speed_gate,
)
from deploykit.runtime.load import physical_cores
from deploykit.verdict import GateKind, Ran, Ratio, Timing, Verdict

RUN = RunConfig("onnxruntime", precision="f32")
QUICK = BenchOptions(rounds=8, burst_ms=10, warmup_ms=30, threads=1)


def test_interval_of_the_median_by_the_book() -> None:
    """Ranks of the 95 % interval, as tables of the sign test give them (n: lower rank)."""
    for n, rank in {6: 1, 8: 1, 9: 2, 10: 2, 15: 4, 20: 6, 25: 8, 30: 10, 50: 18, 100: 40}.items():
        values = [float(value) for value in range(1, n + 1)]
        assert median_interval(values) == (rank, n + 1 - rank)


@pytest.mark.parametrize("n", range(6))
def test_few_values_bound_nothing(n: int) -> None:
    assert median_interval([1.0] * n) == (0.0, math.inf)


@pytest.mark.parametrize("n", [6, 20, 33])
def test_interval_covers_a_skewed_median(n: int) -> None:
    """4,000 samples of a log-normal with median 1; three standard errors of the simulation are allowed."""
    samples = np.random.default_rng(n).lognormal(size=(4000, n))
    hits = sum(lower <= 1.0 <= upper for lower, upper in map(median_interval, samples.tolist()))
    assert hits / 4000 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000)


@given(st.lists(st.floats(0.001, 1000), min_size=6, max_size=60))
def test_interval_holds_the_sample_median(values: list[float]) -> None:
    lower, upper = median_interval(values)
    assert min(values) <= lower <= float(np.median(values)) <= upper <= max(values)
    assert median_interval(values[::-1]) == (lower, upper)


def timing(speedup: Ratio | None, rounds_ms: tuple[float, ...] = (1.0,) * 20) -> Timing:
    lower, upper = median_interval(rounds_ms)
    return Timing(
        candidate="a",
        run=RUN,
        ran=Ran("onnxruntime", "1", "cpu", "f32", 1),
        batch=1,
        median_ms=float(np.median(rounds_ms)),
        median_lower_ms=lower,
        median_upper_ms=upper,
        p90_ms=1.0,
        p99_ms=1.0,
        min_ms=1.0,
        n=60,
        rounds=len(rounds_ms),
        warmup=4,
        speedup=speedup,
        measured_at="2026-01-01T00:00:00+00:00",
    )


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [(1.4, Verdict.PASS), (1.5, Verdict.INCONCLUSIVE), (2.05, Verdict.INCONCLUSIVE), (2.2, Verdict.FAIL)],
)
def test_speed_gate(bound: float, verdict: Verdict) -> None:
    result = speed_gate(timing(Ratio(1.7, 1.5, 2.0, 20)), bound)
    assert (result.kind, result.metric, result.verdict) == (GateKind.LATENCY, "speedup", verdict)
    assert (result.value, result.bound, result.n, result.reference) == (1.7, bound, 60, "a")
    assert (result.lower, result.upper) == pytest.approx((1.5 * 0.95, 2.0 * 1.05))
    assert bool(result.reason) == (verdict is Verdict.INCONCLUSIVE)


def test_speed_gate_needs_a_comparison() -> None:
    with pytest.raises(UsageError, match="a was not timed beside"):
        speed_gate(timing(None), 1.0)


@pytest.mark.parametrize(
    ("bound", "verdict"),
    [(15.8, Verdict.PASS), (15.1, Verdict.INCONCLUSIVE), (5.8, Verdict.INCONCLUSIVE), (5.6, Verdict.FAIL)],
)
def test_ceiling_gate(bound: float, verdict: Verdict) -> None:
    result = ceiling_gate(timing(None, tuple(float(ms) for ms in range(1, 21))), bound)
    assert (result.metric, result.value) == ("latency_ms", 10.5)
    assert (result.lower, result.upper) == pytest.approx((6.0 * 0.95, 15.0 * 1.05))
    assert (result.verdict, result.higher_is_better) == (verdict, False)


def test_too_few_rounds_are_inconclusive() -> None:
    result = ceiling_gate(timing(None, (1.0, 1.0, 1.0)), 100.0)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "fewer than 6 rounds bound no median" in result.reason


@pytest.mark.parametrize(
    "change", [{"rounds": 0}, {"batch": 0}, {"threads": 0}, {"burst_ms": -1.0}, {"warmup_ms": math.nan}]
)
def test_options_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(change))} must be at least"):
        BenchOptions(**change)  # type: ignore[arg-type]


def test_threads_default_to_the_cores() -> None:
    assert BenchOptions().threads == physical_cores() >= 1


def test_random_feeds() -> None:
    specs = (
        TensorSpec("x", "float16", (Axis.unbounded("batch"), 3, Axis("height", 8, 16, 32))),
        TensorSpec("i", "int64", ()),
    )
    feeds = random_feeds(specs, 4)
    assert [(array.dtype.name, array.shape) for array in feeds.values()] == [("float16", (4, 3, 16)), ("int64", ())]


def chain(folder: Path, length: int) -> str:
    """Write `length` multiplications by a 192 x 192 matrix, one after another."""
    matrix = numpy_helper.from_array(np.eye(192, dtype=np.float32), "w")
    names = ["x", *(f"h{index}" for index in range(length - 1)), "y"]
    nodes = [helper.make_node("MatMul", [one, "w"], [two]) for one, two in itertools.pairwise(names)]
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64, 192]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [matrix])
    path = folder / f"chain{length}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return str(path)


def test_ten_times_the_work_is_slower(tmp_path: Path) -> None:
    short, long = chain(tmp_path, 4), chain(tmp_path, 40)
    candidates = [Candidate("original", short, RUN), Candidate("long", long, RUN), Candidate("same", short, RUN)]
    seen: list[tuple[int, int]] = []
    base, slow, same = measure(
        candidates,
        lambda inputs: random_feeds(inputs, 1),
        QUICK,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [item.candidate for item in (base, slow, same)] == ["original", "long", "same"]
    assert base.speedup is None
    assert slow.speedup is not None
    assert slow.speedup.upper < 1
    assert slow.speedup.rounds == slow.rounds == 8
    # Whether this machine is busy is no matter here.
    assert speed_gate(replace(slow, speedup=replace(slow.speedup, doubts=None)), 1.0).verdict is Verdict.FAIL
    assert same.speedup is not None
    assert speed_gate(replace(same, speedup=replace(same.speedup, doubts=None)), 0.2).verdict is Verdict.PASS
    assert seen == [(index, 27) for index in range(1, 28)]
    for item in (base, slow, same):
        assert 0 < item.min_ms <= item.median_ms <= item.p90_ms <= item.p99_ms
        assert item.n >= 8 * LEAST_BURST
        assert item.n % 8 == 0
        assert item.warmup > LEAST_BURST
        assert (item.run.threads, item.ran.threads, item.batch) == (1, 1, 1)
        assert serde.from_json(Timing, serde.to_json(item)).candidate == item.candidate


def test_own_threads_and_batch_are_kept(tmp_path: Path) -> None:
    options = BenchOptions(rounds=1, burst_ms=0, warmup_ms=0, batch=2, threads=2)
    run = RunConfig("onnxruntime", threads=1)
    (found,) = measure(
        [Candidate("one", chain(tmp_path, 2), run)], lambda inputs: random_feeds(inputs, 2), options, baseline=None
    )
    assert (found.run.threads, found.batch, found.n, found.warmup) == (1, 2, LEAST_BURST, LEAST_BURST + 1)
    assert found.speedup is None


def test_what_a_runtime_refuses_is_left_out_only_where_that_was_asked_for(tmp_path: Path) -> None:
    model, bad = chain(tmp_path, 2), replace(RUN, precision="bf16")
    candidates = [Candidate("original", model, RUN), Candidate("bad", model, bad), Candidate("good", model, RUN)]
    options = BenchOptions(rounds=1, burst_ms=0, warmup_ms=0)
    told: list[str] = []
    found = measure(
        candidates,
        lambda inputs: random_feeds(inputs, 1),
        options,
        refused=lambda candidate, error: told.append(f"{candidate.name}: {error.message}"),
    )
    assert [timing.candidate for timing in found] == ["original", "good"]
    assert found[1].speedup is not None
    assert [timing.gpu for timing in found] == [None, None]
    assert len(told) == 1
    assert told[0].startswith("bad: ")
    with pytest.raises(UnsupportedError, match="bf16"):
        measure(candidates, lambda inputs: random_feeds(inputs, 1), options)


def test_wrong_requests(tmp_path: Path) -> None:
    model = chain(tmp_path, 2)
    one = Candidate("one", model, RUN)

    def feeds(inputs: tuple[TensorSpec, ...]) -> dict[str, np.typing.NDArray[np.float32]]:
        return random_feeds(inputs, 1)

    for candidates, baseline, words in (
        ([], None, "distinct names"),
        ([one, one], "one", "distinct names"),
        ([one], "original", "baseline 'original' is none of"),
    ):
        with pytest.raises(UsageError, match=words):
            measure(candidates, feeds, QUICK, baseline=baseline)
    with pytest.raises(UsageError, match=r"batch 4; its feeds have \[1\] rows"):
        measure([one], feeds, BenchOptions(batch=4), baseline=None)
    with pytest.raises(BadInputError, match=r"absent\.onnx is missing"):
        measure([one, Candidate("two", "absent.onnx", RUN)], feeds, QUICK, baseline="one")
