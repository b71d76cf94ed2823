"""Probe: how an original of some kind is asked, so that artifacts have something to answer too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from deploykit import registry
from deploykit.bundle import load_tensors
from deploykit.errors import BadInputError, Hint, UnsupportedError
from deploykit.export.reference import ImagesOptions, OutputsOptions, outputs_stage
from deploykit.export.stage import TENSORS, Item, Node, Stage
from deploykit.models.original import Original
from deploykit.runtime import power
from deploykit.runtime.backends.base import Tensors
from deploykit.runtime.golden import Golden
from deploykit.runtime.rollout import FURTHER, Rollout, load_sized

GROUP = "deploykit.probes"
#: Ids of the nodes: of the original, which plans are given, and of the golden inputs.
ORIGINAL, GOLDEN_IMAGES, GOLDEN = "original", "golden-images", "golden"
#: What activations are measured on: images, or inputs.
CALIBRATION = "calibration-images"


@dataclass(frozen=True)
class Asked:
    """What reference inputs are wanted.

    Attributes:
        count: How many golden inputs.
        tried: Sizes of open axes to have inputs of beside the usual ones, by axis.
        images: The images that they are taken from, where the original takes images.
        at_once: Rows that the original is asked at once.
    """

    count: int
    tried: Mapping[str, tuple[int, ...]]
    images: ImagesOptions | None
    at_once: int = 1


@dataclass(frozen=True)
class Prompts:
    """What an original that takes no images is calibrated on.

    Attributes:
        path: File of the prompts; "" where they are seeded.
        sha256: Of its content.
        count: How many.
    """

    path: str
    sha256: str
    count: int


class Probe(ABC):
    """One way to ask originals, registered under `deploykit.probes`; an original's interface names it."""

    name: ClassVar[str]

    @abstractmethod
    def nodes(self, original: Original, asked: Asked) -> tuple[Node, ...]:
        """Return the nodes that make golden inputs; the last one is called `GOLDEN` and makes tensors.

        Beside the tensors it may leave files of `deploykit.runtime.rollout.FURTHER`.
        """

    def described(self, images: str, count: int) -> str:  # noqa: ARG002 - of images, their set says all
        """Return what golden inputs were taken from, in a few words.

        Args:
            images: Name of the set of images; "" where the original takes none.
            count: How many golden inputs there are.
        """
        return images

    def prompts(self, original: Original, file: str | None, most: int, *, few: bool) -> Prompts:  # noqa: ARG002
        """Return what 8 bits are calibrated on where images say nothing of an original's inputs.

        Args:
            original: What it is for.
            file: What the user gave.
            most: How many inputs to measure activations on.
            few: Few are enough.

        Raises:
            UnsupportedError: It can't be done.
            UsageError: A file is needed, or another one.
            BadInputError: The file is damaged.
        """
        raise UnsupportedError(
            f"no 8 bits of {original.id}: it takes no images to measure activations on", Hint("--fp16")
        )

    def walked(self, original: Original, prompts: Prompts, graph: str) -> Node:
        """Return the node, called `CALIBRATION`, that makes tensors of prompts by the graph of node `graph`."""
        raise NotImplementedError

    def outputs(self, original: Original) -> Stage[OutputsOptions]:
        """Return the stage that gives the original's outputs of the golden inputs: it is asked, unless it was already."""
        return outputs_stage(original)

    @abstractmethod
    def golden(self, original: Original, asked: Asked) -> Golden:
        """Make golden inputs and ask the original, at once and without a plan.

        Raises:
            MissingComponentError: What it takes is not installed.
            BadInputError: The original's weights are missing or changed.
        """


def get_probe(name: str) -> Probe:
    """Return the probe registered as `name`.

    Raises:
        UsageError: There is none.
    """
    return registry.load(GROUP, name, Probe)


def golden_of(item: Item, references: Mapping[str, Tensors]) -> Golden:
    """Read golden inputs, with what lies beside them.

    Args:
        item: What the node `GOLDEN` made.
        references: Outputs by who computed them.
    """
    further = {role: item.root / name for role, name in FURTHER.items() if item.has(name)}
    return golden_at(item.path(TENSORS), further, references)


def golden_at(inputs: Path, further: Mapping[str, Path], references: Mapping[str, Tensors]) -> Golden:
    """Read golden inputs from a file, with the files that lie beside it: by roles in `rollout.FURTHER`, and `power.ROLE`."""
    tensors = load_tensors(inputs)
    if not tensors or not all(array.ndim and len(array) for array in tensors.values()):
        raise BadInputError(f"{inputs} holds no golden inputs: a tensor of it has no rows")
    return Golden(
        tensors,
        references,
        load_sized(further["sizes"]) if "sizes" in further else (),
        Rollout.load(further["rollout"]) if "rollout" in further else None,
        power.load_faults(further[power.ROLE]) if power.ROLE in further else (),
    )
