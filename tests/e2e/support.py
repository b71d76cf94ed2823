"""Run the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a process left behind."""

    code: int
    out: str
    err: str


def run(*words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run `deploykit WORDS`."""
    return python("-m", "deploykit", *words, env=env)


def python(*words: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run this interpreter."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **(env or {})})
    return Outcome(done.returncode, done.stdout, done.stderr)
