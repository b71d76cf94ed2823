"""The wire format of protobuf, as far as reading an ONNX file's structure takes it; weights are stepped over."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Buffer = mmap.mmap | bytes

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
_FIXED = {EIGHT_BYTES: 8, FOUR_BYTES: 4}


def messages(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of every length-delimited field of the message in `data[position:end]`.

    Raises:
        ValueError: The bytes make no sense.
    """
    return ((number, first, last) for number, wire, first, last in fields(data, position, end) if wire == LENGTH)


def fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end) of every field of the message in `data[position:end]`.

    In place of `start`, a varint has its value.

    Raises:
        ValueError: The bytes make no sense.
    """
    while position < end:
        start = position
        tag, position = varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise ValueError(f"impossible field tag {tag} at byte {start}")
        if wire == LENGTH:
            size, position = varint(data, position, end)
            if size > end - position:
                raise ValueError(f"field {number} at byte {start} claims {size} bytes, {end - position} are left")
            yield number, wire, position, position + size
            position += size
        elif wire == VARINT:
            value, position = varint(data, position, end)
            yield number, wire, value, position
        elif wire in _FIXED:
            yield number, wire, position, position + _FIXED[wire]
            position += _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {start} is not used by ONNX")
    if position > end:
        raise ValueError(f"the file ends within a field, at byte {end}")


def varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """Return a base-128 number and the position after it.

    Raises:
        ValueError: There is none.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError(f"the file ends within a number, at byte {end}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"number of more than ten bytes before byte {position}")
