"""Disk: is there room where an export will really write, and may it?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploykit.errors import Hint, ResourceError, UsageError
from deploykit.folders import cache_folder

#: Graphs with all weights that a plan may hold on disk at once: traced, simplified, rewritten, and one in the making.
GRAPH_COPIES = 4


def work_folder(*, cached: bool) -> Path:
    """Return where stages write: the cache, or the folder for temporary files."""
    return cache_folder() if cached else Path(tempfile.gettempdir())


def check_disk(out: Path, parameters: int, artifacts: int, *, cached: bool) -> None:
    """Refuse a request whose fp32 weights can't fit: where stages write per graph and artifact, in the bundle per artifact.

    Args:
        out: The bundle's folder.
        parameters: Of the original.
        artifacts: That are asked for.
        cached: Whether stages keep what they make.

    Raises:
        UsageError: A file lies where a folder has to be.
        ResourceError: A disk has too little room, or can't be written.
    """
    weights = 4 * parameters
    work = work_folder(cached=cached)
    needs = {work: (GRAPH_COPIES + artifacts) * weights, out: artifacts * weights}
    for place, needed in by_disk(needs).items():
        free = shutil.disk_usage(place).free
        if free < needed:
            raise ResourceError(
                f"{place} has {free / 1e9:.2f} GB free; this export may need {needed / 1e9:.2f} GB",
                Hint("--out DIR", "writes the bundle elsewhere"),
                Hint("DEPLOYKIT_CACHE=DIR", "caches elsewhere")
                if cached
                else Hint("TMPDIR=DIR", "works elsewhere, as --no-cache does in the folder for temporary files"),
            )


def by_disk(needs: Mapping[Path, int]) -> dict[Path, int]:
    """Return what is needed on each disk, by one place on it.

    Raises:
        UsageError: A file lies where a folder has to be.
        ResourceError: A place can't be written.
    """
    found: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs.items():
        place = _above(folder)
        disk = place.stat().st_dev
        first, so_far = found.get(disk, (place, 0))
        found[disk] = first, so_far + needed
    return dict(found.values())


def _above(folder: Path) -> Path:
    """Return the first folder that exists of a path and those above it, which may be written."""
    for place in _upwards(folder):
        if place.is_dir():
            if not os.access(place, os.W_OK | os.X_OK):
                raise ResourceError(
                    f"{place} can't be written" + ("" if place == folder else f", to make {folder} in it")
                )
            return place
        if os.path.lexists(place):
            raise UsageError(f"{folder} can't be a folder: {place} is something else")
    raise UsageError(f"{folder} can't be a folder: nothing of it exists")


def _upwards(folder: Path) -> Iterable[Path]:
    absolute = folder.absolute()
    return (absolute, *absolute.parents)
