"""QEMU's user-mode emulators: where one is, and whether it is new enough."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploykit import paths
from deploykit.errors import Hint, MissingComponentError
from deploykit.runtime.sites.table import Architecture

#: Least version: 7.2 crashes as it loads ONNX Runtime's library for Arm.
LEAST: Final = (9, 0)
_SECONDS: Final = 20
#: How its programs may be called: as newer distributions call them, which are static, and as older ones call static ones.
_SUFFIXES: Final = ("", "-static")
#: Where the hint that unpacks one puts it.
_UNPACKED: Final = "$HOME/qemu"


@dataclass(frozen=True)
class Emulator:
    """A program of QEMU's."""

    path: Path
    version: tuple[int, int]


def find(architecture: Architecture, chosen: Path | None = None) -> Emulator:
    """Return the emulator of an instruction set.

    Args:
        architecture: Whose programs it is to run.
        chosen: The program, as a user named it; None looks for it on PATH.

    Raises:
        MissingComponentError: There is none, or it is too old; the hints get one.
    """
    if not sys.platform.startswith("linux"):
        raise MissingComponentError(
            f"processors are emulated by QEMU's user mode, which is for Linux, not {sys.platform}"
        )
    if chosen is not None:
        if reason := paths.fault(chosen):
            raise MissingComponentError(
                f"QEMU's {architecture.emulator} {paths.shown(chosen)} {reason}", *remedies(architecture)
            )
        return _checked(architecture, chosen)
    named = (shutil.which(architecture.emulator + suffix) for suffix in _SUFFIXES)
    found = [_version(Path(path)) for path in named if path is not None]
    if not found:
        raise MissingComponentError(
            f"QEMU's {architecture.emulator} is not on PATH (needed to emulate {architecture.name})",
            *remedies(architecture),
        )
    return _new_enough(architecture, max(found, key=lambda one: one.version))


def _checked(architecture: Architecture, path: Path) -> Emulator:
    return _new_enough(architecture, _version(path))


def _new_enough(architecture: Architecture, found: Emulator) -> Emulator:
    if found.version >= LEAST:
        return found
    if not any(found.version):
        raise MissingComponentError(
            f"{paths.shown(found.path)} doesn't tell a version as QEMU does", *remedies(architecture)
        )
    told, least = (".".join(map(str, version)) for version in (found.version, LEAST))
    raise MissingComponentError(
        f"{paths.shown(found.path)} is QEMU {told}; {least} or newer is needed: older ones crash in runtimes' kernels",
        *remedies(architecture),
    )


def _version(path: Path) -> Emulator:
    """Ask a program for its version; (0, 0) where it doesn't tell."""
    try:
        done = subprocess.run(
            [str(path.absolute()), "--version"],
            capture_output=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return Emulator(path.absolute(), (0, 0))
    found = re.search(rb"qemu-\S+ version (\d{1,4})\.(\d{1,4})", done.stdout)
    return Emulator(path.absolute(), (int(found[1]), int(found[2])) if found else (0, 0))


def environment() -> dict[str, str]:
    """Return this process's environment without what QEMU would take for its own options."""
    return {key: value for key, value in os.environ.items() if not key.startswith("QEMU_")}


def unpacking() -> tuple[str, ...]:
    """Return the words by which mmdebstrap only unpacks. Newer ones refuse root the mode that needs no rights."""
    mode = "root" if os.geteuid() == 0 else "chrootless"
    return "mmdebstrap", f"--mode={mode}", "--variant=extract"


def remedies(architecture: Architecture) -> tuple[Hint, ...]:
    """Return the commands that get an emulator."""
    program = f"{_UNPACKED}/usr/bin/{architecture.emulator}"
    return (
        Hint("apt-get install qemu-user", "Debian 13, Ubuntu 25.04 and later: static, QEMU 9 or newer"),
        Hint(
            f"{' '.join(unpacking())} --include=qemu-user trixie {_UNPACKED}",
            "elsewhere: unpacks Debian 13's, and then",
        ),
        Hint(f"deploykit site add NAME --qemu {program}", "takes it"),
    )
