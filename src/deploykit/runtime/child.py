"""What our child processes have in common: how they start, how they speak to their parent, and what their end says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from deploykit.errors import Hint

_KILLED = -int(getattr(signal, "SIGKILL", 9))


def start_of(module: str) -> str:
    """Return the program of a child: `main` of a module of ours.

    Not `-m`: with that, Python 3.10 lets a numpy.py in the current folder shadow numpy.
    """
    return f"import sys; sys.path[:] = filter(None, sys.path); from {module} import main; main()"


def environment() -> dict[str, str]:
    """Return the environment in which this interpreter finds modules where this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}  # noqa: PTH109


@dataclass(frozen=True)
class Interpreter:
    """What runs the Python of a child process.

    Attributes:
        title: What messages call it.
        words: The command line that starts it, before Python's own arguments.
        environment: All of the child's environment.
        remedies: What to do where it can't run our code.
        limit_s: Seconds after which the child is ended; None for no limit.
    """

    title: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    remedies: tuple[Hint, ...] = ()
    limit_s: float | None = None

    @classmethod
    def own(cls) -> Interpreter:
        """This one, with this process's sys.path."""
        return cls(sys.executable, (sys.executable,), environment())

    @classmethod
    def at(cls, python: str) -> Interpreter:
        """Another environment's, which finds its own modules."""
        return cls(python, (python,), dict(os.environ), (Hint(f"{python} -m pip install --upgrade deploykit"),))


def claim_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take stdin and stdout for frames; whoever else reads finds nothing, whoever else prints writes to stderr."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return source, sink


def was_killed(code: int) -> bool:
    """Tell from its exit code whether a child was killed by SIGKILL, as systems do where memory runs out."""
    return code == _KILLED


def ending_of(code: int) -> str:
    """Return how a child ended: "exit code 3", "SIGSEGV"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
