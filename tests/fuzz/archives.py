"""Damage to what holds arrays: numpy's format, archives, safetensors, frames of workers."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, Final

from tests.fuzz.chance import NUMBERS, TEXTS, Mutator, any_bytes
from tests.fuzz.structured import json_text

#: Bytes of an inflated member: beyond what a loader may take.
BOMB: Final = 5 << 29
#: Bytes of members of an archive that is looked into.
SMALL: Final = 1 << 26


# ---- numpy -----------------------------------------------------------------------------------------------------------

_TYPES: Final[tuple[Any, ...]] = (
    *(
        "<f4",
        ">f4",
        "<f8",
        "<f2",
        "|u1",
        "<i8",
        "|b1",
        "<c8",
        "<c16",
        "|O",
        "<U3",
        "<U999999999",
        "|S0",
        "|V7",
        "<M8[s]",
        "<m8",
    ),
    *("<f3", "x", "", "<V0", "<f16", "float32", [("a", "<f4")], [("a", "|O")], [("a", "<f4", (2, 2))], [], None, 4),
)


def npy(random: Random, data: bytes) -> bytes:
    """Give an array another header: a huge or negative shape, another type, another order, or what is no header."""
    match = re.match(rb"\x93NUMPY(..)", data, re.DOTALL)
    end = data.find(b"\n") + 1
    if match is None or not end or random.random() < 0.3:
        return any_bytes(random, data)
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (2, 3)}
    shape = re.search(rb"\(([\d, ]*)\)", data[:end])
    sizes = [int(size) for size in re.findall(rb"\d+", shape[1])] if shape else []
    header["shape"] = tuple(sizes)
    kind = re.search(rb"'descr': '([^']*)'", data[:end])
    header["descr"] = kind[1].decode() if kind else "<f4"
    for _ in range(random.choice((1, 1, 2))):
        _edit_header(random, header, sizes)
    text = (
        repr(header)
        if random.random() < 0.9
        else random.choice(("(" * 5000, "{}", "1", "{'shape': ", "[" * 90 + "]" * 90))
    )
    return _npy_of(random, text.encode("latin1", "replace"), data[end:])


def _edit_header(random: Random, header: dict[str, Any], sizes: list[int]) -> None:
    how = random.randrange(5)
    if how == 0:
        header["descr"] = random.choice(_TYPES)
    elif how == 1:
        header["fortran_order"] = random.choice((True, 1, None, "x"))
    elif how == 2:
        header[random.choice(("shape", "descr", "more"))] = random.choice(
            (None, (), 3, "x", (1.5,), ((1,),), ("a",), (True,))
        )
    elif how == 3:
        header["shape"] = random.choice(((), (0,), (2**40, 0), (2**20, 2**20), (1,) * 70, (2**62, 4), (2**31,)))
    elif sizes:
        changed = list(sizes)
        changed[random.randrange(len(changed))] = random.choice(NUMBERS)
        header["shape"] = tuple(changed)


def _npy_of(random: Random, header: bytes, values: bytes) -> bytes:
    version = random.choice(((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = struct.pack("<H" if version == (1, 0) else "<I", (len(header) + 1) % (1 << 16))
    return b"\x93NUMPY" + bytes(version) + size + header + b"\n" + values


# ---- zip -------------------------------------------------------------------------------------------------------------


@cache
def _bomb(size: int) -> bytes:
    """Return zeros as a deflated stream: whole blocks repeated, as each ends at a byte."""
    block = bytes(1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (size // len(block)) + b"\x03\x00"


def archive(random: Random, data: bytes, by_name: Callable[[str], Mutator]) -> bytes:
    """Change the members of a zip archive: contents, names, order, number, sizes that they claim, what they inflate to."""
    if random.random() < 0.25:
        return any_bytes(random, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            infos = source.infolist()
            if sum(info.file_size for info in infos) > SMALL:
                return any_bytes(random, data)
            members = [(info.filename, source.read(info)) for info in infos]
    except Exception:  # noqa: BLE001 - a file that an earlier mutation damaged
        return any_bytes(random, data)
    if not members:
        return any_bytes(random, data)
    at = random.randrange(len(members))
    name, content = members[at]
    how = random.randrange(9)
    if how <= 3:
        members[at] = (name, by_name(name)(random, content))
    elif how == 4:
        members[at] = (random.choice((*TEXTS, name + "x", name.upper(), name.removesuffix(".npy"))), content)
    elif how == 5:
        members.insert(random.randint(0, len(members)), (name, by_name(name)(random, content)))
    elif how == 6:
        del members[at]
    elif how == 7:
        other = random.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    bomb = name if how == 8 and random.random() < 0.1 else None
    return _zipped(random, members, bomb)


def _zipped(random: Random, members: list[tuple[str, bytes]], bomb: str | None) -> bytes:
    """Write members one after another, stored or deflated; one of them may inflate to far more than the others."""
    sink, entries = io.BytesIO(), []
    method = random.choice((0, 0, 8))
    for name, content in members:
        packed, checksum, size, how = content, zlib.crc32(content), len(content), method
        if name == bomb:
            header = content[:128] if content.startswith(b"\x93NUMPY") else b""
            packed, checksum, size, how = _bomb(BOMB), 0, BOMB, 8
            if header:
                packed = b"\x00" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF) + header + packed
                size += len(header)
        elif method == 8:
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            packed = packer.compress(content) + packer.flush()
        raw = name.encode("utf-8", "surrogatepass")
        fields = struct.pack("<HHHIIIHH", how, 0, 33, checksum, len(packed), size & 0xFFFFFFFF, len(raw), 0)
        entries.append((sink.tell(), fields, raw))
        sink.write(b"PK\x03\x04" + struct.pack("<HH", 20, 0x800) + fields + raw + packed)
    start = sink.tell()
    for offset, fields, raw in entries:
        sink.write(
            b"PK\x01\x02"
            + struct.pack("<HHH", 20, 20, 0x800)
            + fields
            + struct.pack("<HHHII", 0, 0, 0, 0, offset)
            + raw
        )
    size = sink.tell() - start
    sink.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), size, start, 0))
    return sink.getvalue()


# ---- safetensors and frames ------------------------------------------------------------------------------------------


def safetensors(random: Random, data: bytes) -> bytes:
    """Change the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) or random.random() < 0.3:
        return any_bytes(random, data)
    header = json_text(random, data[8 : 8 + size])
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def frame(random: Random, data: bytes) -> bytes:
    """Change the header of a frame."""
    size = int.from_bytes(data[:4], "little")
    if size + 4 > len(data) or random.random() < 0.3:
        return any_bytes(random, data)
    header = json_text(random, data[4 : 4 + size])
    return struct.pack("<I", len(header)) + header + data[4 + size :]
