"""Paths as people type them: why one is no file that can be read to its end."""

from __future__ import annotations

import stat
from pathlib import Path

from deploykit.errors import UsageError

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
