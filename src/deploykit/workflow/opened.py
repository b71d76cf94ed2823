"""Bundles as files of strangers: what they say is data, and opens no code, no hub and no other folder."""

from __future__ import annotations

import re
from pathlib import Path

from deploykit.artifact import Artifact, RunConfig
from deploykit.bundle import Bundle
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.manifest import FILE, Manifest
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.runtime.backends.base import backend_names, get_backend
from deploykit.runtime.backends.external_data import companions

#: What must be the same of an original that the user names and of the one that the bundle was made from.
COMPARED = ("weights_sha256", "task", "preprocess", "labels", "interface")
#: Options of a network that ships with the package which a bundle may ask for: they lead nowhere.
HARMLESS = frozenset({"embedding", "random_weights"})


def open_bundle(root: Path) -> Bundle:
    """Open a bundle and compare every file with its hash.

    Raises:
        UsageError: There is no such folder.
        BadInputError: It is no bundle, a file is damaged or was changed, it says of an artifact to run it as no runtime is
            told, or an artifact takes weights from a file that the manifest doesn't describe.
    """
    bundle = read_bundle(root)
    bundle.check()
    for artifact in bundle.manifest.artifacts:
        _check_companions(root, artifact)
    return bundle


def read_bundle(root: Path) -> Bundle:
    """Open a bundle whose files are compared one by one, as they are used.

    Raises:
        UsageError: There is no such folder.
        BadInputError: It is no bundle, its manifest is damaged, or it says of an artifact to run it as no runtime is told.
    """
    bundle = Bundle.open(root)
    known = backend_names()
    for artifact in bundle.manifest.artifacts:
        for run in artifact.runs:
            reason = _fault(artifact, run) if run.backend in known else ""
            if reason:
                raise BadInputError(f"{root / FILE} says how to run {artifact.name}, and that isn't done: {reason}")
    return bundle


def check_seal(target: Path, seal: str) -> None:
    """Compare the seal of a bundle with the one that its maker told, on another way than the bundle's own.

    The seal covers the manifest, and the manifest the hash of every file.

    Args:
        target: A bundle's folder, or the file of an artifact in one, whose bytes are compared as well.
        seal: The manifest's field "seal", a SHA-256 in hexadecimal; `deploykit inspect` prints it.

    Raises:
        UsageError: No such folder, or `seal` is no SHA-256.
        BadInputError: It is another manifest, or `target` is not a file that it describes.
    """
    if not re.fullmatch("[0-9a-f]{64}", seal.lower()):
        raise UsageError(f"{seal[:80]!r} is no seal: those are 64 hexadecimal digits, see deploykit inspect BUNDLE")
    root = target if target.is_dir() else target.parent
    bundle = Bundle.open(root)
    if bundle.manifest.seal != seal.lower():
        raise BadInputError(
            f"{root / FILE} is not the manifest that was meant: its seal is {bundle.manifest.seal}, not {seal.lower()}"
        )
    if target.is_dir():
        return
    for artifact in bundle.manifest.artifacts:
        if artifact.main.path == target.name:
            for record in artifact.files:
                record.check(root)
            return
    raise BadInputError(f"{target} is no artifact of the bundle in {root}, so its seal says nothing of it")


def check_artifact(root: Path, artifact: Artifact) -> None:
    """Compare an artifact's files with their hashes before one of them is opened.

    Raises:
        BadInputError: One is damaged or was changed, or it takes weights from a file that the manifest doesn't describe.
    """
    for record in artifact.files:
        record.check(root)
    _check_companions(root, artifact)


def _check_companions(root: Path, artifact: Artifact) -> None:
    """Refuse an artifact that takes weights from a file of which no hash is known: whoever changed it would go unnoticed."""
    main = root / artifact.main.path
    described = {root / record.path for record in artifact.files}
    for name in companions(main) if main.is_file() else ():
        if main.parent / name not in described:
            raise BadInputError(f"{main} takes weights from {name!r}, a file that {root / FILE} doesn't describe")


def _fault(artifact: Artifact, run: RunConfig) -> str:
    backend = get_backend(run.backend)
    if not (backend.suffixes and artifact.main.path.endswith(backend.suffixes)):
        return f"{backend.name} opens no {artifact.main.path!r}"
    return backend.fault(run)


def original_of(manifest: Manifest, reference: str | None = None, options: SourceOptions | None = None) -> Original:
    """Return the original of a bundle, which may then be opened.

    A manifest names its original by a text: code to import, a file, a repository. Whoever wrote the bundle chose that text, so
    it is opened only where the package ships all of it. Any other original the user names again.

    Args:
        manifest: Of the bundle.
        reference: Source that the user names.
        options: How it is opened; the user's own words as well.

    Raises:
        UsageError: It has to be named, or what is named is another original.
        BadInputError: The manifest locates no original.
        DeploykitError: Whatever resolving it raises.
    """
    options = options or SourceOptions()
    recorded = sources.read_locator(manifest.source.locator)
    if reference is None and options.given:
        raise UsageError(
            f"{', '.join(options.given)}: of which original? A bundle's own is opened as the bundle was made",
            Hint("--reference MODEL", "names the original that this is for"),
        )
    if reference is None:
        if not _ships(recorded):
            raise UsageError(
                f"the original is {recorded.scheme}:{recorded.name}, and what a bundle names is not opened for its word",
                Hint("--reference MODEL", "names it yourself, with the options that it was exported with"),
            )
        reference, options = f"{recorded.scheme}:{recorded.name}", recorded.options
    found = sources.resolve(reference, options)
    differing = [name.removesuffix("_sha256") for name in COMPARED if getattr(found, name) != getattr(recorded, name)]
    if differing or recorded.weights_sha256 != manifest.source.weights_sha256:
        raise UsageError(
            f"{reference} is not the original of this bundle: other {' and '.join(differing) or 'weights'}",
            Hint("--reference MODEL", "with the options that the bundle was exported with"),
        )
    return found


def _ships(recorded: Original) -> bool:
    """Tell whether the package brings the whole of an original."""
    return sources.ships(recorded.scheme, recorded.name) and recorded.options.given.keys() <= HARMLESS
