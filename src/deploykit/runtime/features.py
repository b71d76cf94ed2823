"""What a processor answers to have when it is asked, in the words that Linux has for it.

A process in an emulator reads the /proc/cpuinfo of the machine around it; the processor itself is asked here, as runtimes do.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
from typing import Final

from deploykit.runtime.processors import ARM, X86

#: numpy's names for what it finds by CPUID. It has none for AMX and AVX-VNNI.
_OF_X86: Final = {"SSE41": "sse4_1", "AVX2": "avx2", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni"}
#: Where numpy keeps them, by its versions.
_MODULES: Final = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")
#: Bits of the two words in which Linux tells a process on Arm what its processor has.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_OF_ARM: Final = {
    "asimdhp": (_AT_HWCAP, 10),
    "asimddp": (_AT_HWCAP, 20),
    "i8mm": (_AT_HWCAP2, 13),
    "bf16": (_AT_HWCAP2, 14),
}


def answered() -> tuple[str, ...]:
    """Return what the processor that runs this process answers to have, sorted; () where it can't be asked."""
    arch = platform.machine()
    if arch in X86:
        return tuple(sorted(_by_numpy()))
    return tuple(sorted(_by_linux())) if arch in ARM else ()


def _by_numpy() -> set[str]:
    for name in _MODULES:
        try:
            found = getattr(importlib.import_module(name), "__cpu_features__", {})
        except ImportError:
            continue
        return {word for own, word in _OF_X86.items() if found.get(own)}
    return set()


def _by_linux() -> set[str]:
    try:
        ask = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return set()
    ask.restype, ask.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    return {word for word, (key, bit) in _OF_ARM.items() if ask(key) >> bit & 1}
