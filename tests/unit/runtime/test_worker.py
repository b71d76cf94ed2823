"""The process boundary, with a backend that misbehaves, registered through the door that every plugin uses."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.bundles import write_bundle
from tests.processes import gone

from deploykit.artifact import RunConfig
from deploykit.errors import (
    CrashError,
    Hint,
    InternalError,
    MissingComponentError,
    ResourceError,
    TimeLimitError,
    UnsupportedError,
    UsageError,
)
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.child import Interpreter
from deploykit.runtime.worker import Described, WorkerSession, describe, open_in_worker

PLUGIN = '''
import ctypes, os, sys, time
import numpy as np
from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import Hint, UnsupportedError
from deploykit.optional import Component
from deploykit.runtime.backends.base import Backend, Session
from deploykit.verdict import Ran


class OwnError(UnsupportedError):
    """A class that the parent never heard of."""


def misbehave(mode):
    if mode == "print":
        print("printed in Python")
        sys.stdout.flush()
        os.write(1, b"written to fd 1")
        sys.stdin.read()
    if mode == "segv":
        print("about to crash", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    if mode == "exit":
        os._exit(3)
    if mode == "raise":
        raise ValueError("a bug in a backend")
    if mode == "refuse":
        raise OwnError("no such operator", Hint("try another", "works"))
    if mode == "memory":
        raise MemoryError
    if mode == "chatter":
        os.write(2, b"x" * 1_000_000)
    if mode == "sleep":
        time.sleep(600)


class Rogue(Session):
    def __init__(self, mode, config):
        spec = TensorSpec("input", "float32", (Axis.unbounded("batch"), 2))
        super().__init__((spec,), (TensorSpec("output", "float32", spec.shape),), Ran("rogue", "1", "cpu", "f32", None))
        self.mode = mode

    @property
    def metadata(self):
        return {"key": "text \\u2192"}

    def _infer(self, feeds):
        misbehave(self.mode)
        return {"output": feeds["input"] + 1}

    def _close(self):
        pass


class RogueBackend(Backend):
    name = "rogue"
    module = "numpy"
    suffixes = ()

    @property
    def component(self):
        return Component("numpy", "numpy", ("numpy",), "none", "test")

    def _open(self, model, config):
        moment, _, mode = model.partition(":")
        if moment == "open":
            misbehave(mode)
        return Rogue(mode, config)

    def code(self, file, config):
        return ""


BACKEND = RogueBackend()
'''

ROGUE = RunConfig("rogue")
FEEDS = {"input": np.array([[1.0, 2.0]], np.float32)}


@pytest.fixture(autouse=True)
def rogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a distribution with a backend called "rogue" for the children: they take over sys.path."""
    info = tmp_path / "rogue-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deploykit.backends]\nrogue = rogue_backend:BACKEND\n")
    (tmp_path / "rogue_backend.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def open_rogue(model: str) -> WorkerSession:
    return open_in_worker(model, ROGUE)


def test_infer_crosses_the_boundary() -> None:
    with open_rogue("infer:well") as session:
        assert session.pid != os.getpid()
        assert session.metadata == {"key": "text →"}
        assert session.ran.backend == "rogue"
        large = {"input": np.random.default_rng(0).standard_normal((300_000, 2)).astype(np.float32)}
        np.testing.assert_array_equal(session.infer(large)["output"], large["input"] + 1)
        pid = session.pid
    assert gone(pid, 0)


def test_printing_does_not_disturb_the_exchange(capfd: pytest.CaptureFixture[str]) -> None:
    with open_rogue("infer:print") as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.infer(FEEDS)["output"], [[2, 3]])
    assert capfd.readouterr().out == ""


def test_a_megabyte_on_stderr_does_not_block() -> None:
    with open_rogue("infer:chatter") as session:
        session.infer(FEEDS)


@pytest.mark.parametrize("moment", ["open", "infer"])
@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("segv", CrashError, r"(?s)crashed on .*:segv: SIGSEGV.*about to crash"),
        ("exit", CrashError, r"crashed on .*:exit: exit code 3"),
        ("raise", InternalError, r"(?s)ValueError: a bug in a backend.*rogue_backend\.py"),
        ("refuse", UnsupportedError, r"^no such operator$"),
        ("memory", ResourceError, "memory ran out"),
    ],
)
def test_what_goes_wrong_there_is_raised_here(moment: str, mode: str, kind: type[Exception], words: str) -> None:
    def use() -> None:
        with open_rogue(f"{moment}:{mode}") as session:
            session.infer(FEEDS)

    with pytest.raises(kind, match=words) as caught:
        use()
    assert type(caught.value) is kind
    if isinstance(caught.value, UnsupportedError):
        assert caught.value.hints == (Hint("try another", "works"),)


def test_a_refusal_leaves_the_session_usable() -> None:
    with open_rogue("infer:well") as session:
        with pytest.raises(UsageError, match="takes inputs"):
            session.infer({})
        with pytest.raises(UsageError, match="takes inputs"):
            session.time({}, 3)
        with pytest.raises(UsageError, match="at least 1, not 0"):
            session.time(FEEDS, 0)
        session.infer(FEEDS)
    with pytest.raises(UsageError, match="closed"):
        session.time(FEEDS, 1)


def test_killed_in_the_midst_of_an_inference() -> None:
    with open_rogue("infer:sleep") as session:
        threading.Timer(0.3, os.kill, (session.pid, signal.SIGKILL)).start()
        with pytest.raises(ResourceError, match=r"infer:sleep was killed \(SIGKILL\)"):
            session.infer(FEEDS)
        with pytest.raises(UsageError, match="closed"):
            session.infer(FEEDS)
    session.close()


# A process that opens a worker; it takes interrupts even where who runs the tests ignores them.
PARENT = """
import signal, sys, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {rogue!r})
from deploykit.artifact import RunConfig
from deploykit.runtime.worker import open_in_worker
session = open_in_worker('infer:sleep', RunConfig('rogue'))
print(session.pid, flush=True)
"""


def test_an_interrupt_ends_the_child(rogue: Path) -> None:
    program = (
        f"{PARENT.format(rogue=str(rogue))}"
        "import os, threading\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    session.infer({'input': np.zeros((1, 2), np.float32)})\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
        "session.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    child, said = done.stdout.split()
    assert (said, done.returncode) == ("interrupted", 0), done.stderr
    assert gone(int(child))


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()


def interrupt_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def let_end(process: subprocess.Popen[str]) -> None:
    pass


@pytest.mark.parametrize(("end", "call"), [(kill, "infer"), (interrupt_group, "infer"), (let_end, "close_not")])
def test_no_child_outlives_its_parent(rogue: Path, end: Callable[[subprocess.Popen[str]], None], call: str) -> None:
    program = PARENT.format(rogue=str(rogue))
    if call == "infer":
        program += "session.infer({'input': np.zeros((1, 2), np.float32)})\n"
    command = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert child != parent.pid
        time.sleep(0.3)
        end(parent)
        assert gone(child)


def test_times_are_of_single_inferences_and_feeds_are_kept() -> None:
    with open_rogue("infer:well") as session:
        for feeds in (FEEDS, FEEDS, {"input": np.ones((3, 2), np.float32)}):
            taken = session.time(feeds, 5)
            assert (taken.shape, taken.dtype.name) == ((5,), "int64")
            assert (taken > 0).all()
        with pytest.raises(UsageError):
            session.time({"input": np.ones((3, 2), np.float64)}, 1)
        assert session.time(FEEDS, 1).shape == (1,)


def test_an_interpreter_that_cannot_run_a_worker(tmp_path: Path) -> None:
    with pytest.raises(MissingComponentError, match="can't be started: No such file"):
        open_in_worker("infer:well", ROGUE, interpreter=Interpreter.at(str(tmp_path / "python")))
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho 'No module named deploykit' >&2\nexit 1\n")
    stub.chmod(0o755)
    with pytest.raises(
        MissingComponentError, match=r"(?s)can't run deploykit's worker.*No module named deploykit"
    ) as caught:
        open_in_worker("infer:well", ROGUE, interpreter=Interpreter.at(str(stub)))
    assert caught.value.hints[0].action == f"{stub} -m pip install --upgrade deploykit"


def test_the_current_folder_cannot_shadow_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with open_rogue("infer:well") as session:
        session.infer(FEEDS)


def limited(seconds: float) -> Interpreter:
    return replace(Interpreter.own(), limit_s=seconds)


def test_a_child_whose_time_is_over_in_the_midst_of_an_inference_is_ended() -> None:
    with open_in_worker("infer:sleep", ROGUE, interpreter=limited(8.0)) as session:
        with pytest.raises(TimeLimitError, match="infer:sleep: over 8 s"):
            session.infer(FEEDS)
        assert session.overdue == "over 8 s"
        assert gone(session.pid)


def test_a_child_whose_time_is_over_before_it_has_opened_anything() -> None:
    with pytest.raises(TimeLimitError, match="over 8 s"):
        open_in_worker("open:sleep", ROGUE, interpreter=limited(8.0))


def test_an_interpreter_whose_time_is_over_before_it_says_anything(tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\nexec sleep 600\n")
    stub.chmod(0o755)
    with pytest.raises(TimeLimitError, match=r"stub: over 0\.5 s"):
        open_in_worker("infer:well", ROGUE, interpreter=replace(Interpreter.at(str(stub)), limit_s=0.5))


def test_a_child_that_is_in_time_is_left_alone() -> None:
    with open_in_worker("infer:well", ROGUE, interpreter=limited(300.0)) as session:
        session.infer(FEEDS)
        assert not session.overdue


def test_a_worker_says_where_it_runs() -> None:
    found = describe(Interpreter.own())
    assert (found.arch, found.python) == (platform.machine(), platform.python_version())
    assert found.libraries["rogue"] == np.__version__
    assert "onnxruntime" in found.libraries


def test_nothing_is_opened_where_a_worker_is_not_admitted() -> None:
    seen: list[Described] = []

    def refuse(found: Described) -> None:
        seen.append(found)
        raise MissingComponentError("another processor")

    with pytest.raises(MissingComponentError, match="another processor"):
        open_in_worker("open:segv", ROGUE, admit=refuse)
    assert seen[0].arch == platform.machine()


def test_layers_are_told_as_the_session_in_the_child_tells_them() -> None:
    with open_rogue("infer:well") as session, pytest.raises(UnsupportedError, match="rogue doesn't tell"):
        session.executed(FEEDS)


def test_layers_of_a_real_runtime_cross_the_boundary(tmp_path: Path) -> None:
    path, run = str(write_bundle(tmp_path / "bundle") / "net.fp32.onnx"), RunConfig("onnxruntime", threads=1)
    with get_backend("onnxruntime").open(path, run) as own, open_in_worker(path, run) as session:
        feeds = {"input": np.ones((1, *(dim for dim in own.inputs[0].shape[1:] if isinstance(dim, int))), np.float32)}
        layers = session.executed(feeds)
        assert layers == own.executed(feeds)
    assert [layer.precision for layer in layers] == ["f32"]


def test_unknown_backend_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'nothing' is not registered"):
        open_in_worker("model.onnx", RunConfig("nothing"))
