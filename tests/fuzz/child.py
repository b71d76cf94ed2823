"""The process that loads damaged files: one request a line, one answer a line, with a limit on memory.

Run by `tests.fuzz.watch`; whatever a runtime does here, a crash or an endless loop, happens to this process alone.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.fuzz.loaders import Loader, get_loader, sets_of
from tests.fuzz.seeds import Files, written

#: Bytes that a loader may take, and those at which the system refuses more.
MOST: Final = 2 << 30
REFUSED: Final = 3 << 30
#: Exit codes of errors that say what is wrong with a file.
CLEAR: Final = frozenset({2, 5, 7, 8})
SOUND: Final = "sound"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        kind: "works", "refused", "traceback", "memory"; of a process that ended or was ended, "crash" and "hang".
        told: The error in a line.
        trace: All of it.
        spent: The process has taken so much memory that it is of no further use.
    """

    kind: str
    told: str = ""
    trace: str = ""
    spent: bool = False


def case(loader: Loader, number: str) -> Files:
    """Return the files of a case: damaged by chance of its own, or, where it is the path of a folder, those in it."""
    if "/" in number:
        root = Path(number)
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        main = next(name for files_of in sets_of(loader) for name in files_of if name in files)
        return {main: files.pop(main), **files}
    return loader.damaged(Random(f"{loader.name}:{number}"))


def attempt(loader: Loader, path: Path) -> Outcome:
    """Load one file."""
    from deploykit.errors import DeploykitError

    try:
        loader.load(path)
    except DeploykitError as error:
        told = f"{error.exit_code} {type(error).__name__}: {error.message}"[:300]
        clear = error.exit_code in CLEAR and "\nTraceback" not in error.message
        return Outcome("refused" if clear else "traceback", told, "" if clear else traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - what is looked for
        kind = "memory" if isinstance(error, MemoryError) else "traceback"
        return Outcome(kind, f"{type(error).__name__}: {error}"[:300], traceback.format_exc())
    return Outcome("works")


def _size(field: str) -> int:
    """Return a size of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _warm(loader: Loader, folder: Path) -> None:
    """Load what is sound, so that libraries are here before memory is counted."""
    for index, files in enumerate(sets_of(loader)):
        place = folder / f"{SOUND}{index}"
        outcome = attempt(loader, written(place, files))
        if outcome.kind not in {"works", "refused"}:
            raise SystemExit(f"{loader.name} can't load what is sound: {outcome.told}\n{outcome.trace}")


def serve(sink: int, loaders: Sequence[Loader]) -> None:
    """Answer requests of the form "LOADER CASE" until there are no more."""
    warmed: set[str] = set()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = 0
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            name, number = line.split(maxsplit=1)
            loader = get_loader(name, loaders)
            if name not in warmed:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
                _warm(loader, Path(scratch) / name)
                warmed.add(name)
                os.write(sink, b"{}\n")
                resource.setrlimit(resource.RLIMIT_AS, (_size("VmSize") + REFUSED, hard))
                most = _size("VmHWM") + MOST
            place = Path(scratch) / "case"
            outcome = attempt(loader, written(place, case(loader, number.strip())))
            if _size("VmHWM") > most:
                told = f"beyond {MOST >> 30} GiB; then: {outcome.told or outcome.kind}"
                outcome = Outcome("memory", told, outcome.trace, spent=True)
            shutil.rmtree(place)
            os.write(sink, json.dumps(asdict(outcome)).encode() + b"\n")


if __name__ == "__main__":
    descriptor = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print
    serve(descriptor, importlib.import_module(sys.argv[1]).LOADERS)
