"""Which processors can be emulated, as data."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from deploykit.errors import Hint, UsageError
from deploykit.runtime import processors


@dataclass(frozen=True)
class Architecture:
    """An instruction set, by all its names.

    Attributes:
        name: Ours, under which a sysroot is kept.
        machines: What operating systems call it.
        emulator: Name of QEMU's program for it.
        debian: What Debian calls it.
        wheels: What the names of wheels for it end with.
    """

    name: str
    machines: tuple[str, ...]
    emulator: str
    debian: str
    wheels: str

    @property
    def is_own(self) -> bool:
        """Whether this machine has it too, so that this environment's own Python and libraries can be emulated."""
        return platform.machine() in self.machines


@dataclass(frozen=True)
class Site:
    """A processor that can be emulated.

    Attributes:
        name: That users type.
        processor: Name of its class, see `deploykit.runtime.processors`; what it answers when it is asked is compared.
        architecture: Its instruction set.
        cpu: What QEMU calls it.
        title: For people: which real ones are like it.
    """

    name: str
    processor: str
    architecture: Architecture
    cpu: str
    title: str


_X86: Final = Architecture("x86_64", processors.X86, "qemu-x86_64", "amd64", "x86_64")
_ARM: Final = Architecture("arm64", processors.ARM, "qemu-aarch64", "arm64", "aarch64")

#: QEMU emulates no AVX-512, VNNI or AMX: of x86 there are those below them, whose sums of products may saturate.
SITES: Final = (
    Site("avx2", "avx2", _X86, "Haswell-noTSX", "Intel from Haswell, AMD Zen 1 to 3: AVX2 without VNNI"),
    Site("sse4", "sse4", _X86, "Nehalem", "Intel before AVX, small Atoms"),
    Site("arm64", "i8mm", _ARM, "max", "Neoverse V1 and N2, Apple M2, Cortex-A510 and later: i8mm, half precision"),
    Site("arm64-n1", "dotprod", _ARM, "neoverse-n1", "Neoverse N1, Cortex-A55 and A76: dot products, half precision"),
    Site("arm64-a72", "neon", _ARM, "cortex-a72", "Raspberry Pi 4, Cortex-A53 and A72: NEON alone"),
)


def get_site(name: str) -> Site:
    """Return the site of this name.

    Raises:
        UsageError: There is none; the message has the names there are.
    """
    found = {site.name: site for site in SITES}
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, cutoff=0.5)
    raise UsageError(
        f"{name[:80]!r} is no site that I know: there are {', '.join(found)}",
        *(Hint(one, found[one].title) for one in near),
    )


def get_sites(names: Iterable[str]) -> tuple[Site, ...]:
    """Return the sites of these names, each once, in this order. Raises what `get_site` does."""
    return tuple(dict.fromkeys(map(get_site, names)))
