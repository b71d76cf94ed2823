"""Damage to what is structured: JSON, and protobufs."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

from tests.fuzz.chance import FURTHER_NUMBERS, NUMBERS, TEXTS, any_bytes

#: How deep nests are: beyond what parsers of Python recurse to, and far beyond.
DEPTHS: Final = (300, 1500, 100_000)
#: Stands where a nest is put into other JSON.
_NEST: Final = "a nest"


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _places(value: Any, above: tuple[Any, Any] | None = None) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value within a value."""
    found = [] if above is None else [above]
    entries = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in entries:
        found += _places(item, (value, key))
    return found


def _any_value(random: Random) -> Any:
    return random.choice(
        (
            *(None, True, False, [], {}, [[]], {"": {}}, [None] * 3, {"a": 1}),
            *(random.choice(NUMBERS), random.choice(FURTHER_NUMBERS), random.choice(TEXTS)),
        )
    )


def edit_json(random: Random, value: Any) -> Any:
    """Change one place of JSON values: replaced, removed, swapped with another, copied, renamed."""
    places = _places(value)
    if not places:
        return _any_value(random)
    container, key = random.choice(places)
    other, other_key = random.choice(places)
    how = random.randrange(8)
    if how == 0:
        container[key], other[other_key] = other[other_key], container[key]
        if _is_endless(value):
            return [value.__class__.__name__]
    elif how == 1:
        del container[key]
    elif how == 2 and isinstance(container, dict):
        container[random.choice((*TEXTS, str(other_key)))] = container.pop(key)
    elif how == 3 and isinstance(container, list):
        container.extend([container[key]] * random.choice((1, 2, 300)))
    elif how <= 5:
        container[key] = _alike(random, container[key], [holder[at] for holder, at in places])
    else:
        container[key] = _any_value(random)
    return value


def _alike(random: Random, value: Any, others: list[Any]) -> Any:
    """Return a value of the same type: what a schema lets through."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return random.choice([number for number in (*NUMBERS, *FURTHER_NUMBERS) if type(number) is type(value)])
    texts = [*TEXTS, *(one for one in others if isinstance(one, str))]
    return random.choice(texts) if isinstance(value, str) else _any_value(random)


def _is_endless(value: Any, above: tuple[int, ...] = ()) -> bool:
    """Tell whether a swap has put something into itself."""
    if id(value) in above:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_endless(item, (*above, id(value))) for item in inner)


def nested(random: Random) -> bytes:
    """Return JSON that is a deep nest."""
    depth = random.choice(DEPTHS)
    start, end = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[{}", b"]"), (b"[", b"")))
    return start * depth + b"1" * (start != b"[{}") + end * depth


def json_text(random: Random, data: bytes) -> bytes:
    """Change a value of JSON, or nest it deeply."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(random, data)
    if random.random() < 0.05:
        return nested(random)
    if random.random() < 0.05 and (places := _places(value)):
        container, key = random.choice(places)
        container[key] = _NEST
        return json.dumps(value).encode().replace(json.dumps(_NEST).encode(), nested(random))
    for _ in range(random.choice((1, 1, 2))):
        value = edit_json(random, value)
    return json.dumps(value, indent=random.choice((None, 1, 2)), sort_keys=random.random() < 0.5).encode()


# ---- protobuf --------------------------------------------------------------------------------------------------------

#: A field: its number, its wire type, and a number, bytes, or the fields of a message.
Field = list[Any]
_MESSAGE: Final = 10  # stands for wire type 2 whose bytes are a message themselves


def _varint(number: int) -> bytes:
    number %= 1 << 64
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("no number")


def _parse(data: bytes, depth: int = 0) -> list[Field]:
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number > 600:
            raise ValueError("no field")
        if wire == 0:
            value, at = _read_varint(data, at)
            fields.append([number, wire, value])
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
            fields.append([number, wire, data[at : at + size]])
            at += size
        elif wire == 2:
            size, at = _read_varint(data, at)
            if size > len(data) - at:
                raise ValueError("too long")
            fields.append(_field_of(number, data[at : at + size], depth))
            at += size
        else:
            raise ValueError("no wire type")
    return fields


def _field_of(number: int, content: bytes, depth: int) -> Field:
    try:
        if content and depth < 12 and not (content.isascii() and content.decode().isprintable()):
            return [number, _MESSAGE, _parse(content, depth + 1)]
    except (ValueError, IndexError):
        pass
    return [number, 2, content]


def _written(fields: list[Field]) -> bytes:
    made = bytearray()
    for number, wire, value in fields:
        made += _varint(number << 3 | (2 if wire == _MESSAGE else wire))
        content = _written(value) if wire == _MESSAGE else value
        made += _varint(value) if wire == 0 else (_varint(len(content)) + content if wire in {2, _MESSAGE} else content)
    return bytes(made)


def _all_fields(fields: list[Field]) -> list[tuple[list[Field], int]]:
    found: list[tuple[list[Field], int]] = []
    for index, (_, wire, value) in enumerate(fields):
        found.append((fields, index))
        if wire == _MESSAGE:
            found += _all_fields(value)
    return found


def protobuf(random: Random, data: bytes) -> bytes:
    """Change a field anywhere in a protobuf: another value, removed, repeated, taken from elsewhere, nested in itself."""
    try:
        message = _parse(data)
    except (ValueError, IndexError):
        return any_bytes(random, data)
    if random.random() < 0.15:
        return any_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 4))):
        places = _all_fields(message)
        if places:
            _edit_field(random, *random.choice(places), places)
    return _written(message)


def _edit_field(random: Random, fields: list[Field], index: int, places: list[tuple[list[Field], int]]) -> None:
    number, wire, value = fields[index]
    alike = [holder[at] for holder, at in places if holder[at][1] == wire]
    how = random.randrange(7)
    if how == 0:
        del fields[index]
    elif how == 1:
        fields[index : index + 1] = [fields[index]] * random.choice((2, 2, 3, 200))
    elif how == 2:
        fields[index] = [random.randint(1, 26), wire, value]
    elif how == 3 and wire == _MESSAGE:
        content = _written(value)
        for _ in range(random.choice((1, 30, 90, 110, 3000))):
            content = _varint(number << 3 | 2) + _varint(len(content)) + content
        fields[index] = [number, 2, content]
    elif wire == 0:
        fields[index] = [number, wire, random.choice((*NUMBERS, *(one[2] for one in alike)))]
    elif wire == _MESSAGE:
        fields[index] = [number, 2, _written(random.choice(alike)[2])]
    elif wire == 2:
        fields[index] = [number, wire, _other_bytes(random, value, [one[2] for one in alike])]
    else:
        fields[index] = [number, wire, random.randbytes(len(value))]


def _other_bytes(random: Random, value: bytes, alike: list[bytes]) -> bytes:
    how = random.randrange(4)
    if how == 0:
        return random.choice(alike)
    if how == 1:
        return random.choice(TEXTS).encode("utf-8", "surrogatepass")
    if how == 2:
        return _varint(random.choice(NUMBERS)) * random.choice((1, 4))
    return any_bytes(random, value)
