"""What an original is compared by beyond rows: inputs of other sizes, and what becomes of its own outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.bundle import load_tensors, save_tensors
from deploykit.errors import BadInputError
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.batches import load_outputs, save_outputs

#: Names of the files that lie beside golden tensors, and under which manifests keep them.
FURTHER: Mapping[str, str] = {"rollout": "rollout.npz", "sizes": "sizes.npz"}
INPUTS, OUTPUTS = "inputs", "outputs"


@dataclass(frozen=True)
class Sized:
    """Inputs at another size of one axis, and what the original makes of them.

    Attributes:
        axis: Name of the axis.
        size: Its size here.
        inputs: Arrays [N, ...] by name.
        outputs: The original's, by name, as those of golden inputs.
    """

    axis: str
    size: int
    inputs: Tensors
    outputs: Tensors


@dataclass(frozen=True)
class Rollout:
    """How outputs become the next inputs: x <- a x + b f(x) + c noise, the same number of rows in every step.

    Golden inputs are the rows of the first step, then those of the second, and so on.

    Attributes:
        carried: Name of the input x; f is the first output.
        coefficients: a, b and c of each step, float64 [steps, 3].
        noise: float32 [steps, rows, ...].
        latents: What the original's last step made, float32 [rows, ...].
    """

    carried: str
    coefficients: NDArray[np.float64]
    noise: NDArray[np.float32]
    latents: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not (self.coefficients.ndim and self.noise.ndim and self.latents.ndim):
            raise BadInputError(f"a rollout of {self.carried!r} has an array without axes")
        steps = (len(self.coefficients), 3)
        if self.coefficients.shape != steps or self.noise.shape != (steps[0], *self.latents.shape) or not steps[0]:
            raise BadInputError(
                f"a rollout of {self.carried!r} has coefficients {list(self.coefficients.shape)}, noise "
                f"{list(self.noise.shape)} and latents {list(self.latents.shape)}, which don't fit one another"
            )

    @property
    def steps(self) -> int:
        """How often the network is asked."""
        return len(self.coefficients)

    def rows(self, step: int) -> slice:
        """Return which golden rows are those of a step."""
        count = len(self.latents)
        return slice(step * count, (step + 1) * count)

    def play(self, ask: Callable[[Tensors], Tensor], inputs: Tensors) -> NDArray[np.float32]:
        """Ask again and again; return what the last step made, float32 [rows, ...].

        Args:
            ask: From the inputs of one step to the first output, [rows, ...].
            inputs: The golden inputs; of the carried one only the rows of the first step are taken.
        """
        values = inputs[self.carried][self.rows(0)]
        for step, (of_values, of_answer, of_noise) in enumerate(self.coefficients):
            feeds = {name: array[self.rows(step)] for name, array in inputs.items()}
            answer = ask({**feeds, self.carried: values}).astype(np.float64)
            values = (of_values * values + of_answer * answer + of_noise * self.noise[step]).astype(np.float32)
        return values

    def save(self, path: Path) -> None:
        """Write it as an .npz."""
        arrays: dict[str, Tensor] = {"coefficients": self.coefficients, "noise": self.noise, "latents": self.latents}
        save_tensors(path, {f"{self.carried}/{name}": array for name, array in arrays.items()})

    @classmethod
    def load(cls, path: Path) -> Rollout:
        """Read what `save` wrote.

        Raises:
            BadInputError: The file is damaged, or holds something else.
        """
        found = load_tensors(path)
        carried = next(iter(found), "").rpartition("/")[0]
        try:
            return cls(carried, *(found[f"{carried}/{name}"] for name in ("coefficients", "noise", "latents")))
        except KeyError as error:
            raise BadInputError(f"{path} is no rollout: it has no array {error}") from error


def save_sized(path: Path, sets: Iterable[Sized]) -> None:
    """Write sets of inputs and outputs as an .npz."""
    arrays: dict[str, Tensor] = {}
    for one in sets:
        for side, tensors in ((INPUTS, one.inputs), (OUTPUTS, one.outputs)):
            arrays |= {f"{one.axis}={one.size}/{side}/{name}": array for name, array in tensors.items()}
    save_outputs(path, arrays)


def load_sized(path: Path) -> tuple[Sized, ...]:
    """Read what `save_sized` wrote.

    Raises:
        BadInputError: The file is damaged, or holds something else.
    """
    found: dict[tuple[str, int], dict[str, dict[str, Tensor]]] = {}
    for key, array in load_outputs(path).items():
        place, _, rest = key.partition("/")
        side, _, name = rest.partition("/")
        axis, _, size = place.partition("=")
        if not (axis and size.isdecimal() and side in {INPUTS, OUTPUTS} and name):
            raise BadInputError(f"{path} holds no inputs of other sizes: {key!r}")
        found.setdefault((axis, int(size)), {INPUTS: {}, OUTPUTS: {}})[side][name] = array
    return tuple(Sized(axis, size, sides[INPUTS], sides[OUTPUTS]) for (axis, size), sides in found.items())
