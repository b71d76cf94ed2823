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
        ("aarch64", ("asimdhp",), "neon-fp16", False),
        ("arm64", ("asimddp", "asimdhp"), "dotprod", False),
        ("aarch64", ("asimddp", "i8mm"), "i8mm", False),
        ("wasm32", (), "wasm-simd", False),
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


def test_what_is_not_known_of_a_runtime_is_held_to_be_the_worst() -> None:
    by_name = {one.name: one for one in processors.CLASSES}
    assert by_name["sse4"].sums_in("onnxruntime") is processors.Sums.UNKNOWN
    assert by_name["avx2"].sums_in("a runtime of tomorrow") is processors.Sums.UNKNOWN
    assert not by_name["wasm-relaxed-simd"].saturates


def test_unsafe_classes_are_those_of_the_runtimes_that_are_asked_for() -> None:
    x86 = ["avx512", "avx2", "sse4", "x86"]
    assert [one.name for one in processors.unsafe(["onnxruntime"])] == x86
    assert [one.name for one in processors.unsafe(["openvino", "tensorrt"])] == x86
    assert processors.unsafe(["tensorrt"]) == ()


def test_what_is_made_for_some_classes_is_held_to_its_word_where_sums_are_exact_too() -> None:
    classes = {one.name: one for one in processors.CLASSES}
    assert processors.excluded(("amx",), "onnxruntime", classes["avx2"]).startswith("made for amx: on avx2")
    assert not processors.excluded(("amx", "avx2"), "onnxruntime", classes["avx2"])
    assert not processors.excluded(("amx",), "onnxruntime", classes["i8mm"])
    assert not processors.excluded((), "onnxruntime", classes["avx2"])
