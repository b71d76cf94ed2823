"""A Session across a process boundary: fair timing, untrusted files, runtimes that can't share an environment.

The child runs `main` of this module. Parent and child exchange frames over the child's stdin and stdout. What
libraries print to stdout in the child goes to stderr, of which the parent keeps the end for the message of an error. A child
ends when its stdin does, thus also when its parent was killed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, BinaryIO, Final, NoReturn, cast

import numpy as np

from deploykit import serde
from deploykit.artifact import RunConfig, TensorSpec
from deploykit.errors import (
    BadInputError,
    CrashError,
    InternalError,
    MissingComponentError,
    ResourceError,
    TimeLimitError,
    UsageError,
)
from deploykit.runtime import features
from deploykit.runtime.backends.base import Nanoseconds, Session, Tensor, backend_names, get_backend
from deploykit.runtime.child import Interpreter, claim_pipes, ending_of, start_of, was_killed
from deploykit.runtime.frames import Frame, Header, exception_of, failure_of, receive, send
from deploykit.verdict import Executed, Ran

PROTOCOL: Final = 1
CLOSE_SECONDS: Final = 5.0

_STDERR_KEPT: Final = 1 << 14
_STDERR_SHOWN: Final = 12


@dataclass(frozen=True)
class _Opened:
    """What a child's session says of itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ran: Ran
    metadata: Mapping[str, str]


# ---- the parent ------------------------------------------------------------------------------------------------------


class WorkerSession(Session):
    """A session in a process of its own. An interrupted or failed exchange ends that process."""

    def __init__(self, child: _Child, opened: _Opened) -> None:
        super().__init__(opened.inputs, opened.outputs, opened.ran)
        self._child = child
        self._metadata = opened.metadata
        self._kept = ""

    def __enter__(self) -> WorkerSession:
        return self

    @property
    def metadata(self) -> Mapping[str, str]:
        """As the session in the child has it."""
        return self._metadata

    @property
    def pid(self) -> int:
        """Id of the child's process."""
        return self._child.pid

    @property
    def overdue(self) -> str:
        """That the child was ended because its time was over; "" where it was not."""
        return self._child.overdue

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Return the layers as the session in the child tells them. Raises what that raises."""
        header, _ = self._exchange("executed", {}, self._checked(feeds))
        return serde.from_json(tuple[Executed, ...], header.get("layers"), "worker")

    def time(self, feeds: Mapping[str, Tensor], iterations: int) -> Nanoseconds:
        """Measure single inferences, one after another, within the child.

        Args:
            feeds: As for `infer`. They are sent once and kept by the child until others come.
            iterations: How many inferences, at least 1.

        Returns:
            int64 of shape (iterations,): nanoseconds of each `infer`, by the child's perf_counter, garbage collection off.

        Raises:
            UsageError: As for `infer`, or less than one iteration.
            BadInputError: The runtime crashed.
        """
        native = self._checked(feeds)
        if iterations < 1:
            raise UsageError(f"iterations must be at least 1, not {iterations}")
        mark = _fingerprint(native)
        kept, self._kept = mark == self._kept, ""
        _, arrays = self._exchange("time", {"iterations": iterations, "kept": kept}, {} if kept else native)
        self._kept = mark
        taken = arrays.get("nanoseconds")
        if taken is None or taken.shape != (iterations,) or taken.dtype != np.int64:
            raise InternalError(f"asked for {iterations} times, the worker returned {taken!r}")
        return taken

    def phases(self, feeds: Mapping[str, Tensor], iterations: int) -> dict[str, Nanoseconds]:
        """As the session in the child measures them. Raises what `time` does."""
        return self._exchange("phases", {"iterations": iterations}, self._checked(feeds))[1]

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._exchange("infer", {}, feeds)[1]

    def _exchange(self, op: str, options: Header, arrays: Mapping[str, Tensor]) -> Frame:
        try:
            return self._child.exchange(op, options, arrays)
        finally:
            if not self._child.alive:
                self._open = False

    def _close(self) -> None:
        self._child.stop()


@dataclass(frozen=True)
class Described:
    """What a worker says of where it runs.

    Attributes:
        arch: What its system calls the instruction set.
        flags: What its processor answers to have, see `deploykit.runtime.features`.
        python: Version of its interpreter.
        libraries: Version of the library behind each backend that is installed there, by the name of the backend; {} where
            that wasn't asked.
    """

    arch: str
    flags: tuple[str, ...]
    python: str
    libraries: Mapping[str, str]


def open_in_worker(
    model: str,
    config: RunConfig,
    *,
    interpreter: Interpreter | None = None,
    admit: Callable[[Described], None] | None = None,
) -> WorkerSession:
    """Open `model` in a new process.

    Args:
        model: As for `Backend.open`; a relative path is relative to the current folder.
        config: How to run it.
        interpreter: What runs the worker; None takes this one, with this process's sys.path.
        admit: Called with what the worker says of where it runs, before anything is opened; raises where that isn't right.

    Raises:
        MissingComponentError: The interpreter can't run a worker, or what `Backend.open` misses.
        TimeLimitError: The interpreter's time is over.
        CrashError: The runtime crashed on this file.
        BadInputError: What `Backend.open` finds.
        UnsupportedError: The runtime refuses the model or the precision.
    """
    child = _Child(model, interpreter or Interpreter.own())
    try:
        if admit is not None:
            admit(_described(child))
        header, _ = child.exchange("open", {"model": model, "config": serde.to_json(config)}, {})
        return WorkerSession(child, serde.from_json(_Opened, header.get("opened"), "worker"))
    except BaseException:
        child.stop()
        raise


def describe(interpreter: Interpreter) -> Described:
    """Return what a worker says of where it runs.

    Raises:
        MissingComponentError: The interpreter can't run a worker.
        TimeLimitError: The interpreter's time is over.
    """
    child = _Child(interpreter.title, interpreter)
    try:
        return _described(child, libraries=True)
    finally:
        child.stop()


def _described(child: _Child, *, libraries: bool = False) -> Described:
    header, _ = child.exchange("describe", {"libraries": libraries}, {})
    return serde.from_json(Described, header.get("described"), "worker")


class _Child:
    """The process and its pipes: one request, one reply."""

    def __init__(self, model: str, interpreter: Interpreter) -> None:
        self._model = model
        self._interpreter = interpreter
        self._stderr = b""
        self.overdue = ""
        command = [*interpreter.words, "-c", start_of(__name__)]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(interpreter.environment), start_new_session=True
            )
        except OSError as error:
            raise MissingComponentError(
                f"{command[0]} can't be started: {error.strerror}", *interpreter.remedies
            ) from error
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._clock = threading.Timer(interpreter.limit_s or 0.0, self._expire)
        self._clock.daemon = True
        try:
            if interpreter.limit_s is not None:
                self._clock.start()
            self._greet()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, op: str, options: Header, arrays: Mapping[str, Tensor]) -> Frame:
        """Ask and wait. Raises what the child raised; whatever breaks the exchange itself ends the child."""
        sink, source = self._pipes()
        try:
            send(sink, {"op": op, **options}, arrays)
            header, results = receive(source)
        except (EOFError, OSError):
            self._died()
        except BadInputError as error:
            self.kill()
            raise BadInputError(f"the worker for {self._model} sent {error.message}{self._tail()}") from error
        except BaseException:
            self.kill()
            raise
        if "failure" in header:
            raise exception_of(header["failure"], self._model)
        return header, results

    def stop(self) -> None:
        """End the child politely, after five seconds by force."""
        sink, _ = self._pipes()
        with contextlib.suppress(OSError, ValueError):
            send(sink, {"op": "close"}, {})
        with contextlib.suppress(OSError):
            sink.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the child at once and free the pipes."""
        self._clock.cancel()
        self._process.kill()
        self._process.wait()
        self._listener.join(timeout=1.0)
        # A grandchild may still hold stderr; then its reader goes on and the pipe stays open.
        ended = () if self._listener.is_alive() else (cast("IO[bytes]", self._process.stderr),)
        for pipe in (*self._pipes(), *ended):
            with contextlib.suppress(OSError):
                pipe.close()

    def _expire(self) -> None:
        """End a child whose time is over; whoever waits for it finds out that it is gone."""
        self.overdue = f"over {self._interpreter.limit_s:g} s"
        self._process.kill()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        return cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)

    def _listen(self) -> None:
        """Keep the end of what the child writes to stderr, so that it never blocks on it."""
        source = cast("BinaryIO", self._process.stderr)
        while block := os.read(source.fileno(), 1 << 12):
            self._stderr = (self._stderr + block)[-_STDERR_KEPT:]

    def _tail(self) -> str:
        lines = self._stderr.decode(errors="replace").strip().splitlines()[-_STDERR_SHOWN:]
        return "\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def _greet(self) -> None:
        title, remedies = self._interpreter.title, self._interpreter.remedies
        try:
            header, _ = receive(self._pipes()[1])
        except (EOFError, OSError, BadInputError) as error:
            self.kill()
            if self.overdue:
                raise TimeLimitError(f"{title}: {self.overdue}") from error
            raise MissingComponentError(f"{title} can't run deploykit's worker{self._tail()}", *remedies) from error
        if header.get("protocol") != PROTOCOL:
            raise MissingComponentError(
                f"deploykit of {title} speaks worker protocol {header.get('protocol')}, this one speaks {PROTOCOL}",
                *remedies,
            )

    def _died(self) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self.kill()
        code = self._process.returncode
        if self.overdue:
            raise TimeLimitError(f"{self._model}: {self.overdue}")
        if was_killed(code):
            raise ResourceError(
                f"the process that ran {self._model} was killed (SIGKILL), as systems do where memory runs out{self._tail()}"
            )
        raise CrashError(f"the runtime crashed on {self._model}: {ending_of(code)}{self._tail()}")


def _fingerprint(feeds: Mapping[str, Tensor]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name, array in feeds.items():
        state.update(f"{name} {array.dtype} {array.shape};".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


# ---- the child -------------------------------------------------------------------------------------------------------


class _Host:
    """The child's side: one session and the feeds kept for timing."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._feeds: dict[str, Tensor] = {}
        self._answers: dict[str, Callable[[Header, dict[str, Tensor]], Frame]] = {
            "describe": self._describe,
            "open": self._open,
            "executed": self._executed,
            "infer": self._infer,
            "time": self._time,
            "phases": self._phases,
            "close": self._close,
        }

    def answer(self, header: Header, arrays: dict[str, Tensor]) -> Frame:
        """Do what the frame asks for; whatever goes wrong is the answer."""
        try:
            return self._answers[header["op"]](header, arrays)
        except Exception as error:  # noqa: BLE001 - the parent raises it again
            return {"failure": failure_of(error)}, {}

    def _describe(self, header: Header, _: dict[str, Tensor]) -> Frame:
        backends = {name: get_backend(name) for name in (backend_names() if header["libraries"] else ())}
        libraries = {name: backend.component.version() for name, backend in backends.items()}
        here = Described(
            platform.machine(),
            features.answered(),
            platform.python_version(),
            {name: version for name, version in libraries.items() if version is not None},
        )
        return {"described": serde.to_json(here)}, {}

    def _executed(self, _: Header, feeds: dict[str, Tensor]) -> Frame:
        return {"layers": serde.to_json(self._opened().executed(feeds))}, {}

    def _open(self, header: Header, _: dict[str, Tensor]) -> Frame:
        config = serde.from_json(RunConfig, header["config"], "config")
        session = self._session = get_backend(config.backend).open(header["model"], config)
        opened = _Opened(session.inputs, session.outputs, session.ran, session.metadata)
        return {"opened": serde.to_json(opened)}, {}

    def _infer(self, _: Header, feeds: dict[str, Tensor]) -> Frame:
        return {}, self._opened().infer(feeds)

    def _time(self, header: Header, feeds: dict[str, Tensor]) -> Frame:
        if not header["kept"]:
            self._feeds = feeds
        return {}, {"nanoseconds": _timed(self._opened(), self._feeds, header["iterations"])}

    def _phases(self, header: Header, feeds: dict[str, Tensor]) -> Frame:
        return {}, dict(self._opened().phases(feeds, header["iterations"]))

    def _close(self, _: Header, __: dict[str, Tensor]) -> Frame:
        if self._session is not None:
            self._session.close()
        return {}, {}

    def _opened(self) -> Session:
        if self._session is None:
            raise InternalError("the worker was asked to run before it had opened a model")
        return self._session


def _timed(session: Session, feeds: Mapping[str, Tensor], iterations: int) -> Nanoseconds:
    taken = np.zeros(iterations, np.int64)
    clock = time.perf_counter_ns
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(iterations):
            start = clock()
            session.infer(feeds)
            taken[index] = clock() - start
    finally:
        if collecting:
            gc.enable()
    return taken


def _listen_to_parent(source: IO[bytes], requests: SimpleQueue[Frame]) -> None:
    """Queue the requests. A parent that is gone ends this process, even in the midst of an inference."""
    closing = False
    try:
        while not closing:
            frame = receive(source)
            closing = frame[0].get("op") == "close"
            requests.put(frame)
    finally:
        if not closing:
            os._exit(1)


def main() -> None:
    """Serve one session until the parent closes it or goes."""
    source, sink = claim_pipes()
    requests: SimpleQueue[Frame] = SimpleQueue()
    threading.Thread(target=_listen_to_parent, args=(source, requests), daemon=True).start()
    send(sink, {"protocol": PROTOCOL}, {})
    host = _Host()
    closing = False
    while not closing:
        header, arrays = requests.get()
        closing = header.get("op") == "close"
        send(sink, *host.answer(header, arrays))
