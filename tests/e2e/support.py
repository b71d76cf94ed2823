"""Run the command line as a user does: in a process of its own."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from deploykit import telemetry
from tests.e2e import forking

#: Variables that nothing reads while it is imported, or that we set.
LATE = {"DEPLOYKIT_CACHE", "PYTEST_CURRENT_TEST", "PYTHONPATH", *telemetry.VARIABLES}


@dataclass(frozen=True)
class Outcome:
    """What a process left behind."""

    code: int
    out: str
    err: str


def run(*words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `deploykit WORDS` in a process that is forked from one that has the libraries: see `forking`.

    Where the environment holds what the libraries may read while they are imported, the process is a fresh one.
    """
    environment = {**os.environ, **(env or {})}
    if not hasattr(os, "fork") or _early(environment) != _early(_forking().environment):
        return fresh(*words, env=env)
    return _forking().run(words, environment)


def fresh(*words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `deploykit WORDS` in an interpreter that has imported nothing yet."""
    return python("-m", "deploykit", *words, env=env)


def python(*words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run this interpreter."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **(env or {})})
    return Outcome(done.returncode, done.stdout, done.stderr)


class _Forking:
    """The process that forks: it ends when this one does."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        words = [sys.executable, "-m", forking.__name__]
        folder = Path(__file__).parents[2]
        self._process = subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self._process.communicate)

    def run(self, words: tuple[str, ...], environment: Mapping[str, str]) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            told = {name: Path(folder, name) for name in ("out", "err")}
            for path in told.values():
                path.touch()
            files = {name: str(path) for name, path in told.items()}
            request = {"words": words, "folder": str(Path.cwd()), "environment": environment, **files}
            requests, answers = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
            print(json.dumps(request), file=requests, flush=True)
            code = int(answers.readline())
            return Outcome(code, **{name: path.read_text(encoding="utf-8") for name, path in told.items()})


@functools.cache
def _forking() -> _Forking:
    return _Forking()


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in LATE}
