"""Engines built by the real TensorRT for RTX, without a GPU."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.unit.export.cast_support import Array, model, node

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import UnsupportedError, UsageError
from deploykit.export.engines.tensorrt_build import BuildOptions, build, shapes_of, trtexec
from deploykit.export.engines.tensorrt_program import statements
from deploykit.export.engines.timing_cache import TimingCache
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX, library, version_of

pytestmark = pytest.mark.skipif(
    COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"
)

#: What `network` wrote once; the version that its engine for SM 89 was built with, and that engine's SHA-256.
COMMITTED = Path(__file__).parents[3] / "golden" / "tensorrt_network.onnx"
PINNED, GOLDEN = "1.7.1.116", "84f0c37ced5102f1de8df2b711abe65beefd52c8365d80e6e99316c7ea4cbca0"


def draw(*shape: int) -> Array:
    """Return exact binary fractions, the same on every machine."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 37 % 64 - 32) / 64).astype(np.float16).reshape(shape)


def network(folder: Path, batch: int | str = 1, kind: type = np.float16, extra: Sequence[onnx.NodeProto] = ()) -> Path:
    """Write Cast, Conv, Relu, pool and Gemm in half, float32 outside."""
    named = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        node("Cast", "x", "half", to=named),
        onnx.helper.make_node("Conv", ["half", "kernel", "bias"], ["conv"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        *extra,
        node("GlobalAveragePool", "relu", "pool"),
        node("Flatten", "pool", "flat"),
        onnx.helper.make_node("Gemm", ["flat", "matrix"], ["logits"], name="last"),
        node("Cast", "logits", "y", to=onnx.TensorProto.FLOAT),
    ]
    weights = {"kernel": draw(16, 4, 3, 3), "bias": draw(16), "matrix": draw(16, 5)}
    made = model(nodes, {name: array.astype(kind) for name, array in weights.items()}, (batch, 4, 8, 8))
    path = folder / "net.onnx"
    path.write_bytes(made.SerializeToString(deterministic=True))
    return path


def image(batch: int | Axis = 1) -> TensorSpec:
    return TensorSpec("x", "float32", (batch, 4, 8, 8))


FOR_89 = BuildOptions((image(),), (89,))


def test_the_same_file_gives_the_same_engine_also_in_another_process(tmp_path: Path) -> None:
    path = network(tmp_path)
    first, second = build(RTX, path, FOR_89), build(RTX, path, FOR_89)
    assert first == second
    assert version_of(first) == library(RTX).version
    program = (
        "import hashlib, sys; from pathlib import Path\n"
        "from tests.unit.export.engines.test_tensorrt_build import FOR_89, RTX, build\n"
        "print(hashlib.sha256(build(RTX, Path(sys.argv[1]), FOR_89)).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == hashlib.sha256(first).hexdigest(), done.stderr


@pytest.mark.skipif(COMPONENTS[RTX.module].version() != PINNED, reason=f"the golden hash is of tensorrt-rtx {PINNED}")
def test_the_engine_is_the_one_that_it_always_was() -> None:
    assert hashlib.sha256(build(RTX, COMMITTED, FOR_89)).hexdigest() == GOLDEN


def test_half_is_computed_in_half_for_every_gpu_that_was_named(tmp_path: Path) -> None:
    plan = build(RTX, network(tmp_path), BuildOptions((image(),), (75, 86, 89)))
    found = [one for one in statements(plan) if "first" in one.sources]
    assert {number for one in found for number in one.capabilities} == {75, 86, 89}
    assert {kind for one in found for kind in one.types} == {"f16"}


def test_float32_stays_float32(tmp_path: Path) -> None:
    found = statements(build(RTX, network(tmp_path, kind=np.float32), FOR_89))
    assert {kind for one in found for kind in one.types} == {"f32"}


def test_text_that_is_no_program_tells_nothing() -> None:
    assert statements(b"") == statements(b"\0" * 100) == ()
    assert statements(b"accelerators={sm89 }\n  corrltn={ nonsense }\n")[0].types == ()


def test_progress_is_told_and_never_beyond_what_is_known(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    build(RTX, network(tmp_path), FOR_89, lambda done, known: steps.append((done, known)))
    assert len(steps) > 10
    assert all(0 < done <= known for done, known in steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_what_progress_raises_ends_the_build_and_gets_out(tmp_path: Path) -> None:
    def stop(done: int, _known: int) -> None:
        calls.append(done)
        raise KeyboardInterrupt

    calls: list[int] = []
    path = network(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build(RTX, path, FOR_89, stop)
    assert calls == [1], "it is asked no more"
    assert build(RTX, path, FOR_89), "the next build is sound"


INTERRUPTED = """
import signal, sys
from pathlib import Path
from tests.unit.export.engines.test_tensorrt_build import FOR_89, RTX, build
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore interrupts
before = signal.getsignal(signal.SIGINT)
for step in (1, 3, 5, 9, 13):
    def interrupt(done, _known):
        if done == step:
            signal.raise_signal(signal.SIGINT)
    try:
        build(RTX, Path(sys.argv[1]), FOR_89, interrupt)
    except KeyboardInterrupt:
        print("ended")
    assert signal.getsignal(signal.SIGINT) is before
build(RTX, Path(sys.argv[1]), FOR_89)
print("sound")
"""


def test_ctrl_c_at_any_time_ends_a_build_and_is_not_lost_in_a_callback(tmp_path: Path) -> None:
    """In a process of its own: a signal is the whole process's affair."""
    words = [sys.executable, "-c", INTERRUPTED, str(network(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["ended"] * 5 + ["sound"]), done.stderr


HEARD = """
import signal, sys
from pathlib import Path
from deploykit.export.engines.tensorrt_build import refusals
from tests.unit.export.engines.test_tensorrt_build import FOR_89, RTX, build, library

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore interrupts

class Loud(list):
    def append(self, message):
        signal.raise_signal(signal.SIGINT)

before = signal.getsignal(signal.SIGINT)
quiet = list(library(RTX)._listeners)
for work in (lambda: refusals(RTX, Path(sys.argv[1])), lambda: build(RTX, Path(sys.argv[1]), FOR_89)):
    library(RTX)._listeners.append(Loud())
    try:
        work()
    except KeyboardInterrupt:
        print("ended")
    finally:
        library(RTX)._listeners[:] = quiet
    assert signal.getsignal(signal.SIGINT) is before
signal.signal(signal.SIGINT, signal.SIG_IGN)
library(RTX)._listeners.append(Loud())
refusals(RTX, Path(sys.argv[1]))
print("ignored")
"""


def test_ctrl_c_while_the_library_complains_is_not_lost(tmp_path: Path) -> None:
    """In a process of its own; where the signal is ignored, it stays so."""
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    words = [sys.executable, "-c", HEARD, str(tmp_path / "no.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["ended", "ended", "ignored"]), done.stderr


def test_a_refused_operator_is_named_with_its_module(tmp_path: Path) -> None:
    bad = onnx.helper.make_node("Det", ["relu"], ["det"], name="odd")
    options = BuildOptions((image(),), (89,), {"odd": "blocks.3.head"})
    with pytest.raises(UnsupportedError, match=r"refuses the graph: Det 'odd' of module 'blocks\.3\.head': ") as caught:
        build(RTX, network(tmp_path, extra=[bad]), options)
    assert caught.value.exit_code == 8


def test_types_that_do_not_meet_are_refused_by_name(tmp_path: Path) -> None:
    made = onnx.load(network(tmp_path))
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(draw(16, 4, 3, 3).astype(np.float32), "kernel"))
    (tmp_path / "mixed.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(UnsupportedError, match="Conv 'first'"):
        build(RTX, tmp_path / "mixed.onnx", FOR_89)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(UnsupportedError, match="refuses the graph"):
        build(RTX, tmp_path / "no.onnx", FOR_89)


def test_an_architecture_that_the_library_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"builds for SM 75, 80, 86, .*, not for SM 90"):
        build(RTX, network(tmp_path), BuildOptions((image(),), (89, 90)))


def test_float32_products_on_turing_are_refused_with_what_to_do(tmp_path: Path) -> None:
    options = BuildOptions((image(),), (75,), {"last": "head.fc"})
    with pytest.raises(UnsupportedError, match=r"FP32 GEMM is not supported of module 'head\.fc'") as caught:
        build(RTX, network(tmp_path, kind=np.float32), options)
    assert [hint.action for hint in caught.value.hints] == ["--fp16", "--sm 80,86,89,120"]


def test_an_open_axis_needs_its_bounds(tmp_path: Path) -> None:
    path = network(tmp_path, batch="batch")
    rows = Axis("batch", 1, 4, 16)
    assert shapes_of(image(rows)) == ((1, 4, 8, 8), (4, 4, 8, 8), (16, 4, 8, 8))
    ranged = build(RTX, path, BuildOptions((image(rows),), (89,)))
    assert ranged != build(RTX, path, BuildOptions((image(Axis("batch", 1, 4, 8)),), (89,)))
    with pytest.raises(UnsupportedError, match="no optimization profile") as caught:
        build(RTX, path, FOR_89)
    assert "--dynamic" in caught.value.hints[0].action


def test_an_axis_of_several_parts_is_tuned_for_in_each(tmp_path: Path) -> None:
    path = network(tmp_path, batch="batch")
    one, many = Axis("batch", 1, 1, 1), Axis("batch", 2, 8, 16)
    parts = BuildOptions((image(Axis("batch", 1, 1, 16)),), (89,), ranges={"batch": (one, many)})
    assert parts.profiles == ((image(one),), (image(many),))
    whole = BuildOptions((image(Axis("batch", 1, 1, 16)),), (89,))
    assert whole.profiles == (whole.inputs,)
    assert BuildOptions((image(),), (89,)).profiles == ()
    assert len(build(RTX, path, parts)) > len(build(RTX, path, whole))
    assert trtexec("g.onnx", "g.engine", parts).endswith(
        " --profile=0 --minShapes=x:1x4x8x8 --optShapes=x:1x4x8x8 --maxShapes=x:1x4x8x8"
        " --profile=1 --minShapes=x:2x4x8x8 --optShapes=x:8x4x8x8 --maxShapes=x:16x4x8x8"
    )
    assert "--profile" not in trtexec("g.onnx", "g.engine", whole)


def test_parts_of_two_axes_give_a_profile_for_every_choice() -> None:
    rows, wide = (Axis("batch", 1, 1, 1), Axis("batch", 2, 4, 8)), (Axis("width", 8, 8, 8), Axis("width", 9, 16, 32))
    inputs = (
        TensorSpec("x", "float32", (Axis("batch", 1, 1, 8), 3, Axis("width", 8, 8, 32))),
        TensorSpec("t", "int64", (Axis("batch", 1, 1, 8),)),
    )
    found = BuildOptions(inputs, ranges={"batch": rows, "width": wide}).profiles
    assert [(x.shape[0], x.shape[2], t.shape[0]) for x, t in found] == [(r, w, r) for r in rows for w in wide]


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_what_was_measured_is_given_to_the_next_build(tmp_path: Path) -> None:
    """RTX measures nothing, but takes and gives such a cache by the same calls."""
    path, timings = network(tmp_path), TimingCache(tmp_path / "timings" / "one")
    assert timings.read() == b""
    plan = build(RTX, path, FOR_89, timings=timings)
    kept = timings.read()
    assert kept
    assert build(RTX, path, FOR_89, timings=timings) == plan
    assert timings.read() == kept


def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    whole = build(RTX, network(tmp_path), FOR_89)
    made = onnx.load(tmp_path / "net.onnx")
    onnx.save(made, tmp_path / "apart.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    apart = build(RTX, tmp_path / "apart.onnx", FOR_89)
    assert len(apart) == len(whole)
    (tmp_path / "w.data").unlink()
    with pytest.raises(UnsupportedError, match="refuses the graph"):
        build(RTX, tmp_path / "apart.onnx", FOR_89)


def test_builds_in_several_threads_do_not_disturb_one_another(tmp_path: Path) -> None:
    path = network(tmp_path, kind=np.float32)
    found: dict[int, str] = {}

    def work(capability: int) -> None:
        try:
            found[capability] = str(len(build(RTX, path, BuildOptions((image(),), (capability,)))))
        except UnsupportedError as error:
            found[capability] = error.message

    threads = [threading.Thread(target=work, args=(capability,)) for capability in (75, 89)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "FP32 GEMM" in found[75]
    assert found[89].isdigit()
