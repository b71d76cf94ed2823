"""One writer at a time: a folder is locked by a file in it, which is gone when the writer is.

The lock lies where the files lie, so that it holds whatever cache, user or container a writer has. The system gives it up when
its process ends, however that ends; the file that a killed writer leaves is taken over by the next one. Standard library
only: an engine is built into a bundle where there is nothing but its runtime.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import Hint, ResourceError, UsageError

LOCK = ".deploykit-lock"
#: How often a lock is tried that its owner removes in the very moment.
ATTEMPTS = 1000
#: What systems say where another process holds a lock.
HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK, errno.EWOULDBLOCK}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for writing; it is made where it is missing, and removed again if nothing was put into it.

    Raises:
        UsageError: It is no folder, or a part of its path is none.
        ResourceError: Another process holds it, or it can't be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        descriptor = _acquire(folder)
    except OSError as error:
        _remove_empty(made)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise UsageError(
                f"{folder} is no folder, or lies in none", Hint("--out DIR", "writes elsewhere")
            ) from error
        raise ResourceError(
            f"{folder} can't be written: {error.strerror or error}", Hint("--out DIR", "writes elsewhere")
        ) from error
    try:
        yield
    finally:
        _release(folder / LOCK, descriptor)
        _remove_empty(made)


def _acquire(folder: Path) -> int:
    """Return the descriptor that holds the lock."""
    path = folder / LOCK
    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except (FileNotFoundError, FileExistsError):  # whoever made the folder is just removing it
            if not attempts_left:
                raise
            continue
        try:
            held = _try(descriptor)
            if held and _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not held:
            break
    raise ResourceError(f"another export is writing to {folder}", Hint("--out DIR", "writes elsewhere"))


def _try(descriptor: int) -> bool:
    """Lock an open file; tell whether that went."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one of this name: its last owner removes it before giving up the lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int) -> None:
    if sys.platform == "win32":  # an open file can't be removed there; whoever opened it meanwhile keeps it
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _remove_empty(made: list[Path]) -> None:
    """Remove the folders that were made for nothing, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()
