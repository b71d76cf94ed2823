"""What a runtime's integer kernels make of sums of products on this machine, found out by a network of known answers.

The network (`products.onnx`, written by scripts/write_probe.py) multiplies the brightest data by weights whose neighbouring
products pass 16 bits: whoever adds them there answers about half. It runs in a process of its own, so that a runtime that
crashes is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from deploykit.artifact import RunConfig
from deploykit.errors import DeploykitError
from deploykit.runtime.backends.base import Tensor, backend_names, get_backend
from deploykit.runtime.processors import Processor, Sums, here
from deploykit.runtime.worker import open_in_worker

FILE: Final = Path(__file__).parent / "products.onnx"
#: Of the data and of the weights; their product, and the largest and least of 16 bits.
BRIGHT, LARGEST = 255, 127
FULL: Final = BRIGHT * LARGEST
_MOST, _LEAST = 2**15 - 1, -(2**15)
#: Weights of even and odd place: pairs that saturate on either side, pairs that fit, pairs that cancel out.
PATTERNS: Final = ((LARGEST, LARGEST), (-LARGEST, -LARGEST), (64, 64), (LARGEST, -LARGEST))
#: Channels that each layer answers with; the patterns take turns.
CHANNELS: Final = 16
#: Side of the convolution's kernel, and its channels; rows of the product.
KERNEL, ROWS = (3, 16), 4
#: Layers by the name of their output: how many products each of their answers is the sum of.
OUTPUTS: Final[Mapping[str, int]] = {"convolution": KERNEL[0] ** 2 * KERNEL[1], "product": 64}
#: Steps that the largest sum is rounded to.
CODES: Final = 120


@dataclass(frozen=True)
class Found:
    """What a runtime does here.

    Attributes:
        backend: Name of the runtime's backend.
        title: As people write it.
        processor: Class of the processor.
        known: What is on record of this runtime on this class.
        found: What it does; None where it could not be found out.
        reason: Why not, or how else it answers; "" where there is nothing to say.
    """

    backend: str
    title: str
    processor: str
    known: Sums
    found: Sums | None
    reason: str = ""

    @property
    def contradicts(self) -> bool:
        """It does otherwise than is on record."""
        return self.found is not None and self.known is not Sums.UNKNOWN and self.found is not self.known

    @property
    def text(self) -> str:
        """Such as "ONNX Runtime: pairs saturate (avx2)"."""
        told = (
            f"not found out: {self.reason}"
            if self.found is None
            else self.found.value + (self.reason and f", {self.reason}")
        )
        return f"{self.title}: {told} ({self.processor})"

    @property
    def warning(self) -> str:
        """What has to be told beside it, "" where it is as it is on record."""
        if not self.contradicts or self.found is None:
            return ""
        return (
            f"{self.title} adds otherwise here than is on record for {self.processor} ({self.found.value}, not "
            f"{self.known.value}): int8 verdicts of that class may not hold here; judge on this machine"
        )


def probe() -> tuple[Found, ...]:
    """Return what each runtime that is installed here, and that a class says something of, does on this processor."""
    processor = here()
    backends = [get_backend(name) for name in backend_names() if name in processor.sums]
    present = [one.name for one in backends if one.component.version() is not None]
    if not present:
        return ()
    with ThreadPoolExecutor(len(present)) as pool:  # they wait for their processes
        return tuple(pool.map(lambda name: probe_backend(name, processor), present))


def probe_backend(name: str, processor: Processor, file: Path = FILE) -> Found:
    """Return what one runtime does here.

    Args:
        name: Of its backend.
        processor: Class of this machine's processor.
        file: The network.
    """
    title, known = get_backend(name).component.title, processor.sums_in(name)
    feeds = {
        "rows": np.full((ROWS, OUTPUTS["product"]), BRIGHT, np.float32),
        "image": np.full((1, KERNEL[1], KERNEL[0] + 2, KERNEL[0] + 2), BRIGHT, np.float32),
    }
    try:
        with open_in_worker(str(file), RunConfig(name, precision="f32", threads=1)) as session:
            answers = session.infer(feeds)
    except DeploykitError as error:
        return Found(name, title, processor.name, known, None, error.message.partition("\n")[0])
    kinds = {output: kind_of(answers[output], terms) for output, terms in OUTPUTS.items()}
    if None in kinds.values():
        odd = ", ".join(output for output, kind in kinds.items() if kind is None)
        return Found(name, title, processor.name, known, None, f"its {odd} is neither the exact sum nor that of pairs")
    saturating = [output for output, kind in kinds.items() if kind is Sums.PAIRS]
    some = f"in its {saturating[0]} alone" if 0 < len(saturating) < len(kinds) else ""
    return Found(name, title, processor.name, known, Sums.PAIRS if saturating else Sums.EXACT, some)


def kind_of(answer: Tensor, terms: int) -> Sums | None:
    """Return what an answer, whose axis 1 is its channels, tells of the sums of `terms` products; None where neither is true.

    A sum that lies between the two, of kernels that add some of the pairs in 16 bits, saturates.
    """
    step = FULL * terms / CODES
    by_pattern = [np.moveaxis(answer, 1, 0)[index :: len(PATTERNS)] for index in range(len(PATTERNS))]
    bounds = list(_bounds(terms))
    if all(np.all(np.abs(found - exact) <= step) for found, (exact, _) in zip(by_pattern, bounds, strict=True)):
        return Sums.EXACT
    between = (
        np.all((found >= min(pair) - step) & (found <= max(pair) + step))
        for found, pair in zip(by_pattern, bounds, strict=True)
    )
    return Sums.PAIRS if all(between) else None


def _bounds(terms: int) -> Iterator[tuple[int, int]]:
    """Yield the sum of each pattern, exactly and with every pair in 16 bits."""
    for even, odd in PATTERNS:
        pair = BRIGHT * (even + odd)
        yield terms // 2 * pair, terms // 2 * min(max(pair, _LEAST), _MOST)
