"""Loaders that do what no loader may: the watcher is tested on them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from deploykit.errors import BadInputError, InternalError
from tests.fuzz.loaders import Loader
from tests.fuzz.seeds import Files

SOUND: Final = b"sound"


def _seeds() -> Sequence[Files]:
    return ({"file": SOUND},)


def _raises(error: Exception, path: Path) -> None:
    if path.read_bytes() != SOUND:
        raise error


def _loops(path: Path) -> None:
    while path.read_bytes() != SOUND:
        pass


def _takes(path: Path) -> None:
    if path.read_bytes() != SOUND:
        np.ones(9 << 28, np.uint8)


def _claims(path: Path) -> None:
    if path.read_bytes() != SOUND:
        np.empty(1 << 40, np.uint8)


def _crashes(path: Path) -> None:
    if path.read_bytes() != SOUND:
        ctypes.string_at(0)


def _damaged(*_: object) -> bytes:
    return b"damaged"


LOADERS: Final = (
    Loader("works", _seeds, Path.read_bytes, _damaged),
    Loader("refused", _seeds, lambda path: _raises(BadInputError("no"), path), _damaged),
    Loader("traceback", _seeds, lambda path: _raises(KeyError("a"), path), _damaged),
    Loader("internal", _seeds, lambda path: _raises(InternalError("ours"), path), _damaged),
    Loader("hang", _seeds, _loops, _damaged),
    Loader("memory", _seeds, _takes, _damaged),
    Loader("claims", _seeds, _claims, _damaged),
    Loader("crash", _seeds, _crashes, _damaged),
)
