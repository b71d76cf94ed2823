"""The standard streams as commands may rely on them: open, never failing on a character or on a reader that has gone."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO, cast

from deploykit.errors import ResourceError

#: What the descriptors of the standard streams are opened for, where nobody has.
_OPENED_FOR = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_WRONLY}


def prepare() -> None:
    """Make the standard streams safe to write to.

    A descriptor that was closed is opened on nothing: else the next file to be opened would take its number, and be written
    to by whoever prints.
    """
    for number, purpose in _OPENED_FOR.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, purpose)
    sys.stdout, sys.stderr = _lenient(sys.stdout, 1), _lenient(sys.stderr, 2)


def _lenient(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that writes what its encoding lacks as escapes, and lives on where nobody reads it."""
    if stream is None:  # the interpreter found the descriptor closed
        stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - of a descriptor, for good
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return cast("TextIO", Lenient(stream))


class Lenient:
    """A text stream that swallows everything once its reader has gone: a command ends with its own exit code.

    Args:
        stream: What is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            ResourceError: The disk behind it is full, or fails.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written. Raises what `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """Write to nothing from now on, also what is buffered and what the interpreter flushes at its end."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)
        if error.errno not in {errno.EPIPE, errno.ESHUTDOWN, errno.ECONNRESET}:
            raise ResourceError(f"the output can't be written: {error.strerror or error}") from error
