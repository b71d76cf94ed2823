"""On which device an artifact runs: where its RunConfigs say, or where a user wants everything."""

from __future__ import annotations

from deploykit.artifact import Artifact, RunConfig
from deploykit.runtime.backends.base import get_backend


def runs_on(artifact: Artifact, device: str | None) -> tuple[RunConfig, ...]:
    """Return an artifact's RunConfigs, each on `device` where one is named.

    What computes as another machine would has no device to be put on: it is left out where one is named.
    """
    if device is None:
        return artifact.runs
    found: list[RunConfig] = []
    for run in artifact.runs:
        if not get_backend(run.backend).stands_in and run.on(device) not in found:
            found.append(run.on(device))
    return tuple(found)
