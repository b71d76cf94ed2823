"""Paths as people type them: why one is no file that can be read to its end, or none that can be written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from deploykit.errors import ResourceError, UsageError

#: Characters of a path that a message shows.
SHOWN = 200


def fault(path: Path) -> str:
    """Return why `path` is no regular file, which alone is sure to end; "" where it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link that leads nowhere" if path.is_symlink() else "does not exist"
    except NotADirectoryError:
        return "does not exist"
    except OSError as error:  # too long a name, links in a circle, no permission
        return f"can't be read: {error.strerror}"
    except ValueError as error:
        return f"can't be read: {error}"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is no regular file"


def missing(path: Path) -> str:
    """Return "is missing", or why it can't be told, of a path that some file of others names; "" where a file lies there."""
    reason = fault(path)
    return reason if not reason or reason.startswith("can't") else "is missing"


def shown(path: Path | str) -> str:
    """Return a path as messages tell it: in characters that any terminal takes, the middle of a long one left out."""
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"


def check_file(path: Path, given_as: str = "") -> None:
    """Refuse what is no regular file.

    Args:
        path: As it was typed.
        given_as: The option that it was typed for.

    Raises:
        UsageError: It is none; the message says why.
    """
    reason = fault(path)
    if reason:
        raise UsageError(f"{shown(path)} {reason}" + (f" (given as {given_as})" if given_as else ""))


def check_target(path: Path) -> None:
    """Refuse a path that no file can be written to, before anything is made that would be.

    Raises:
        ResourceError: The message says why.
    """
    reason = _unwritable(path)
    if reason:
        raise ResourceError(f"{shown(path)} can't be written: {reason}")


def _unwritable(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        # A pipe that nobody reads would keep its writer waiting for ever.
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except (FileNotFoundError, NotADirectoryError):
        parent = path.absolute().parent
        if not parent.is_dir():
            return "no such folder"
        return "" if os.access(parent, os.W_OK | os.X_OK) else f"{shown(parent)} is read-only"
    except OSError as error:
        return "nobody reads this pipe" if error.errno == errno.ENXIO else (error.strerror or str(error))
    except ValueError as error:
        return str(error)
    return ""
