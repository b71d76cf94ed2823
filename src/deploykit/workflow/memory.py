"""What source texts resolved to, kept beside the cache of stages, so that a warm export imports neither torch nor timm.

An entry stands for name, options, the versions of the libraries that decide and the content of label files; it is used only
while the weights are still the ones that it was made from.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from deploykit import optional, paths, serde
from deploykit.artifact import sha256_of
from deploykit.errors import BadInputError
from deploykit.export.cache import Cache
from deploykit.models import shards, sources
from deploykit.models.original import Original, SourceOptions

FOLDER = "originals"


def resolve(source: str, options: SourceOptions) -> Original:
    """Do what `sources.resolve` does, or remember what it did.

    Raises:
        DeploykitError: Whatever `sources.resolve` raises.
    """
    path = _entry(source, options)
    if path is None:
        return sources.resolve(source, options)
    known = _read(path)
    if known is not None:
        return known
    original = sources.resolve(source, options)
    _write(path, original)
    return original


def _entry(source: str, options: SourceOptions) -> Path | None:
    """Return where the answer is kept; None where it can't be."""
    scheme, name = sources.scheme_of(source)
    if scheme.decided_by is None:
        return None
    labels = Path(options.labels) if options.labels else None
    if any(path and paths.fault(Path(path)) for path in (options.labels, options.weights)):
        return None
    weights = str(Path(options.weights).resolve()) if options.weights else None
    texts = [scheme.name, name, dataclasses.replace(options, weights=weights)]
    key = serde.digest([*texts, optional.installed(scheme.decided_by), sha256_of(labels) if labels else ""])
    return Cache.default().root / FOLDER / f"{key}.json"


def _read(path: Path) -> Original | None:
    try:
        original = serde.from_json(Original, serde.parse(path.read_bytes()), "original")
        weights = Path(original.weights_file)
        is_current = not original.weights_file or shards.digest_of(weights) == original.weights_sha256
    except (OSError, ValueError, BadInputError):
        return None
    return original if is_current else None


def _write(path: Path, original: Original) -> None:
    """Keep an answer; a cache that can't be written is no reason to fail here."""
    temporary = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(serde.canonical_bytes(original))
        temporary.replace(path)
    except OSError:
        return
