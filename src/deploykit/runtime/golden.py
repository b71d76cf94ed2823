"""Golden inputs: fixed ones, with what was computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deploykit.artifact import TensorSpec
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.batches import CHUNK
from deploykit.runtime.power import InjectedFault
from deploykit.runtime.rollout import Rollout, Sized

#: Who computed reference outputs: the original, and the simplified fp32 graph in ONNX Runtime.
ORIGINAL, HUB = "original", "hub"
#: Sizes that a dynamic axis is run at; the traced one is left out, so that at least three remain.
AXIS_SIZES = (1, 3, 5, 8)
#: The same where a row is a diffusion model's, which takes seconds and a gigabyte.
FEW_SIZES = (1, 3)


@dataclass(frozen=True)
class Golden:
    """Fixed inputs and what was computed from them.

    Attributes:
        inputs: The inputs, arrays [G, ...] by name.
        references: Outputs of "original", and of "hub" (the simplified fp32 ONNX in ONNX Runtime) where known, by name; as
            `deploykit.runtime.batches.Answered.arrange` makes them, [G, ...] where they have rows.
        sized: Inputs of other sizes of open axes, with the original's outputs.
        rollout: How outputs become the next inputs, where the model is asked again and again.
        faults: What wrong graphs answer to them; empty where that is not on record.
        rounding: By output, the mean square of what float32 rounds of the original's; empty where it was not measured.
    """

    inputs: Tensors
    references: Mapping[str, Tensors]
    sized: tuple[Sized, ...] = ()
    rollout: Rollout | None = None
    faults: tuple[InjectedFault, ...] = ()
    rounding: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of golden inputs."""
        return len(next(iter(self.inputs.values())))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes to run an open batch at, the one that it was traced at apart."""
        return AXIS_SIZES if self.rollout is None else FEW_SIZES

    def rows(self, traced: int | None) -> int:
        """Return how many rows to run at a time where the batch is open.

        One of a diffusion model's, whose attention compares every pixel with every other; else as many as the original was
        asked at once, which is what it was traced at, so that outputs without rows can be compared too.

        Args:
            traced: That size; None where it isn't known.
        """
        return 1 if self.rollout is not None else traced or min(CHUNK, self.count)


def feeds_of(specs: tuple[TensorSpec, ...], golden: Golden, batch: int) -> dict[str, Tensor]:
    """Return golden inputs as one feed: the static batch, or `batch` rows where it is dynamic."""
    size = next((dim for spec in specs for dim in spec.shape[:1] if isinstance(dim, int)), batch)
    return {
        spec.name: np.resize(golden.inputs[spec.name], (size, *golden.inputs[spec.name].shape[1:])) for spec in specs
    }
