"""Mutators: from a sound file to one that is damaged, or made by somebody who means harm.

Each takes a source of chance and bytes and returns other bytes; the same chance gives the same bytes. Those that know a format
keep what surrounds the damage sound (lengths, checksums), so that it reaches the code behind the first check.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from random import Random
from typing import Final

from tests.fuzz.archives import archive, frame, npy, safetensors
from tests.fuzz.chance import NUMBERS, TEXTS, Mutator, any_bytes
from tests.fuzz.structured import json_text, protobuf


def text(random: Random, data: bytes) -> bytes:
    """Change a line or a field of a text."""
    how = random.randrange(6)
    if how == 0:
        return any_bytes(random, data)
    if how == 1:
        return data.decode("utf-8", "replace").encode(
            random.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1")), "replace"
        )
    if how == 2:
        return data.replace(
            random.choice((b",", b"\n", b";")), random.choice((b"\t", b"\r", b'"', b"\0", b",,", b"\n\n", b";"))
        )
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    fields = lines[at].split(b",")
    word = random.choice((*TEXTS, *map(str, NUMBERS), '"', "a" * 200_000)).encode("utf-8", "surrogatepass")
    fields[random.randrange(len(fields))] = word
    lines[at : at + 1] = [b",".join(fields)] * (random.choice((1, 1, 2, 3000)) if len(word) < 100 else 1)
    return b"\n".join(lines)


def xml(random: Random, data: bytes) -> bytes:
    """Change an attribute or a number of XML, or take an element out, or repeat one."""
    pieces = re.split(rb"(<[^>]*>)", data)
    tags = [index for index, piece in enumerate(pieces) if piece.startswith(b"<")]
    if not tags or random.random() < 0.2:
        return any_bytes(random, data)
    at = random.choice(tags)
    how = random.randrange(5)
    if how == 0:
        pieces[at : at + 1] = [pieces[at]] * random.choice((0, 2, 50))
    elif how == 1:
        other = random.choice(tags)
        pieces[at], pieces[other] = pieces[other], pieces[at]
    else:
        values = list(re.finditer(rb'"[^"]*"|\d+', pieces[at])) or list(re.finditer(rb"\w+", pieces[at]))
        if values:
            found = random.choice(values)
            word = random.choice(
                (*map(str, NUMBERS), "", "1,2", "-1", "f64", "i4", "string", "Loop", "If", "Parameter", "?")
            )
            new = f'"{word}"' if found[0].startswith(b'"') else word
            pieces[at] = pieces[at][: found.start()] + new.encode() + pieces[at][found.end() :]
    return b"".join(pieces)


def png(random: Random, data: bytes) -> bytes:
    """Change the chunks of a PNG, their checksums made to fit."""
    if not data.startswith(b"\x89PNG") or random.random() < 0.3:
        return any_bytes(random, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = random.randrange(len(chunks))
    kind, content = chunks[place]
    how = random.randrange(4)
    if how == 0:
        chunks.insert(random.randint(0, len(chunks)), random.choice(chunks))
    elif how == 1:
        kinds = (
            b"iTXt",
            b"zTXt",
            b"tEXt",
            b"iCCP",
            b"PLTE",
            b"tRNS",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"pHYs",
            b"gAMA",
            b"cHRM",
        )
        chunks.insert(1, (random.choice(kinds), any_bytes(random, content)))
    elif how == 2 and kind == b"IHDR":
        sides = [random.choice((0, 1, 3, 100, 13000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        chunks[place] = (
            kind,
            struct.pack(">II", *sides) + bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5)),
        )
    else:
        chunks[place] = (kind, any_bytes(random, content))
    whole = bytearray(data[:8])
    for kind, content in chunks:
        whole += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return bytes(whole)


#: By ending; what is not here is changed as any bytes are.
ENDINGS: Final[Mapping[str, Mutator]] = {
    ".json": json_text,
    ".npy": npy,
    **dict.fromkeys(
        (".npz", ".zip", ".pth", ".pt2", ".pt", ".ckpt"), lambda random, data: archive(random, data, by_name)
    ),
    ".safetensors": safetensors,
    ".onnx": protobuf,
    **dict.fromkeys((".csv", ".tsv", ".txt"), text),
    ".xml": xml,
    ".png": png,
    ".frame": frame,
}


def by_name(name: str) -> Mutator:
    """Return the mutator of files that are called so."""
    return next((mutator for ending, mutator in ENDINGS.items() if name.endswith(ending)), any_bytes)


def mutate(random: Random, name: str, data: bytes) -> bytes:
    """Damage a file once or a few times, by what its name says that it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of archives with a name twice
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            data = by_name(name)(random, data)
    return data
