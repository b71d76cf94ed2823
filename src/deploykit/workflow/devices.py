"""On which device an artifact runs: where its RunConfigs say, or where a user wants everything."""

from __future__ import annotations

from deploykit.artifact import Artifact, RunConfig
from deploykit.runtime.backends.base import get_backend


def runs_on(artifact: Artifact, device: str | None) -> tuple[RunConfig, ...]:
    """Return an artifact's RunConfigs, each on `device` where one is named, in every way that is here.

    What computes as another machine would has no device to be put on: it is left out where one is named.
    """
    if device is None:
        return artifact.runs
    backends = ((run, get_backend(run.backend)) for run in artifact.runs)
    placed = [way for run, backend in backends if not backend.stands_in for way in backend.on(run, device)]
    return tuple(way for index, way in enumerate(placed) if way not in placed[:index])
