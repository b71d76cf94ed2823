"""A bare artifact beside its original: which of its inputs and outputs are whose, and how many rows it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import UsageError
from deploykit.runtime.backends.base import Session, Tensor, Tensors
from deploykit.runtime.golden import Golden

#: Rows that an original is asked at once where an artifact takes any number.
ROWS = 2


@dataclass(frozen=True)
class Interface:
    """What an artifact takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, session: Session) -> Interface:
        """Read a session's."""
        return cls(session.inputs, session.outputs)

    @property
    def axes(self) -> dict[str, int]:
        """The batch where it is open, with the number of rows that an original is to be asked at once beside it."""
        batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1
        return {batch.name: min(max(ROWS, batch.min), batch.max)} if isinstance(batch, Axis) else {}

    @property
    def rows(self) -> int:
        """How many rows an original is asked at once beside it."""
        batch = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else 1
        return self.axes[batch.name] if isinstance(batch, Axis) else batch


def matched(golden: Golden, original: str, artifact: Interface) -> tuple[Golden, tuple[str, ...]]:
    """Return golden inputs and outputs under an artifact's own names, and what there is to say about that.

    One input and one output are matched by their place.

    Args:
        golden: Under the names of an original that answered to them.
        original: Its name.
        artifact: What is to be compared with it.

    Raises:
        UsageError: Names differ where there are several.
    """
    inputs, said_of_inputs = _pairs("input", tuple(golden.inputs), artifact.inputs, original)
    (wanted, *_) = golden.references.values()
    outputs, said_of_outputs = _pairs("output", tuple(wanted), artifact.outputs, original)
    rollout = None if golden.rollout is None else replace(golden.rollout, carried=inputs[golden.rollout.carried])
    sized = tuple(
        replace(one, inputs=_renamed(one.inputs, inputs), outputs=_renamed(one.outputs, outputs))
        for one in golden.sized
    )
    references = {who: _renamed(found, outputs) for who, found in golden.references.items()}
    found = replace(
        golden,
        inputs=_renamed(golden.inputs, inputs),
        references=references,
        sized=sized,
        rollout=rollout,
        rounding={outputs[name]: value for name, value in golden.rounding.items()},
    )
    return found, (*said_of_inputs, *said_of_outputs)


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names[name]: array for name, array in tensors.items()}


def _pairs(
    side: str, wanted: tuple[str, ...], found: tuple[TensorSpec, ...], original: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the artifact's name of each of the original's, and what is to be said where they differ."""
    names = tuple(spec.name for spec in found)
    if set(wanted) == set(names):
        return {name: name for name in wanted}, ()
    if len(wanted) == len(names) == 1:
        return {wanted[0]: names[0]}, (f"its one {side} {names[0]!r} is taken for {wanted[0]!r} of {original}",)
    raise UsageError(
        f"{side}s can't be matched by name: {original} has {', '.join(wanted)}, the artifact has {', '.join(names)}"
    )
