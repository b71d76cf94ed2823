"""What every session on an NVIDIA GPU does alike: inputs up, work queued on a stream of its own, results down, and each timed.

Times of the GPU are those of events in the stream. What the host needs to queue the work is measured apart: where it takes
longer than the work itself, the GPU waits for the host.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from deploykit.artifact import TensorSpec
from deploykit.errors import DeploykitError
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import Nanoseconds, Session, Tensor
from deploykit.verdict import PHASES, Ran

_UPLOAD, _COMPUTE, _DOWNLOAD, _ENQUEUE = PHASES
_NS_PER_MS: Final = 1e6


class Place(NamedTuple):
    """A tensor in the GPU's memory."""

    address: int
    shape: tuple[int, ...]
    dtype: str


class GpuSession(Session):
    """A session whose work is queued on one lane of a GPU."""

    def __init__(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], ran: Ran, lane: cuda.Lane
    ) -> None:
        super().__init__(inputs, outputs, ran)
        self._lane = lane

    @abstractmethod
    def _prepare(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        """Make ready for feeds of these shapes and return the address of each input."""

    @abstractmethod
    def _enqueue(self) -> None:
        """Queue the work on the lane's stream."""

    @abstractmethod
    def _results(self) -> dict[str, Place]:
        """Return where the outputs of the work that was queued last will be."""

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        lane = self._lane
        lane.enter()
        with self._settled():
            for name, address in self._prepare(feeds).items():
                lane.upload(feeds[name], address)
            self._enqueue()
            return {name: lane.download(*place) for name, place in self._results().items()}

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Leave when all that was queued is done, also after an error: it reads and writes arrays that are freed then."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(DeploykitError):
                self._lane.wait()
            raise
        self._lane.wait()

    def phases(self, feeds: Mapping[str, Tensor], iterations: int) -> dict[str, Nanoseconds]:
        """Return how long each part of `iterations` inferences took, apart: see `deploykit.verdict.PHASES`."""
        native = self._checked(feeds)
        taken = {name: np.zeros(iterations, np.int64) for name in PHASES}
        self._lane.enter()
        with self._settled(), self._lane.marks(4) as marks:
            for index in range(iterations):
                for name, nanoseconds in self._phases_once(native, marks).items():
                    taken[name][index] = nanoseconds
        return taken

    def _phases_once(self, feeds: Mapping[str, Tensor], marks: cuda.Marks) -> dict[str, int]:
        lane = self._lane
        addresses = self._prepare(feeds)
        lane.wait()
        marks.set(0)
        for name, address in addresses.items():
            lane.upload(feeds[name], address)
        marks.set(1)
        started = time.perf_counter_ns()
        self._enqueue()
        queued = time.perf_counter_ns()
        marks.set(2)
        results = [lane.download(*place) for place in self._results().values()]
        marks.set(3)
        lane.wait()
        del results  # they had to live until the copies were done
        spans = {_UPLOAD: (0, 1), _COMPUTE: (1, 2), _DOWNLOAD: (2, 3)}
        found = {name: round(marks.milliseconds(*span) * _NS_PER_MS) for name, span in spans.items()}
        return {**found, _ENQUEUE: queued - started}

    def _close(self) -> None:
        self._lane.close()
