"""Target: what a runtime accepts and prefers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploykit import registry
from deploykit.artifact import Axis, Preprocess, RunConfig
from deploykit.export.quantize.placement import Placement
from deploykit.export.stage import Stage

GROUP = "deploykit.targets"


@dataclass(frozen=True)
class PackageOptions:
    """What a target's stage is told.

    Attributes:
        stem: Name of the files, without the target's endings.
        precision: Of the artifact, embedded in the file.
        labels: Class names by index, embedded in the file.
        preprocess: From image to input, embedded in the file; None where it takes no images.
        axes: Open dimensions by name, with their bounds.
        ranges: Of axes that are tuned for in several parts: the parts, by name.
        capabilities: Compute capabilities of the GPUs that it is built for, as 86 for 8.6; none where the target has none.
        place: The device that it is built on, where that decides what is built.
    """

    stem: str
    precision: str
    labels: tuple[str, ...]
    preprocess: Preprocess | None
    axes: Mapping[str, Axis] = field(default_factory=dict)
    ranges: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    capabilities: tuple[int, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Target:
    """One runtime as an export sees it.

    Attributes:
        name: As on the command line: "ort", "openvino".
        title: As people write it.
        format: Of the files: "onnx", "openvino".
        endings: Of the files that share a stem, the main file's first.
        stage: Makes the files from the hub graph.
        runs: By precision, the ways in which an artifact is judged to run, the recommended one first.
        placements: By precision, how it wants Q/DQ.
        static: Precisions that it computes rightly only where every axis is fixed.
        twin: Another way to run the graph that the files are made of, to tell a wrong runtime from a bad graph; None where
            there is none.
        typed: Layers compute in the type that stands in the graph, so that half precision is cast, never stored alone.
        without: By half precision, operators that it has none of in it: they stay float32.
        refuses: Precisions that others take, to the reason why it doesn't.
        capabilities: By precision, the compute capabilities of GPUs that it can be built for on any machine.
        bounded: It is built for a range of each open axis, and tuned for one size in it.
        builds_on: What must be here to build it; None where its libraries are enough.
        deferred: Name of the target that writes what another machine builds it from, "" where there is none.
        graph: Name of the target that writes the very graph that it is built from, by which it is repaired where it can't run
            itself; "" where there is none.
    """

    name: str
    title: str
    format: str
    endings: tuple[str, ...]
    stage: Stage[PackageOptions]
    runs: Mapping[str, tuple[RunConfig, ...]]
    placements: Mapping[str, Placement] = field(default_factory=dict)
    static: frozenset[str] = frozenset()
    twin: RunConfig | None = None
    typed: bool = False
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bounded: bool = False
    builds_on: RunConfig | None = None
    deferred: str = ""
    graph: str = ""


def get_target(name: str) -> Target:
    """Return the target registered as `name`.

    Raises:
        UsageError: There is none.
    """
    return registry.load(GROUP, name, Target)


def target_names() -> tuple[str, ...]:
    """Return the names of all registered targets."""
    return registry.names(GROUP)
