"""What an RTX engine says of itself: it carries its program as text, in which layers and types can be read without a GPU.

The form is not documented: what is found here is a diagnosis and may be nothing at all. The ground truth of precision is
the strongly typed graph that the engine was built from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

#: Begins the program for some architectures, which it names; what follows for any of them, "{*}", belongs to it.
_PROGRAM: Final = re.compile(rb"accelerators=\{((?:sm\d+ )+)\}")
_TENSOR: Final = re.compile(rb"(?:^|\n)\s*(?:sub_)?tensor=\{[^\n]*?name=\"([^\"]*)\"[^\n]*? type=(\w+) \}")
#: Statements that multiply: convolutions and products, with their operands.
_LAYER: Final = re.compile(rb"(?:^|\n)\s*(corrltn|fully_connected)=\{([^\n]*)\}")
_INPUTS: Final = re.compile(rb" input=\{([^}]*)\}")
_SOURCES: Final = re.compile(rb"\[ONNX Layer: ([^\]]*)\]")
#: Its names of types to ours.
_TYPES: Final[Mapping[bytes, str]] = {
    b"float": "f32",
    b"half": "f16",
    b"bf16": "bf16",
    b"int8": "int8",
    b"fp8_e4m3": "fp8",
}


@dataclass(frozen=True)
class Statement:
    """One layer of a program.

    Attributes:
        capabilities: Of the GPUs that this program is for, as 86 for 8.6.
        operator: As the program calls it: "corrltn" is a convolution, "fully_connected" a product.
        sources: Names of the ONNX nodes that it computes.
        types: Of data and weights.
    """

    capabilities: tuple[int, ...]
    operator: str
    sources: tuple[str, ...]
    types: tuple[str, ...]


def statements(plan: bytes) -> tuple[Statement, ...]:
    """Return the layers of every program in an engine; none where the form isn't recognized."""
    starts = list(_PROGRAM.finditer(plan))
    ends = [start.start() for start in starts[1:]] + [len(plan)][: len(starts)]
    return tuple(
        found
        for start, end in zip(starts, ends, strict=True)
        for found in _statements(plan[start.start() : end], tuple(int(one[2:]) for one in start[1].split()))
    )


def _statements(program: bytes, capabilities: tuple[int, ...]) -> Iterator[Statement]:
    types = {match[1]: match[2] for match in _TENSOR.finditer(program)}
    for match in _LAYER.finditer(program):
        operands = _INPUTS.search(match[2])
        names = re.findall(rb"\"([^\"]*)\"", operands[1]) if operands else []
        kinds = tuple(_TYPES.get(types.get(name, b""), "unknown") for name in names[:2])
        sources = tuple(source.decode(errors="replace") for source in _SOURCES.findall(match[2]))
        yield Statement(capabilities, match[1].decode(), sources, kinds)
