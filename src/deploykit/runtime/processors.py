"""Classes of processors, as data: what their integer kernels make of sums of products.

x86 multiplies unsigned bytes by signed ones and adds neighbours in one instruction. Before VNNI that sum has 16 bits: two
products beyond 32,767 in magnitude saturate, and a network in 8 bits answers otherwise than its graph says. What has VNNI, and
Arm, adds in 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Final

from deploykit.manifest import Machine

#: What operating systems call the two instruction sets.
X86: Final = ("x86_64", "AMD64", "i386", "i686")
ARM: Final = ("aarch64", "arm64")


@dataclass(frozen=True)
class Processor:
    """A class of processors that compute products of 8 bits alike.

    Attributes:
        name: Such as "avx2".
        machines: What operating systems call the instruction set; none for any.
        flags: Features that it has, in Linux's words.
        saturates: Sums of two u8·s8 products have 16 bits in its kernels.
    """

    name: str
    machines: tuple[str, ...]
    flags: frozenset[str]
    saturates: bool

    def is_of(self, arch: str, flags: Collection[str]) -> bool:
        """Tell whether a machine belongs to this class."""
        return (not self.machines or arch in self.machines) and self.flags <= set(flags)


#: A machine belongs to the first that it has all of. Of an x86 whose features can't be read the worst is assumed.
CLASSES: Final = (
    Processor("amx", X86, frozenset({"amx_int8"}), saturates=False),
    Processor("avx512-vnni", X86, frozenset({"avx512f", "avx512_vnni"}), saturates=False),
    Processor("avx-vnni", X86, frozenset({"avx_vnni"}), saturates=False),
    Processor("avx512", X86, frozenset({"avx512f"}), saturates=True),
    Processor("avx2", X86, frozenset({"avx2"}), saturates=True),
    Processor("sse4", X86, frozenset({"sse4_1"}), saturates=True),
    Processor("x86", X86, frozenset(), saturates=True),
    Processor("i8mm", ARM, frozenset({"i8mm"}), saturates=False),
    Processor("dotprod", ARM, frozenset({"asimddp"}), saturates=False),
    Processor("neon", ARM, frozenset(), saturates=False),
    Processor("other", (), frozenset(), saturates=False),
)


def class_of(machine: Machine) -> Processor:
    """Return the class of a machine's processor."""
    return next(one for one in CLASSES if one.is_of(machine.arch, machine.flags))


@cache
def here() -> Processor:
    """Return the class of this machine's processor."""
    return class_of(Machine.here())
