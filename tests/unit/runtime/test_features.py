"""A processor that is asked answers what its system has on record of it, where nothing is emulated."""

from __future__ import annotations

import platform

import pytest

from deploykit.manifest import Machine
from deploykit.runtime import processors
from deploykit.runtime.features import answered


@pytest.mark.skipif(not Machine.here().flags, reason="this system has no record of its processor's features")
def test_what_a_processor_answers_is_on_record_and_tells_its_class() -> None:
    machine, found = Machine.here(), answered()
    assert found
    assert set(found) <= set(machine.flags)
    alone = processors.class_of(Machine("", machine.arch, "", 1, found, ""))
    # numpy has no word for AMX and AVX-VNNI.
    assert alone.name == processors.here().name or processors.here().name in {"amx", "avx-vnni"}


def test_one_of_an_unknown_instruction_set_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert answered() == ()
