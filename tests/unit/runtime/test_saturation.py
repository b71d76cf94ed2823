"""How a runtime adds products of 8 bits is found out on a network of known answers, and compared with what is on record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scripts import write_probe

from deploykit.artifact import EXACT, RunConfig
from deploykit.runtime import processors
from deploykit.runtime.backends.base import backend_names, get_backend
from deploykit.runtime.processors import CLASSES, Processor, Sums
from deploykit.runtime.saturation import (
    BRIGHT,
    CHANNELS,
    FILE,
    FULL,
    OUTPUTS,
    PATTERNS,
    Found,
    kind_of,
    probe,
    probe_backend,
)

HERE = processors.here()
RUNTIMES = [name for name in backend_names() if name in HERE.sums]
OTHERWISE = {Sums.EXACT: Sums.PAIRS, Sums.PAIRS: Sums.EXACT, Sums.UNKNOWN: Sums.UNKNOWN}


def answer(terms: int, pairs: float) -> NDArray[np.float32]:
    """Return what a layer answers where this share of the pairs is added in 16 bits."""
    exact = np.array([BRIGHT * (even + odd) for even, odd in PATTERNS])
    sums = (1 - pairs) * exact + pairs * np.clip(exact, -(2**15), 2**15 - 1)
    return np.tile(np.asarray(terms / 2 * sums, np.float32), (3, CHANNELS // len(PATTERNS)))


def test_a_network_that_crashes_its_runtime_or_is_damaged_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "products.onnx"
    file.write_bytes(FILE.read_bytes()[:500])
    for name in RUNTIMES:
        found = probe_backend(name, HERE, file)
        assert (found.found, found.contradicts, found.warning) == (None, False, "")
        assert found.text.startswith(f"{found.title}: not found out: ")
        assert found.text.endswith(f"({HERE.name})")
        assert "\n" not in found.text


def test_answers_that_are_neither_exact_nor_of_pairs_are_told(tmp_path: Path) -> None:
    model = onnx.load(FILE)
    weights = next(one for one in model.graph.initializer if one.name == "product.weights")
    codes = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(np.asarray(codes // 4, np.int8), weights.name))
    onnx.save(model, tmp_path / "products.onnx")
    found = probe_backend("onnxruntime", HERE, tmp_path / "products.onnx")
    assert found.found is None
    assert found.reason == "its product is neither the exact sum nor that of pairs"


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_that_does_otherwise_than_is_on_record_is_told(name: str) -> None:
    found = probe_backend(name, HERE)
    wrong = Processor(HERE.name, HERE.machines, HERE.flags, {name: OTHERWISE[found.found or Sums.UNKNOWN]})
    told = probe_backend(name, wrong)
    assert told.contradicts
    assert f"adds otherwise here than is on record for {HERE.name}" in told.warning
    unknown = replace(wrong, sums={name: Sums.UNKNOWN})
    assert probe_backend(name, unknown).warning == "", "nothing is on record that it could contradict"


def test_every_runtime_here_adds_as_is_on_record_for_this_class() -> None:
    """True on any machine: where the record says UNKNOWN both are right, and what is found stands in its place."""
    found = probe()
    assert [one.backend for one in found] == [
        name for name in RUNTIMES if get_backend(name).component.version() is not None
    ]
    for one in found:
        assert one.found in {Sums.EXACT, Sums.PAIRS}, one.reason
        assert one.known is HERE.sums[one.backend]
        assert not one.contradicts, one.warning
        assert one.processor == HERE.name
        assert one.text == f"{one.title}: {one.found.value} ({HERE.name})"


def test_exact_arithmetic_is_found_to_be_exact_on_every_processor() -> None:
    run = RunConfig("onnxruntime", precision="f32", threads=1, arithmetic=EXACT)
    with get_backend("onnxruntime").open(str(FILE), run) as session:
        feeds = {"rows": np.full((4, 64), BRIGHT, np.float32), "image": np.full((1, 16, 5, 5), BRIGHT, np.float32)}
        answers = session.infer(feeds)
    assert {kind_of(answers[output], terms) for output, terms in OUTPUTS.items()} == {Sums.EXACT}


@pytest.mark.parametrize("terms", OUTPUTS.values())
def test_kinds_are_told_by_every_pattern(terms: int) -> None:
    assert kind_of(answer(terms, 0.0), terms) is Sums.EXACT
    assert kind_of(answer(terms, 1.0), terms) is Sums.PAIRS
    assert kind_of(answer(terms, 0.5), terms) is Sums.PAIRS, "some kernels add some pairs in 16 bits"
    assert kind_of(2 * answer(terms, 0.0), terms) is None
    for channel in range(len(PATTERNS)):
        odd = answer(terms, 0.0)
        odd[:, channel] += (-1 if PATTERNS[channel][0] < 0 else 1) * FULL * terms / 4
        assert kind_of(odd, terms) is None


def test_one_layer_that_saturates_is_named() -> None:
    found = Found("onnxruntime", "ONNX Runtime", "avx2", Sums.PAIRS, Sums.PAIRS, "in its product alone")
    assert found.text == "ONNX Runtime: pairs saturate, in its product alone (avx2)"


def test_the_network_is_what_its_script_writes_and_any_pair_of_neighbours_saturates() -> None:
    assert onnx.load_model_from_string(write_probe.probe()) == onnx.load(FILE)
    assert {name for one in CLASSES for name in one.sums} <= set(backend_names())
    assert PATTERNS[0][0] * BRIGHT * 2 > 2**15
