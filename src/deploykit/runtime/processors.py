"""Classes of processors, as data: what the integer kernels of each runtime make of sums of products.

x86 multiplies unsigned bytes by signed ones and adds neighbours in one instruction. Before VNNI that sum has 16 bits: two
products beyond 32,767 in magnitude saturate, and a network in 8 bits answers otherwise than its graph says. What has VNNI,
Arm, and WebAssembly add in 32 bits. Where each entry is read from stands in docs/adr/0021; `deploykit.runtime.saturation`
finds out what is true of the machine that it runs on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Final

from deploykit.errors import UsageError
from deploykit.manifest import Machine

#: What operating systems call the instruction sets.
X86: Final = ("x86_64", "AMD64", "i386", "i686")
ARM: Final = ("aarch64", "arm64")
WASM: Final = ("wasm32", "wasm64")


class Sums(str, Enum):
    """What becomes of the sum of two products of an unsigned and a signed byte."""

    EXACT = "exact"
    PAIRS = "pairs saturate"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Processor:
    """A class of processors that compute products of 8 bits alike.

    Attributes:
        name: Such as "avx2".
        machines: What operating systems call the instruction set; none for any.
        flags: Features that it has, in Linux's words.
        sums: What the kernels of each runtime that runs there make of them, by the name of its backend. UNKNOWN where that
            depends on how the runtime was built, or on features that can't be read.
    """

    name: str
    machines: tuple[str, ...]
    flags: frozenset[str] = frozenset()
    sums: Mapping[str, Sums] = field(default_factory=dict)

    def is_of(self, arch: str, flags: Collection[str]) -> bool:
        """Tell whether a machine belongs to this class."""
        return (not self.machines or arch in self.machines) and self.flags <= set(flags)

    def sums_in(self, backend: str) -> Sums:
        """Return what a runtime's kernels make of sums here; UNKNOWN of one that nothing is known of."""
        return self.sums.get(backend, Sums.UNKNOWN)

    @property
    def saturates(self) -> bool:
        """Sums of two products may have 16 bits in a runtime's kernels: the worst is assumed of what isn't known."""
        return any(one is not Sums.EXACT for one in self.sums.values())


def _both(sums: Sums) -> dict[str, Sums]:
    return {"onnxruntime": sums, "openvino": sums}


_EXACT, _PAIRS = _both(Sums.EXACT), _both(Sums.PAIRS)
#: A machine belongs to the first that it has all of. Of an x86 whose features can't be read the worst is assumed.
CLASSES: Final = (
    Processor("amx", X86, frozenset({"amx_int8"}), _EXACT),
    Processor("avx512-vnni", X86, frozenset({"avx512f", "avx512_vnni"}), _EXACT),
    Processor("avx-vnni", X86, frozenset({"avx_vnni"}), _EXACT),
    Processor("avx512", X86, frozenset({"avx512f"}), _PAIRS),
    Processor("avx2", X86, frozenset({"avx2"}), _PAIRS),
    # ONNX Runtime has its kernel of pairs where Microsoft's compiler built it; elsewhere one that widens to 16 bits first.
    Processor("sse4", X86, frozenset({"sse4_1"}), {"onnxruntime": Sums.UNKNOWN, "openvino": Sums.PAIRS}),
    Processor("x86", X86, frozenset(), _both(Sums.UNKNOWN)),
    Processor("i8mm", ARM, frozenset({"i8mm"}), _EXACT),
    Processor("dotprod", ARM, frozenset({"asimddp"}), _EXACT),
    # In 8 bits as neon; what stands in half is computed in half, which neon widens to float32.
    Processor("neon-fp16", ARM, frozenset({"asimdhp"}), _EXACT),
    Processor("neon", ARM, frozenset(), _EXACT),
    Processor("wasm-simd", WASM, frozenset(), {"onnxruntime": Sums.EXACT}),
    # A browser doesn't tell, so that it can be named, never found. Its instruction for pairs may saturate: ONNX Runtime tries
    # that when it is loaded, and takes the kernels of wasm-simd where it does.
    Processor("wasm-relaxed-simd", WASM, frozenset(), {"onnxruntime": Sums.EXACT}),
    Processor("other", (), frozenset(), _EXACT),
)


#: Classes that go by one name.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "vnni": ("amx", "avx512-vnni", "avx-vnni"),
    "arm": ("i8mm", "dotprod", "neon-fp16", "neon"),
    "wasm": ("wasm-simd", "wasm-relaxed-simd"),
}


def named(words: Iterable[str]) -> tuple[Processor, ...]:
    """Return the classes of these names, or of these groups' names, each once.

    Raises:
        UsageError: There is none of a name.
    """
    known = {one.name: one for one in CLASSES}
    found: list[str] = []
    for word in words:
        if word not in known and word not in GROUPS:
            groups = ", ".join(f"{name} ({', '.join(inside)})" for name, inside in GROUPS.items())
            raise UsageError(f"{word[:80]!r} is no class of processors; there are: {', '.join(known)}; and {groups}")
        found += GROUPS.get(word, (word,))
    return tuple(known[name] for name in dict.fromkeys(found))


def class_of(machine: Machine) -> Processor:
    """Return the class of a machine's processor."""
    return next(one for one in CLASSES if one.is_of(machine.arch, machine.flags))


@cache
def here() -> Processor:
    """Return the class of this machine's processor."""
    return class_of(Machine.here())


def excluded(names: Collection[str], backend: str, processor: Processor | None = None) -> str:
    """Return why something that is made for some classes can't be held to its word on this one; "" where it can.

    Args:
        names: Of the classes; none for all.
        backend: Name of the backend that runs it: where that adds in 32 bits, it computes the same on every class.
        processor: The class that is meant by "this one"; None is this machine's.
    """
    processor = processor or here()
    if not names or processor.name in names or processor.sums_in(backend) is Sums.EXACT:
        return ""
    return f"made for {', '.join(names)}: on {processor.name}, which this processor is, its products may saturate"


def unsafe(backends: Iterable[str]) -> tuple[Processor, ...]:
    """Return the classes on which kernels of one of these runtimes add in 16 bits, or may."""
    named = tuple(backends)
    return tuple(one for one in CLASSES if any(one.sums.get(name, Sums.EXACT) is not Sums.EXACT for name in named))
