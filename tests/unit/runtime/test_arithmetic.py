"""Is it the graph that drifts, or the processor's arithmetic? Told on graphs whose products saturate in pairs of 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tests.emulators import guest_or_skip

from deploykit.artifact import EXACT, RunConfig
from deploykit.runtime import processors
from deploykit.runtime.arithmetic import Place, judge_file
from deploykit.runtime.golden import ORIGINAL, Golden
from deploykit.runtime.judge import Brief
from deploykit.verdict import Budget, Judgement, Verdict

Array = NDArray[Any]
RNG = np.random.default_rng(0)
INNER, OUTER = 64, 16
RUN = RunConfig("onnxruntime", precision="f32", threads=1)
NODES = [
    make.make_node("QuantizeLinear", ["x", "x.s", "x.z"], ["x.q"]),
    make.make_node("DequantizeLinear", ["x.q", "x.s", "x.z"], ["x.d"]),
    make.make_node("DequantizeLinear", ["w", "w.s", "w.z"], ["w.d"], axis=1),
    make.make_node("MatMul", ["x.d", "w.d"], ["m"]),
    make.make_node("QuantizeLinear", ["m", "y.s", "y.z"], ["y.q"]),
    make.make_node("DequantizeLinear", ["y.q", "y.s", "y.z"], ["y"]),
]


def bright(folder: Path, least: int, most: int = 127) -> tuple[Path, Golden]:
    """Write a product of weights from `least` to `most` and rows of data from bright to less so, with its answers in float."""
    weights = RNG.integers(least, most + 1, (INNER, OUTER)).astype(np.int8)
    rows = (RNG.uniform(2.0, 2.55, (6, INNER)) * np.linspace(0.5, 1.0, 6)[:, None]).astype(np.float32)
    answers = rows @ (weights * np.float32(0.02))
    constants = {
        "w": weights,
        "x.s": np.float32(0.01),
        "x.z": np.uint8(0),
        "w.s": np.full(OUTER, 0.02, np.float32),
        "w.z": np.zeros(OUTER, np.int8),
        "y.s": np.float32(answers.max() / 255),
        "y.z": np.uint8(0),
    }
    graph = make.make_graph(
        NODES,
        "g",
        [make.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", INNER))],
        [make.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", OUTER))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9), folder / "q.onnx")
    return folder / "q.onnx", Golden({"x": rows}, {ORIGINAL: {"y": answers}})


def judged(path: Path, golden: Golden, run: RunConfig = RUN, least: float = 35.0) -> Judgement:
    return judge_file("q", path, run, Brief(golden, {"int8": Budget(sqnr_db=least)}, {"batch": 1}, precision="int8"))


def test_kernels_that_saturate_are_blamed_with_both_figures_and_the_remedy(tmp_path: Path) -> None:
    path, golden = bright(tmp_path, 90)
    found = judged(path, golden)
    here = processors.here()
    if not here.saturates:
        assert (found.verdict, found.reason) == (Verdict.PASS, "")
        return
    assert found.verdict is Verdict.FAIL
    own = judged(path, golden, RunConfig("onnxruntime", precision="f32", arithmetic=EXACT)).metrics["sqnr_db"]
    told = f"quantization {own:.1f} dB, this processor's kernels {found.metrics['sqnr_db']:.1f} dB"
    why = f"(pairs of products saturate in 16 bits on {here.name})"
    assert found.reason == f"{told} {why}: session.x64quantprecision=1 computes it as it stands"
    cured = judged(path, golden, RunConfig("onnxruntime", hints={"session.x64quantprecision": "1"}))
    assert (cured.verdict, cured.reason) == (Verdict.PASS, "")
    hopeless = judged(path, golden, least=own + 5.0)
    assert hopeless.reason == f"{told} {why}: neither passes"


def judged_on(site: str, path: Path, golden: Golden) -> Judgement:
    """Judge a file on a site, where there is one here."""
    guest = guest_or_skip(site)
    brief = Brief(golden, {"int8": Budget(sqnr_db=35.0)}, {"batch": 1}, precision="int8")
    place = Place(guest.processor, lambda path, run: guest.open(path, run, 500.0, lambda _: None))
    return judge_file("q", path, RUN, brief, place=place)


@pytest.mark.qemu
def test_what_saturates_on_avx2_is_found_on_any_machine_in_the_same_words(tmp_path: Path) -> None:
    path, golden = bright(tmp_path, 90)
    found = judged_on("avx2", path, golden)
    own = judged(path, golden, RunConfig("onnxruntime", precision="f32", arithmetic=EXACT)).metrics["sqnr_db"]
    told = f"quantization {own:.1f} dB, this processor's kernels {found.metrics['sqnr_db']:.1f} dB"
    why = "(pairs of products saturate in 16 bits on avx2): session.x64quantprecision=1 computes it as it stands"
    assert (found.verdict, found.reason) == (Verdict.FAIL, f"{told} {why}")
    if processors.here().name == "avx2":
        real = judged(path, golden)
        assert (real.reason, real.metrics) == (found.reason, found.metrics)


@pytest.mark.qemu
def test_what_saturates_on_avx2_passes_on_arm(tmp_path: Path) -> None:
    path, golden = bright(tmp_path, 90)
    found = judged_on("arm64", path, golden)
    assert (found.verdict, found.reason) == (Verdict.PASS, "")


@pytest.mark.parametrize("most", [60, 127])
def test_a_graph_that_is_wrong_itself_has_no_other_reason(most: int, tmp_path: Path) -> None:
    """Its weights become so small that no pair saturates."""
    path, golden = bright(tmp_path, most // 2, most)
    model = onnx.load(path)
    weights = next(one for one in model.graph.initializer if one.name == "w")
    weights.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(weights) // 3).astype(np.int8), "w"))
    onnx.save(model, path)
    found = judged(path, golden)
    assert (found.verdict, found.reason) == (Verdict.FAIL, "")


def test_what_passes_is_not_asked_again_and_what_was_exact_is_not_blamed(tmp_path: Path) -> None:
    path, golden = bright(tmp_path, 10, 60)
    assert (judged(path, golden).verdict, judged(path, golden).reason) == (Verdict.PASS, "")
    exact = judged(path, golden, RunConfig("onnxruntime", arithmetic=EXACT), least=90.0)
    assert (exact.verdict, exact.reason) == (Verdict.FAIL, "")
