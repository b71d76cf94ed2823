"""Damage to bytes of any kind, and the numbers and texts that break things."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

Mutator = Callable[[Random, bytes], bytes]

#: Numbers at which counters, sizes and offsets break.
NUMBERS: Final = (
    *(0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1),
    *(-1, -2, -128, -(2**31), -(2**63), 10**6, 10**9, 10**18),
)
#: Numbers that only JSON can write.
FURTHER_NUMBERS: Final = (10**400, 1e308, -1e308, 0.5, -0.0, 1e-320, float("nan"), float("inf"), float("-inf"))
#: Texts that are taken for something else.
TEXTS: Final = (
    *("", " ", "0", "-1", "NaN", "null", "{}", "..", "../x", "/etc/passwd", "C:\\x", "a/b", "a\0b", "é", "\ud800"),
    *("x" * 5000, "%s%n", "${x}", "\n", "float32", "object", "__class__", "input", "cuda:0", "f32", "rendered:test"),
)


def flip(random: Random, data: bytes) -> bytes:
    """Change a few bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if changed else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(random: Random, data: bytes) -> bytes:
    """Keep the beginning alone, or the end."""
    at = random.randint(0, len(data))
    return data[:at] if random.random() < 0.8 else data[at:]


def splice(random: Random, data: bytes) -> bytes:
    """Take a piece out, or put one in once or many times."""
    start = random.randint(0, len(data))
    piece = data[start : start + random.choice((1, 4, 16, 256))]
    to = random.randint(0, len(data))
    if random.random() < 0.3:
        return data[:start] + data[start + len(piece) :]
    return data[:to] + piece * random.choice((1, 2, 50)) + data[to:]


def overwrite(random: Random, data: bytes) -> bytes:
    """Write a number that breaks things over what is there."""
    size = random.choice((1, 2, 4, 8))
    number = (random.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, random.choice(("little", "big")))
    at = random.randint(0, max(0, len(data) - size))
    return data[:at] + number + data[at + size :]


def noise(random: Random, data: bytes) -> bytes:
    """Put random bytes in place of a piece, or of everything."""
    size = random.choice((0, 1, 3, 16, 100, 1000))
    made = random.randbytes(size)
    at = random.randint(0, len(data))
    return made if random.random() < 0.2 else data[:at] + made + data[at + size :]


ANY: Final[tuple[Mutator, ...]] = (flip, cut, splice, overwrite, noise)


def any_bytes(random: Random, data: bytes) -> bytes:
    """Damage bytes without knowing what they are."""
    return random.choice(ANY)(random, data)
