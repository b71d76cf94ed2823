"""OpenVINO: that it computes in what it is asked for, and what it lacks for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.export.cast_support import cast_model, hub, item, model, node, random

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files
from deploykit.export.cast import CastOptions
from deploykit.export.stage import Workspace
from deploykit.export.store import STAGE, StoreOptions
from deploykit.runtime.backends.openvino import BACKEND, lacking

WEIGHTS = {"kernel": random(1, 32, 8, 3, 3, scale=0.2), "fc": random(2, 32, 40, scale=0.2)}
NODES = [
    node("Conv", "x,kernel", "a", pads=[1, 1, 1, 1]),
    node("Relu", "a", "b"),
    node("GlobalAveragePool", "b", "c"),
    node("Flatten", "c", "d"),
    node("MatMul", "d,fc", "y"),
]
SHAPE = (1, 8, 8, 8)
FEED = {"x": random(3, *SHAPE)}

needs_bf16 = pytest.mark.skipif(
    bool(BACKEND.unavailable(RunConfig("openvino", precision="bf16"))),
    reason="OpenVINO offers no bfloat16 on this processor",
)


@pytest.fixture
def cast_to_bfloat16(tmp_path: Path) -> str:
    made = cast_model(model(NODES, WEIGHTS, SHAPE), tmp_path, CastOptions("bf16"))
    return str(made.path(onnx_files.MODEL))


@pytest.fixture
def int8_weights(tmp_path: Path) -> str:
    graph, folder = hub(model(NODES, WEIGHTS, SHAPE), tmp_path / "graph"), tmp_path / "stored"
    folder.mkdir()
    STAGE.run({"graph": graph}, StoreOptions("int8-weights"), Workspace(folder, lambda _done, _total: None))
    return str(item("graph", folder).path(onnx_files.MODEL))


@needs_bf16
def test_a_bfloat16_graph_is_not_passed_off_as_float32(cast_to_bfloat16: str) -> None:
    """The plugin's property says f32, and the layers run in bfloat16."""
    with pytest.raises(UnsupportedError, match=r"asked to compute .* in f32, OpenVINO chose bf16"):
        BACKEND.open(cast_to_bfloat16, RunConfig("openvino", precision="f32"))


@needs_bf16
def test_a_bfloat16_graph_is_told_as_such_where_nothing_was_asked_for(cast_to_bfloat16: str) -> None:
    with BACKEND.open(cast_to_bfloat16, RunConfig("openvino")) as session:
        assert session.ran.precision == "bf16"
        assert {layer.precision for layer in session.executed(FEED)} == {"bf16"}


@pytest.mark.parametrize("precision", ["f32", pytest.param("bf16", marks=needs_bf16)])
def test_layers_of_which_the_weights_alone_are_int8_do_not_count_as_int8(precision: str, int8_weights: str) -> None:
    """The runtime calls a product by the type of its weights, whatever it multiplies in."""
    hints = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    with BACKEND.open(int8_weights, RunConfig("openvino", precision=precision, hints=hints)) as session:
        assert session.ran.precision == precision
        layers = session.executed(FEED)
    assert {layer.precision for layer in layers} == {precision}
    assert sum(layer.macs for layer in layers) == 32 * 64 * 72 + 32 * 40


@pytest.mark.parametrize(
    ("precision", "capabilities", "words"),
    [
        ("bf16", ("FP32", "INT8", "BIN"), "can't compute in bf16 on this device, which offers BIN, FP32, INT8"),
        ("f16", ("FP32", "BF16"), "can't compute in f16 on this device, which offers BF16, FP32"),
        ("bf16", ("FP32", "BF16"), ""),
        ("f16", ("FP32", "FP16"), ""),
        ("f32", ("FP32",), ""),
        ("auto", ("FP32",), ""),
    ],
)
def test_what_a_processor_lacks(precision: str, capabilities: tuple[str, ...], words: str) -> None:
    found = lacking(precision, capabilities)
    assert (words in found) if words else (found == "")


def test_a_device_that_is_not_here_is_lacking() -> None:
    assert "OpenVINO has no device 'npu:7'; it runs on cpu and gpu" in BACKEND.unavailable(
        RunConfig("openvino", device="npu:7")
    )


SIGNALLED = """
import gc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore interrupts
from deploykit.artifact import RunConfig
from deploykit.runtime.backends.base import get_backend
backend, config = get_backend("openvino"), RunConfig("openvino", precision="f32")
first, second = (backend.open(sys.argv[1], config) for _ in range(2))
for session in (first, second):
    session.close()
del first, second, session
assert backend.unavailable(config) == ""
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("caught")
"""


def test_ctrl_c_after_sessions_have_come_and_gone_is_an_interrupt_and_no_crash() -> None:
    network = Path(__file__).parents[3] / "golden" / "tensorrt_network.onnx"
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(network)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr
