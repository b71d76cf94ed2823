"""Guests: what isn't whole isn't there, and what isn't what it promises is refused."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from tests.emulators import guest_or_skip, write_qemu

from deploykit import serde
from deploykit.errors import MissingComponentError
from deploykit.runtime import processors
from deploykit.runtime.processors import ARM, X86
from deploykit.runtime.sites import guest, qemu
from deploykit.runtime.sites.guest import RECORD, Guest, Installed, guest_of, python_of
from deploykit.runtime.sites.table import SITES, Site, get_site
from deploykit.runtime.worker import Described

#: A site of this machine's own instruction set, and one of another.
OWN = next(site for site in SITES if site.architecture.is_own)
FOREIGN = next(site for site in SITES if not site.architecture.is_own)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let all emulators be there, and nothing else."""
    for site in SITES:
        write_qemu(tmp_path / "bin", site.architecture.emulator)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_sysroot(folder: Path, name: str = "python3.11") -> Path:
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin" / name).write_text("a Python")
    return folder


def record(site: Site, installed: Installed) -> Path:
    path = guest.folder_of(site.architecture) / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(serde.to_json(installed)))
    return path


def test_this_machines_instruction_set_needs_nothing_but_the_emulator() -> None:
    found = guest_of(OWN)
    assert found.root is None
    assert found.processor.name == OWN.processor
    assert found.interpreter().words[1:3] == ("-cpu", OWN.cpu)


def test_another_needs_a_sysroot() -> None:
    with pytest.raises(MissingComponentError, match=f"site {FOREIGN.name} has no Python and no libraries") as caught:
        guest_of(FOREIGN)
    assert caught.value.hints[0].action == f"deploykit site add {FOREIGN.name}"


def test_a_sysroot_without_a_record_is_half_made_and_not_ready(cache: Path) -> None:
    write_sysroot(cache / "sites" / FOREIGN.architecture.name / "root")
    with pytest.raises(MissingComponentError, match="has no Python and no libraries"):
        guest_of(FOREIGN)


def test_a_record_whose_sysroot_is_gone_is_not_ready() -> None:
    record(FOREIGN, Installed(root="root"))
    with pytest.raises(MissingComponentError, match=r"has no Python 3\.10 or newer in usr/bin"):
        guest_of(FOREIGN)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"qemu": 3}', '{"other": 1}', "\udcff"])
def test_a_damaged_record_is_told_with_what_makes_it_anew(text: str) -> None:
    record(FOREIGN, Installed()).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(MissingComponentError, match="record of what was made") as caught:
        guest_of(FOREIGN)
    assert caught.value.hints[0].action.startswith("deploykit site add ")


def test_a_whole_one_runs_its_own_python_with_nothing_of_this_environment(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    monkeypatch.setenv("QEMU_LD_PREFIX", "/nowhere")
    record(FOREIGN, Installed(root="root"))
    root = write_sysroot(cache / "sites" / FOREIGN.architecture.name / "root")
    interpreter = guest_of(FOREIGN).interpreter(7.0)
    assert interpreter.words[1:] == ("-cpu", FOREIGN.cpu, "-L", str(root), str(root / "usr/bin/python3.11"))
    assert interpreter.limit_s == 7.0
    assert not {"LD_PRELOAD", "QEMU_LD_PREFIX", "HOME"} & set(interpreter.environment)
    wheels, code = interpreter.environment["PYTHONPATH"].split(os.pathsep)
    assert wheels == str(cache / "sites" / FOREIGN.architecture.name / "packages")
    names = {path.name.partition("-")[0] for path in Path(code).iterdir()}
    assert names == {"deploykit"}, "nothing that was installed beside it is for that processor"
    assert guest_of(FOREIGN).interpreter().environment["PYTHONPATH"] == interpreter.environment["PYTHONPATH"]


def test_the_emulator_that_was_named_is_taken_before_the_one_on_path(tmp_path: Path) -> None:
    named = write_qemu(tmp_path / "named", OWN.architecture.emulator, "9.1.0")
    record(OWN, Installed(qemu=str(named)))
    assert guest_of(OWN).emulator == qemu.Emulator(named, (9, 1))
    named.unlink()
    with pytest.raises(MissingComponentError, match="does not exist"):
        guest_of(OWN)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("python3.9",), None),
        (("python3.11", "python3.9", "python3-config", "python3.11-config"), "python3.11"),
        (("python3.9", "python3.13", "python3.11"), "python3.13"),
        (("python",), None),
    ],
)
def test_the_newest_python_of_a_sysroot_is_taken(tmp_path: Path, names: tuple[str, ...], found: str | None) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    for name in names:
        (root / "usr/bin" / name).write_text("")
    if found is None:
        with pytest.raises(MissingComponentError, match="it is no sysroot, or not whole"):
            python_of(root)
    else:
        assert python_of(root) == root / "usr/bin" / found


@pytest.mark.parametrize(
    ("name", "arch", "flags", "answers"),
    [
        ("avx2", "x86_64", ("sse4_1", "avx2", "avx512f", "avx512_vnni"), "avx512-vnni"),
        ("avx2", "x86_64", ("sse4_1",), "sse4"),
        ("sse4", "x86_64", (), "x86"),
        ("arm64", "aarch64", ("asimdhp", "asimddp"), "dotprod"),
        ("arm64-a72", "aarch64", ("asimddp",), "dotprod"),
        ("arm64", "x86_64", ("sse4_1", "avx2"), "avx2"),
    ],
)
def test_a_processor_that_answers_as_another_is_refused(
    tmp_path: Path, name: str, arch: str, flags: tuple[str, ...], answers: str
) -> None:
    site = get_site(name)
    found = Guest(site, qemu.Emulator(tmp_path / "qemu", (10, 0)), Installed(), tmp_path)
    promised = f"site {name} promises a processor of class {site.processor}; .* answers as {answers}"
    with pytest.raises(MissingComponentError, match=promised):
        found.admit(Described(arch, flags, "3.11", {}))


@pytest.mark.skipif(processors.here().name in {"avx2", "sse4"}, reason="this processor is what the emulator promises")
def test_an_emulator_that_emulates_nothing_is_refused() -> None:
    with pytest.raises(MissingComponentError, match="promises a processor of class"):
        guest_of(OWN).describe(120.0)


@pytest.mark.qemu
@pytest.mark.parametrize("site", [site for site in SITES if site.architecture.is_own], ids=lambda site: site.name)
def test_emulated_processors_answer_as_their_class(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(os.pathsep)[2])
    found = guest_or_skip(site.name).describe(240.0)
    assert found.arch == platform.machine()
    assert found.arch in {*X86, *ARM}
    assert "onnxruntime" in found.libraries
