"""Processors are known by what they have, and saturate where ONNX Runtime's own kernels do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.manifest import CPU_FLAGS, Machine
from deploykit.runtime import processors

MACHINE = Machine("Linux 6", "x86_64", "a processor", 2, (), "3.11.0")


@pytest.mark.parametrize(
    ("arch", "flags", "name", "saturates"),
    [
        ("x86_64", (), "x86", True),
        ("x86_64", ("sse4_1",), "sse4", True),
        ("x86_64", ("sse4_1", "avx2"), "avx2", True),
        ("AMD64", ("sse4_1", "avx2", "avx512f"), "avx512", True),
        ("x86_64", ("sse4_1", "avx2", "avx_vnni"), "avx-vnni", False),
        ("x86_64", ("sse4_1", "avx2", "avx512f", "avx512_vnni"), "avx512-vnni", False),
        ("x86_64", ("sse4_1", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"), "amx", False),
        ("aarch64", (), "neon", False),
        ("arm64", ("asimddp",), "dotprod", False),
        ("aarch64", ("asimddp", "i8mm"), "i8mm", False),
        ("riscv64", ("avx2",), "other", False),
    ],
)
def test_a_machine_belongs_to_the_first_class_that_it_has_all_of(
    arch: str, flags: tuple[str, ...], name: str, saturates: bool
) -> None:
    found = processors.class_of(replace(MACHINE, arch=arch, flags=flags))
    assert (found.name, found.saturates) == (name, saturates)


def test_classes_are_told_by_features_that_are_on_record() -> None:
    assert frozenset[str]().union(*(one.flags for one in processors.CLASSES)) <= set(CPU_FLAGS)
    assert len({one.name for one in processors.CLASSES}) == len(processors.CLASSES)
    assert processors.here() is processors.class_of(Machine.here())
