"""A TensorRT build in a process of its own that begins alike every time, so that one graph gives one engine, byte for byte.

TensorRT for RTX numbers and orders a part of what it builds by where its own objects lie, and builds in several threads.
Here addresses are not random, threads take turns on one core and none interrupts another, and the library's memory lies apart
from Python's. A system that refuses any of that gets its engine all the same, with a numbering of its own. A crash of the
library ends that process alone, and what it held goes back to the system.

Source: personality(2), sched(7) and mallopt(3) of the Linux manual.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

import numpy as np

from deploykit import serde
from deploykit.errors import ResourceError, UnsupportedError
from deploykit.export.engines.tensorrt_build import DEVICE, BuildOptions, build
from deploykit.export.engines.timing_cache import timing_cache
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.tensorrt_library import FLAVOURS, Flavour, library
from deploykit.runtime.backends.tensorrt_record import BuildOrder, EngineRecord
from deploykit.runtime.child import claim_pipes, ending_of, environment, start_of, was_killed
from deploykit.runtime.frames import Header, exception_of, failure_of, receive, send

_ADDR_NO_RANDOMIZE: Final = 0x0040000
_AS_IT_IS: Final = 0xFFFFFFFF
_SETTLED: Final = "settled"
#: Every thread has memory of its own, so that what one takes doesn't move what another has.
_STEADY: Final = {"MALLOC_ARENA_MAX": "256", "PYTHONHASHSEED": "0"}
_COMPLAINTS: Final = 1 << 14


def build_ordered(
    graph: Path,
    order: BuildOrder,
    flavour: Flavour,
    options: BuildOptions,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[bytes, EngineRecord]:
    """Build the engine of a graph as ordered, on the GPU that is here where the order names none; see `build`."""
    version = library(flavour).version
    capabilities = options.capabilities or (cuda.gpu_at(DEVICE)[1].capability,)
    if flavour.ahead:
        plan = build_apart(flavour, graph, options, progress)
    else:
        plan = build(flavour, graph, options, progress, timing_cache(flavour, version, DEVICE))
    return plan, order.record(plan, version, capabilities)


# ---- the parent ------------------------------------------------------------------------------------------------------


def build_apart(
    flavour: Flavour, graph: Path, options: BuildOptions, progress: Callable[[int, int], None] | None = None
) -> bytes:
    """Build as `build` does, in a process of its own.

    Returns:
        The engine: under Linux the same bytes for the same file, options, machine and version of everything involved.

    Raises:
        ResourceError: The process was killed, as systems do where memory runs out.
        UnsupportedError: As `build`, or the library crashed.
    """
    asked = {"flavour": flavour.module, "graph": str(graph.absolute()), "options": serde.to_json(options)}
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", start_of(__name__)]
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=complaints, env={**environment(), **_STEADY}, start_new_session=True
        )
        with child:
            try:
                return _followed(child, asked, progress)
            except (EOFError, OSError) as error:
                raise _died(child, flavour, graph, _end_of(complaints)) from error
            finally:
                child.kill()
                sys.stderr.write(_end_of(complaints))


def _followed(child: subprocess.Popen[bytes], asked: Header, progress: Callable[[int, int], None] | None) -> bytes:
    """Ask for the engine, tell how far it is, and return it."""
    sink, source = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
    send(sink, asked, {})
    while True:
        header, arrays = receive(source)
        if "failure" in header:
            raise exception_of(header["failure"], asked["graph"])
        if "plan" in arrays:
            return arrays["plan"].tobytes()
        if progress is not None:
            progress(header["done"], header["known"])


def _died(child: subprocess.Popen[bytes], flavour: Flavour, graph: Path, said: str) -> ResourceError | UnsupportedError:
    code = child.wait()
    if was_killed(code):
        return ResourceError(
            f"the process that built an engine of {graph} was killed (SIGKILL), as systems do where memory runs out"
        )
    return UnsupportedError(f"{flavour.title} crashed on {graph}: {ending_of(code)}{said and f': {said.strip()}'}")


def _end_of(complaints: IO[bytes]) -> str:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _COMPLAINTS))
    return complaints.read().decode(errors="replace")


# ---- the child -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Build what stdin asks for."""
    if sys.platform == "linux" and sys.argv[1:] != [_SETTLED]:
        _settle()
    source, sink = claim_pipes()
    asked, _ = receive(source)
    builder = threading.Thread(target=_answer, args=(asked, sink))
    builder.start()
    builder.join()


def _settle() -> None:
    """Begin again, on one core and without random addresses; modules are compiled by now, so that no run does more."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        libc = ctypes.CDLL(None)
        libc.personality(ctypes.c_ulong(libc.personality(ctypes.c_ulong(_AS_IT_IS)) | _ADDR_NO_RANDOMIZE))
        os.execv(sys.executable, [sys.executable, "-c", start_of(__name__), _SETTLED])  # noqa: S606 - this very program


def _answer(asked: Header, sink: IO[bytes]) -> None:
    """Build and send the engine, or what was wrong. A parent that is gone ends the build with the next step."""

    def tell(done: int, known: int) -> None:
        send(sink, {"done": done, "known": known}, {})

    try:
        flavour = next(one for one in FLAVOURS if one.module == asked["flavour"])
        plan = build(flavour, Path(asked["graph"]), serde.from_json(BuildOptions, asked["options"], "worker"), tell)
        send(sink, {}, {"plan": np.frombuffer(plan, np.uint8)})
    except BrokenPipeError:
        return
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        send(sink, {"failure": failure_of(error)}, {})
