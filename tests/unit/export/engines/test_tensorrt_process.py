"""Engines that the real TensorRT for RTX builds in a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.unit.export.cast_support import Array, model, node
from tests.unit.export.engines.test_tensorrt_build import FOR_89, draw, image, network

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import ResourceError, UnsupportedError, UsageError
from deploykit.export.engines.tensorrt_build import BuildOptions
from deploykit.export.engines.tensorrt_process import build_apart
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX, version_of

pytestmark = pytest.mark.skipif(
    COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"
)

ROWS = BuildOptions((image(Axis("batch", 1, 8, 32)),), (89,))
ELSEWHERE = """
import hashlib, sys
from pathlib import Path
import torch
from tests.unit.export.engines.test_tensorrt_process import ROWS, RTX, build_apart
print(hashlib.sha256(build_apart(RTX, Path(sys.argv[1]), ROWS)).hexdigest())
"""


def gated(folder: Path) -> Path:
    """Write four blocks whose channels are weighed by their own means: such engines are numbered by addresses."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}

    def add(operator: str, name: str, *inputs: str) -> str:
        nodes.append(onnx.helper.make_node(operator, inputs, [name], name=name))
        return name

    def conv(name: str, data: str, outputs: int, inputs: int) -> str:
        weights[f"{name}.weight"] = draw(outputs, inputs, 1, 1)
        return add("Conv", name, data, f"{name}.weight")

    nodes.append(node("Cast", "x", "half", to=onnx.TensorProto.FLOAT16))
    data = conv("stem", "half", 16, 4)
    for index in range(4):
        wide = add("HardSwish", f"{index}.act", conv(f"{index}.expand", data, 64, 16))
        mean = add("GlobalAveragePool", f"{index}.mean", wide)
        few = add("Relu", f"{index}.relu", conv(f"{index}.reduce", mean, 16, 64))
        gate = add("HardSigmoid", f"{index}.gate", conv(f"{index}.restore", few, 64, 16))
        narrow = conv(f"{index}.project", add("Mul", f"{index}.gated", wide, gate), 16, 64)
        data = add("Add", f"{index}.add", data, narrow)
    nodes.append(node("Cast", data, "y", to=onnx.TensorProto.FLOAT))
    path = folder / "gated.onnx"
    path.write_bytes(model(nodes, weights, ("batch", 4, 8, 8)).SerializeToString(deterministic=True))
    return path


def _children() -> frozenset[int]:
    return frozenset(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()))


@pytest.fixture
def children() -> Callable[[], frozenset[int]]:
    """Return what tells the processes that this one has started since: other tests leave some that they share."""
    before = _children()
    return lambda: _children() - before


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are kept alike under Linux alone")
def test_an_engine_of_an_open_batch_is_the_same_each_time_and_wherever_it_is_built_from(tmp_path: Path) -> None:
    path = gated(tmp_path)
    first, second = (hashlib.sha256(build_apart(RTX, path, ROWS)).hexdigest() for _ in range(2))
    assert first == second
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "UNLIKE": "x" * 1000}
    words = [sys.executable, "-c", ELSEWHERE, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.stdout.strip() == first, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are kept alike under Linux alone")
def test_the_process_has_fixed_addresses_and_one_core_that_its_threads_do_not_fight_for(
    tmp_path: Path, children: Callable[[], frozenset[int]]
) -> None:
    found: set[tuple[int, int, int]] = set()

    def look(_done: int, _known: int) -> None:
        for pid in children():
            personality = int(Path(f"/proc/{pid}/personality").read_text(encoding="ascii"), 16)
            found.add((personality & 0x0040000, os.sched_getscheduler(pid), len(os.sched_getaffinity(pid))))

    build_apart(RTX, network(tmp_path), FOR_89, look)
    assert found == {(0x0040000, os.SCHED_BATCH, 1)}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "of this process nothing has changed"


def test_the_engine_and_its_progress_are_those_of_a_build_in_this_process(
    tmp_path: Path, children: Callable[[], frozenset[int]]
) -> None:
    steps: list[tuple[int, int]] = []
    plan = build_apart(RTX, network(tmp_path), FOR_89, lambda done, known: steps.append((done, known)))
    assert version_of(plan) == COMPONENTS[RTX.module].version()
    assert len(steps) > 10
    assert all(0 < done <= known for done, known in steps)
    assert not children()


def test_what_a_build_raises_is_raised_here_with_its_hints(
    tmp_path: Path, children: Callable[[], frozenset[int]]
) -> None:
    path = network(tmp_path, kind=np.float32)
    with pytest.raises(UnsupportedError, match=r"FP32 GEMM is not supported of module 'head\.fc'") as caught:
        build_apart(RTX, path, BuildOptions((image(),), (75,), {"last": "head.fc"}))
    assert [hint.action for hint in caught.value.hints] == ["--fp16", "--sm 80,86,89,120"]
    with pytest.raises(UsageError, match="not for SM 90"):
        build_apart(RTX, path, BuildOptions((image(),), (90,)))
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(UnsupportedError, match="refuses the graph"):
        build_apart(RTX, tmp_path / "no.onnx", FOR_89)
    assert not children()


def test_what_progress_raises_ends_the_process(tmp_path: Path, children: Callable[[], frozenset[int]]) -> None:
    def stop(_done: int, _known: int) -> None:
        assert children()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_apart(RTX, network(tmp_path), FOR_89, stop)
    assert not children()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, ResourceError, "was killed .SIGKILL., as systems do where memory runs out"),
        (signal.SIGSEGV, UnsupportedError, "TensorRT for RTX crashed on .*net.onnx: SIGSEGV"),
    ],
)
def test_a_process_that_ends_is_told_as_what_ended_it(
    number: int, kind: type[Exception], words: str, tmp_path: Path, children: Callable[[], frozenset[int]]
) -> None:
    def end(_done: int, _known: int) -> None:
        for pid in children():
            os.kill(pid, number)

    with pytest.raises(kind, match=words):
        build_apart(RTX, network(tmp_path), FOR_89, end)


def test_what_the_library_says_reaches_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = onnx.load(network(tmp_path))
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    (tmp_path / "counts.onnx").write_bytes(made.SerializeToString())
    build_apart(RTX, tmp_path / "counts.onnx", BuildOptions((TensorSpec("x", "int64", (1, 4, 8, 8)),), (89,)))
    assert "Int64" in capsys.readouterr().err
