"""Sites are put into place whole, or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.emulators import write_program, write_qemu
from tests.processes import gone

from deploykit.errors import MissingComponentError, ResourceError, UsageError
from deploykit.runtime.sites import guest
from deploykit.runtime.sites.guest import RECORD, guest_of
from deploykit.runtime.sites.table import SITES
from deploykit.workflow.sites import AddOptions, add, remove, states

OWN = next(site for site in SITES if site.architecture.is_own)
FOREIGN = next(site for site in SITES if not site.architecture.is_own)
#: What is called like mmdebstrap, and makes a root with a Python. Its last words are suite, root and mirror.
UNPACK = 'for word; do root=$last; last=$word; done; mkdir -p "$root/usr/bin"; echo > "$root/usr/bin/python3.11"'


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let PATH have emulators and nothing else of a distribution's; an emulator asked for a version of Python answers."""
    folder = tmp_path / "bin"
    for site in SITES:
        write_qemu(folder, site.architecture.emulator, body="""echo '[3, 11, "glibc 2.36"]'""")
    for name in ("sh", "mkdir", "sleep", "cat", "touch"):
        (folder / name).symlink_to(
            next(path for path in (Path("/bin") / name, Path("/usr/bin") / name) if path.exists())
        )
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return folder


def left(tmp_path: Path) -> list[str]:
    """Return what lies in the folder of sites, but for code of ours that guests share."""
    folder = tmp_path / "cache/sites"
    return sorted(path.name for path in folder.iterdir() if path.name != "code") if folder.is_dir() else []


def test_which_are_ready_and_why_the_others_are_not(programs: Path) -> None:
    found = {state.site.name: state for state in states()}
    assert list(found) == [site.name for site in SITES]
    for state in found.values():
        assert (state.guest is None) != (state.error is None)
        assert (state.guest is not None) == state.site.architecture.is_own
    (programs / OWN.architecture.emulator).unlink()
    error = next(state.error for state in states() if state.site == OWN)
    assert error is not None
    assert "is not on PATH" in error.message
    assert error.hints


def test_an_unknown_one_is_neither_added_nor_removed(tmp_path: Path) -> None:
    for act in (add, remove):
        with pytest.raises(UsageError, match="'avx' is no site that I know"):
            act("avx")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "mirror",
    ["", "-", "deb http://mirror bookworm main", "/etc/passwd", "ftp://mirror", "http://a b", "http://a\nb", "--x"],
)
def test_what_is_no_mirror_is_refused(mirror: str, tmp_path: Path) -> None:
    if not mirror:
        return
    with pytest.raises(UsageError, match="is no address of a mirror"):
        add(FOREIGN.name, AddOptions(mirror=mirror))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (AddOptions(sysroot="/nowhere"), "/nowhere is no folder"),
        (AddOptions(sysroot="/", mirror="http://mirror"), "one or the other"),
        (AddOptions(runtimes=("abacus",)), "'abacus' is no runtime for processors"),
        (AddOptions(runtimes=("emulator",)), "'emulator' is no runtime for processors"),
    ],
)
def test_options_that_cannot_be_are_refused(options: AddOptions, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        add(FOREIGN.name, options)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "options", [AddOptions(sysroot="/"), AddOptions(mirror="http://m"), AddOptions(runtimes=("openvino",))]
)
def test_options_that_would_be_ignored_are_refused(options: AddOptions) -> None:
    with pytest.raises(UsageError, match="this machine's own instruction set"):
        add(OWN.name, options)


def test_without_mmdebstrap_the_line_that_installs_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingComponentError, match="mmdebstrap is not installed") as caught:
        add(FOREIGN.name)
    assert caught.value.hints[0].action == "apt-get install mmdebstrap debian-archive-keyring"
    assert left(tmp_path) == []


def test_packages_that_cannot_be_had_leave_nothing_and_say_why(programs: Path, tmp_path: Path) -> None:
    write_program(programs, "mmdebstrap", 'echo "E: no such mirror" >&2; exit 25')
    with pytest.raises(
        ResourceError, match=r"(?s)packages of http://m can't be had: mmdebstrap ends with 25.*E: no such mirror"
    ):
        add(FOREIGN.name, AddOptions(mirror="http://m"))
    assert left(tmp_path) == []
    with pytest.raises(MissingComponentError):
        guest_of(FOREIGN)


def test_wheels_that_cannot_be_had_leave_nothing(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(programs, "mmdebstrap", UNPACK)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ResourceError, match=r"(?s)wheels for .* can't be had.*No matching distribution found for numpy"
    ):
        add(FOREIGN.name)
    assert left(tmp_path) == []


def test_a_python_that_does_not_run_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    write_program(programs, "mmdebstrap", UNPACK)
    write_qemu(programs, FOREIGN.architecture.emulator, body='echo "cannot execute" >&2; exit 127')
    with pytest.raises(MissingComponentError, match=r"(?s)the Python in .* doesn't run: .*cannot execute"):
        add(FOREIGN.name)
    assert left(tmp_path) == []


def test_an_interrupt_ends_what_was_started_and_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    write_program(programs, "mmdebstrap", f"sleep 600 & echo $$ $! > {tmp_path}/pids; wait")
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from deploykit.workflow.sites import add\nadd({FOREIGN.name!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        pids: list[str] = []
        while len(pids) < 2 and process.poll() is None:
            time.sleep(0.1)
            pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").is_file() else []
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert "KeyboardInterrupt" in said
    assert all(gone(int(pid)) for pid in pids)
    assert left(tmp_path) == []


def test_one_of_this_machines_instruction_set_remembers_the_emulator_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    named = write_qemu(tmp_path / "named", OWN.architecture.emulator)
    monkeypatch.setattr(guest.Guest, "admit", lambda *_: None)  # it emulates nothing, and this processor may be any
    found = add(OWN.name, AddOptions(qemu=str(named)))
    assert found.python.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert json.loads((guest.folder_of(OWN.architecture) / RECORD).read_text())["qemu"] == str(named)
    assert guest_of(OWN).emulator.path == named
    assert add(OWN.name).arch == found.arch, "the one that was named before is taken again"
    assert left(tmp_path) == [OWN.architecture.name]
    removed = remove(OWN.name)
    assert OWN in removed
    assert {site.architecture for site in removed} == {OWN.architecture}
    assert left(tmp_path) == []
    with pytest.raises(UsageError, match=f"nothing is kept for site {OWN.name}"):
        remove(OWN.name)


def test_an_old_emulator_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(MissingComponentError, match=r"QEMU 7\.2"):
        add(OWN.name, AddOptions(qemu=str(write_qemu(tmp_path, OWN.architecture.emulator, "7.2.0"))))
    assert left(tmp_path) == []


def test_without_a_folder_for_caches_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOYKIT_CACHE")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    with pytest.raises(MissingComponentError, match="platformdirs is not installed"):
        add(OWN.name)
