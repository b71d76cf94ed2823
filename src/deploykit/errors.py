"""The tree of errors, each with the exit code that the command line ends with.

    DeploykitError
    ├── InternalError        1   our bug: a stage broke its own contract
    ├── UsageError           2   the request itself makes no sense
    ├── MissingComponentError     5   a library or device asked for is not here
    ├── ResourceError        5   no disk, no memory, a lock that another process holds
    │   └── TimeLimitError   5   the time that was given is over
    ├── BadInputError        7   corrupt, unsafe or tampered files
    │   └── CrashError       7   a runtime crashed on a file
    └── UnsupportedError     8   this target can't express this model
        └── BakedAxisError   8   an axis declared dynamic works at the traced size only

Failed and inconclusive gates are not errors: they are verdicts (see `deploykit.verdict`) with exit codes of their own.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar

#: Characters of a file's name that a message shows.
MOST_NAMED = 200


@dataclass(frozen=True)
class Hint:
    """One thing to do next: what to type, and what that brings."""

    action: str
    effect: str = ""


class DeploykitError(Exception):
    """Base of every error that deploykit raises on purpose.

    Args:
        message: What happened, with the value that made it happen.
        hints: What to do next, most useful first.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *hints: Hint) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints


class InternalError(DeploykitError):
    """A stage or session broke its own contract: a bug of deploykit."""

    exit_code = 1


class UsageError(DeploykitError):
    """The request contradicts itself or names something that does not exist."""

    exit_code = 2


class MissingComponentError(DeploykitError):
    """A library or device that was asked for is not on this machine."""

    exit_code = 5


class ResourceError(DeploykitError):
    """The machine lacks a resource: disk space, memory, or a lock held by another process."""

    exit_code = 5


class TimeLimitError(ResourceError):
    """The time that was given for something is over."""


class BadInputError(DeploykitError):
    """A file is corrupt, unsafe, tampered with, or newer than this version reads."""

    exit_code = 7


class CrashError(BadInputError):
    """A runtime crashed on a file: its process is gone."""


class UnsupportedError(DeploykitError):
    """The target can't express this model as asked.

    Attributes:
        node: Id of the node of a plan that refused; "" outside a plan.
    """

    exit_code = 8
    node: str = ""


class BakedAxisError(UnsupportedError):
    """An axis that was declared dynamic works at the traced size only."""


#: What a name that can't be a file's, or stands for another kind of thing, makes the system say.
_MISNAMED = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EINVAL,
        errno.ENXIO,
    }
)


def of_os_error(error: OSError) -> DeploykitError:
    """Return what the system refuses as an error of ours: a wrong name is a usage error, all else a lack of the machine's."""
    names = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    shown = names if len(names) <= MOST_NAMED else f"{names[: MOST_NAMED // 2]}…{names[-MOST_NAMED // 2 :]}"
    words = error.strerror or str(error) or type(error).__name__
    kind = UsageError if error.errno in _MISNAMED else ResourceError
    return kind(f"{shown}: {words}" if shown else words)


#: The order in which one exit code wins where several apply.
EXIT_PRECEDENCE = (7, 8, 5, 3, 4, 6)


def worst_exit_code(codes: list[int]) -> int:
    """Return the code that wins among `codes` (0 when there is none)."""
    for code in EXIT_PRECEDENCE:
        if code in codes:
            return code
    return max(codes, default=0)
