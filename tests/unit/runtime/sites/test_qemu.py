"""QEMU is found, and refused where it is too old or something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.emulators import write_program, write_qemu

from deploykit.errors import MissingComponentError
from deploykit.runtime.sites import qemu
from deploykit.runtime.sites.table import get_site

ARM = get_site("arm64").architecture


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let PATH be one folder of the test's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_qemu_the_commands_that_get_it_are_told() -> None:
    with pytest.raises(MissingComponentError, match="QEMU's qemu-aarch64 is not on PATH") as caught:
        qemu.find(ARM)
    actions = [hint.action for hint in caught.value.hints]
    assert actions[0] == "apt-get install qemu-user"
    assert actions[1].startswith("mmdebstrap ")
    assert actions[2].endswith("/usr/bin/qemu-aarch64")


@pytest.mark.parametrize("version", ["7.2.17", "8.2.2", "5.0.0"])
def test_an_old_one_is_refused(path: Path, version: str) -> None:
    write_qemu(path, "qemu-aarch64", version)
    told = ".".join(version.split(".")[:2])
    with pytest.raises(MissingComponentError, match=rf"qemu-aarch64 is QEMU {told}; 9\.0 or newer is needed") as caught:
        qemu.find(ARM)
    assert caught.value.hints


@pytest.mark.parametrize("version", ["9.0.0", "10.0.13", "11.2.0"])
def test_a_new_one_is_taken(path: Path, version: str) -> None:
    program = write_qemu(path, "qemu-aarch64", version)
    found = qemu.find(ARM)
    assert (found.path, found.version) == (program, tuple(map(int, version.split(".")[:2])))


def test_of_two_the_newer_is_taken_by_either_of_its_names(path: Path) -> None:
    write_qemu(path, "qemu-aarch64", "7.2.0")
    newer = write_qemu(path, "qemu-aarch64-static", "10.0.0")
    assert qemu.find(ARM).path == newer


@pytest.mark.parametrize("body", ["echo hello", "exit 3", 'echo "qemu-aarch64 version ten"', "echo qemu version 99.0"])
def test_what_tells_no_version_is_refused(path: Path, body: str) -> None:
    write_program(path, "qemu-aarch64", body)
    with pytest.raises(MissingComponentError, match="doesn't tell a version as QEMU does"):
        qemu.find(ARM)


def test_the_one_that_is_named_is_taken_and_no_other(path: Path, tmp_path: Path) -> None:
    write_qemu(path, "qemu-aarch64", "10.0.0")
    with pytest.raises(MissingComponentError, match=r"QEMU 7\.2"):
        qemu.find(ARM, write_qemu(tmp_path / "old", "qemu-aarch64", "7.2.0"))
    with pytest.raises(MissingComponentError, match="qemu does not exist"):
        qemu.find(ARM, tmp_path / "qemu")
    with pytest.raises(MissingComponentError, match="is a folder"):
        qemu.find(ARM, tmp_path)


def test_a_name_is_an_argument_and_never_a_command(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    program = write_qemu(tmp_path / "a", "qemu-aarch64; touch victim $(touch victim)", "10.0.0", f"touch {victim}")
    with pytest.raises(MissingComponentError):
        qemu.find(ARM, program)
    assert not victim.exists()
    assert not Path("victim").exists()


def test_what_it_would_take_for_its_own_options_is_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEMU_CPU", "max")
    monkeypatch.setenv("OTHER", "kept")
    found = qemu.environment()
    assert "QEMU_CPU" not in found
    assert found["OTHER"] == "kept"
    assert os.environ["QEMU_CPU"] == "max"
