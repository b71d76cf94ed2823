"""Bundle: a folder whose manifest describes complete files with the right hashes, at every moment.

Writing is a commit. New files are placed under names that collide with nothing, then the manifest is replaced by
`os.replace`, then files that only the old manifest named are removed. Before the first file is placed, a journal lists the
names, so that a writer that was killed leaves nothing behind that the next one can't tell from somebody else's files.
Writers hold the folder meanwhile (`deploykit.locks`); one that finds another manifest than it began with commits nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import manifest as manifests
from deploykit import paths, serde
from deploykit.arrays import SUFFIX, Header, check_archive
from deploykit.artifact import FileRecord, sha256_of
from deploykit.errors import BadInputError, Hint, ResourceError, UsageError
from deploykit.locks import LOCK
from deploykit.manifest import Manifest

JOURNAL = ".deploykit-journal.json"
INCOMING = ".deploykit-incoming"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, root: Path) -> Bundle:
        """Read the manifest of the bundle at `root`; hashes are compared by `check`.

        Raises:
            UsageError: There is no such folder.
            BadInputError: The folder is no bundle, or its manifest is damaged.
        """
        path = root / manifests.FILE
        if not root.is_dir():
            beside = root.parent / manifests.FILE
            hints = (
                [Hint(str(root.parent), "is the bundle that it lies in")] if root.exists() and beside.is_file() else []
            )
            raise UsageError(f"{paths.shown(root)} {paths.fault(root) or 'is a file'}: a bundle is a folder", *hints)
        if not path.is_file():
            raise BadInputError(f"{root} is no bundle: it holds no {manifests.FILE}")
        if path.stat().st_size > manifests.LARGEST:
            raise BadInputError(
                f"{path} has {path.stat().st_size:,} bytes: no manifest has more than {manifests.LARGEST:,}"
            )
        return cls(root, manifests.parse(path.read_bytes(), str(path)))

    def check(self) -> None:
        """Compare every file with its recorded size and hash.

        Raises:
            BadInputError: The first file that differs.
        """
        for record in self.manifest.files:
            record.check(self.root)

    def path(self, record: FileRecord) -> Path:
        """Return where a recorded file lies, after checking it."""
        return record.check(self.root)


def load_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read an .npz without ever unpickling; a file can't make it take memory that it doesn't hold values for.

    Raises:
        BadInputError: Damaged, or it holds objects, or it would unpack to far more than it is.
    """
    if reason := paths.fault(path):
        raise BadInputError(f"{paths.shown(path)} {reason}")
    try:
        with zipfile.ZipFile(path) as archive:  # np.load takes a member with a wrong checksum, and leaves files open
            check_archive(path, archive)
            return {info.filename.removesuffix(SUFFIX): _tensor(archive.read(info)) for info in archive.infolist()}
    except BadInputError:
        raise
    except Exception as error:  # a damaged file leads the parsers of numpy and of archives to any error there is
        raise BadInputError(f"{path} is no safe .npz: {_first_line(error)}") from error


def _tensor(data: bytes) -> NDArray[Any]:
    return Header.read(io.BytesIO(data)).array(data).copy(order="K")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name as an .npz; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:  # np.savez can't write a tensor that is called "file"
        for name, array in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}{SUFFIX}"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


@dataclass(frozen=True)
class Placement:
    """A finished file outside the bundle and the name that it shall have inside."""

    source: Path
    record: FileRecord


class BundleWriter:
    """Commits files and a manifest into a folder.

    Args:
        root: The bundle's folder; made where it is missing.
        source_digest: Content hash of the original that is exported.
        replace: Give up what another original or somebody else left there.

    Raises:
        UsageError: The folder holds another original's bundle or foreign files, and `replace` is off.
    """

    def __init__(self, root: Path, source_digest: str, *, replace: bool) -> None:
        self.root = root
        self._found = self._on_disk()
        self.old = self._old_manifest(replace=replace)
        self._described = {record.path: record for record in self.old.files} if self.old is not None else {}
        self._ours = {manifests.FILE, JOURNAL, LOCK, *self._described, *self._journal()}
        if self.old is not None and self.old.source.digest != source_digest and not replace:
            raise UsageError(
                f"{root} holds {self.old.source.id}, another original (or other weights)",
                Hint("--out DIR", "writes elsewhere"),
                Hint("--replace", "gives up what is there"),
            )
        strangers = self._strangers()
        if strangers and not replace:
            raise UsageError(
                f"{root} holds files that deploykit did not write: {', '.join(strangers[:3])}",
                Hint("--out DIR", "writes elsewhere"),
                Hint("--replace", "writes beside them and leaves them alone"),
            )

    def _on_disk(self) -> bytes | None:
        path = self.root / manifests.FILE
        return path.read_bytes() if path.is_file() else None

    def _old_manifest(self, *, replace: bool) -> Manifest | None:
        if self._found is None:
            return None
        try:
            return manifests.parse(self._found, str(self.root / manifests.FILE))
        except BadInputError:
            if replace:
                return None
            raise

    def _journal(self) -> list[str]:
        path = self.root / JOURNAL
        if not path.is_file():
            return []
        try:
            listed = serde.parse(path.read_text(encoding="utf-8"))
        except ValueError:
            return []
        return (
            [name for name in listed if isinstance(name, str) and _is_inside(name)] if isinstance(listed, list) else []
        )

    def _strangers(self) -> list[str]:
        return [name for name in self._files() if name not in self._ours and not name.startswith(f"{INCOMING}/")]

    def _files(self) -> list[str]:
        """Return what lies in the folder, links unfollowed: a linked folder is one name, and what it holds is not ours."""
        paths = [path for path in self.root.rglob("*") if path.is_symlink() or not path.is_dir()]
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def place(self, stem: str, files: Mapping[str, Path]) -> tuple[Placement, ...]:
        """Choose names for files that share a stem, so that nothing which the old manifest describes is overwritten.

        The stem stays as it is unless one of its names is taken by other content: then a hash follows it.

        Args:
            stem: Preferred path, without endings.
            files: Ending to finished file, such as ".onnx" to its path.
        """
        digests = {ending: (path.stat().st_size, sha256_of(path)) for ending, path in files.items()}
        short = hashlib.sha256("".join(digest for _, digest in digests.values()).encode()).hexdigest()[:8]
        for candidate in (stem, f"{stem}.{short}"):
            records = {ending: FileRecord(f"{candidate}{ending}", *digests[ending]) for ending in files}
            if not any(self._taken(record) for record in records.values()):
                return tuple(Placement(path, records[ending]) for ending, path in files.items())
        raise UsageError(f"{self.root} holds other files named {stem}.{short}*: remove them")

    def place_named(self, name: str, file: Path) -> Placement:
        """Place a file whose name other files refer to, so that it can be called nothing else.

        Raises:
            UsageError: Other content has this name.
        """
        record = FileRecord(name, file.stat().st_size, sha256_of(file))
        if self._taken(record):
            raise UsageError(f"{self.root} holds another file named {name}: remove it")
        return Placement(file, record)

    def _taken(self, record: FileRecord) -> bool:
        """Tell whether other content has this name, which must not be touched before the commit."""
        if record.path in self._described:
            return self._described[record.path] != record
        return record.path not in self._ours and (self.root / record.path).exists()

    def _kept(self, record: FileRecord) -> bool:
        path = self.root / record.path
        return path.is_file() and path.stat().st_size == record.bytes and sha256_of(path) == record.sha256

    def commit(self, placements: Iterable[Placement], manifest: Manifest) -> Bundle:
        """Place the files, replace the manifest, remove what only the old one named.

        Raises:
            ResourceError: The disk is full, the folder can't be written, or somebody else has written there since this
                writer began; the bundle is untouched.
        """
        placements = tuple(placements)
        try:
            if self._on_disk() != self._found:
                raise ResourceError(
                    f"{self.root} was written by another export meanwhile: nothing of this one was put there",
                    Hint("the same command again", "adds to what is there now"),
                )
            self._place(placements)
            self._write(manifests.FILE, manifest.to_bytes())
            self._clean({record.path for record in manifest.files} | {manifests.FILE})
        except OSError as error:
            raise ResourceError(f"{self.root} can't be written: {error.strerror or error}") from error
        return Bundle(self.root, manifest)

    def _clean(self, keep: set[str]) -> None:
        """Remove what is ours and not kept: of the names that are really here, whatever a journal claims; the journal last."""
        for name in self._files():
            if name in self._ours - keep - {JOURNAL, LOCK}:
                (self.root / name).unlink()
        shutil.rmtree(self.root / INCOMING, ignore_errors=True)
        (self.root / JOURNAL).unlink(missing_ok=True)

    def _place(self, placements: tuple[Placement, ...]) -> None:
        incoming = self.root / INCOMING
        for placement in placements:
            if not (self.root / placement.record.path).parent.resolve().is_relative_to(self.root.resolve()):
                raise UsageError(
                    f"{placement.record.path} would lie outside {self.root}: remove the link that leads there"
                )
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        new = [placement for placement in placements if not self._kept(placement.record)]
        names = {*self._journal(), *self._described, *(placement.record.path for placement in new)}
        self._write(JOURNAL, json.dumps(sorted(names)).encode())
        self._ours |= {placement.record.path for placement in new}
        for index, placement in enumerate(new):
            copy = incoming / str(index)
            shutil.copyfile(placement.source, copy)
            _sync(copy)
            target = self.root / placement.record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            copy.replace(target)

    def _write(self, name: str, data: bytes) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / INCOMING).mkdir(exist_ok=True)
        temporary = self.root / INCOMING / f"{name}.new"
        temporary.write_bytes(data)
        _sync(temporary)
        temporary.replace(self.root / name)


def _is_inside(name: str) -> bool:
    try:
        FileRecord(name, 0, "")
    except BadInputError:
        return False
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
