"""Interface: what an original takes and gives, and how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploykit.artifact import Axis, TensorSpec
from deploykit.serde import LATER

#: The axis that every input begins with.
BATCH = "batch"


@dataclass(frozen=True)
class Input:
    """An input of an original.

    Attributes:
        name: Of the input, in every artifact too.
        dtype: numpy's name of its type.
        shape: Sizes, and names of axes where a dimension may stay open; the first one is "batch".
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return its shape where its axes have these sizes."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)

    def spec(self, axes: Mapping[str, Axis | int]) -> TensorSpec:
        """Return it as sessions declare inputs, with these axes and sizes."""
        return TensorSpec(
            self.name, self.dtype, tuple(axes[dim] if isinstance(dim, str) else dim for dim in self.shape)
        )

    def places(self, axes: Mapping[str, object]) -> dict[int, str]:
        """Return where those of its axes lie that are among `axes`."""
        return {place: dim for place, dim in enumerate(self.shape) if isinstance(dim, str) and dim in axes}


@dataclass(frozen=True)
class Interface:
    """What an original takes and gives.

    Attributes:
        inputs: In the order in which its module takes them.
        output: Name of the first output.
        answer: The first output's shape, as of an `Input`; empty where only running it tells.
        sizes: Of each axis but the batch, where it isn't left open.
        probe: Name of the registered probe that makes reference inputs.
        further: Names of further outputs; None where there are none.
    """

    inputs: tuple[Input, ...]
    output: str
    answer: tuple[int | str, ...]
    sizes: Mapping[str, int]
    probe: str
    further: tuple[str, ...] | None = field(default=None, metadata=LATER)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs."""
        return (self.output, *(self.further or ()))

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of all axes, in the order in which they first come."""
        dims = (dim for each in self.inputs for dim in each.shape)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))

    def at(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return each input's shape, by name, where these axes have these sizes and the others their usual ones."""
        known = {BATCH: 1, **self.sizes, **sizes}
        return {each.name: each.at(known) for each in self.inputs}
