"""Emulators for tests: QEMU where it is here, and programs that are called like it."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import pytest

from deploykit.errors import MissingComponentError
from deploykit.runtime.sites import qemu
from deploykit.runtime.sites.guest import Guest, guest_of
from deploykit.runtime.sites.table import get_site
from deploykit.workflow.sites import MIRROR, add

#: What a sysroot is made from.
RELEASE = f"{MIRROR}/dists/bookworm/InRelease"


def guest_or_skip(name: str) -> Guest:
    """Return a site that is ready here, or can be made so; skip where QEMU, or what makes a sysroot, is not."""
    site = get_site(name)
    try:
        qemu.find(site.architecture)
        return guest_of(site)
    except MissingComponentError as error:
        if "no Python and no libraries" not in error.message:
            pytest.skip(error.message)
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed here: no sysroot can be made")
    try:
        urllib.request.urlopen(RELEASE, timeout=10).close()
    except OSError as error:
        pytest.skip(f"{RELEASE} can't be reached: {error}")
    add(name)
    return guest_of(site)


def write_program(folder: Path, name: str, body: str) -> Path:
    """Write a shell script that can be run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def write_qemu(folder: Path, name: str, version: str = "10.0.13", body: str = 'shift 2; exec "$@"') -> Path:
    """Write a program that tells a version as QEMU does; whatever else it is asked runs `body`, else on this processor."""
    told = f'if [ "$1" = --version ]; then echo "{name} version {version} (Debian)"; exit 0; fi\n{body}'
    return write_program(folder, name, told)
