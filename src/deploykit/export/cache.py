"""The cache of stage results, keyed by content.

A key is the hash of the stage's name and version, its options, the content hashes of its inputs and the versions of the
libraries that do the work. Entries appear whole, by renaming a finished folder, so that readers and writers need no lock.
What an entry says is hashed when it is found; its files are hashed again before they are used.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit import optional, serde
from deploykit.artifact import FileRecord
from deploykit.errors import BadInputError
from deploykit.export.stage import Item, Node
from deploykit.folders import cache_folder

ENTRY = "entry.json"
FILES = "files"
#: Folders of writers that were killed are removed after this many seconds.
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Entry:
    """What is noted beside the files of an item: enough to rebuild it.

    Attributes:
        kind: Of the item.
        files: Its files.
        facts: What its stage noted.
        libraries: Versions of those that made it.
        seconds: How long that took.
        seal: Hash of all the others, so that changed facts are noticed as changed files are.
    """

    kind: str
    files: tuple[FileRecord, ...]
    facts: Mapping[str, Any]
    libraries: Mapping[str, str]
    seconds: float
    seal: str = ""

    def sealed(self) -> Entry:
        """Return it with its seal."""
        return replace(self, seal=serde.digest(replace(self, seal="")))


@dataclass(frozen=True)
class Made:
    """A node's result.

    Attributes:
        item: The item.
        key: Its cache key.
        libraries: Versions of the libraries that made it.
        seconds: How long that took, then.
        cached: Whether it was there already.
    """

    item: Item
    key: str
    libraries: Mapping[str, str]
    seconds: float
    cached: bool


class Cache:
    """A folder of entries.

    Args:
        root: The folder; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def default(cls) -> Cache:
        """Return the cache at $DEPLOYKIT_CACHE, else in the user's cache folder."""
        return cls(cache_folder())

    def key(self, node: Node, inputs: Mapping[str, str]) -> str:
        """Return the key of `node` over inputs with these content hashes, by role."""
        libraries = optional.installed(node.stage.libraries)
        return serde.digest([node.stage.name, node.stage.version, node.options, inputs, libraries])

    def find(self, key: str) -> Made | None:
        """Return the entry of `key`, its files not yet hashed, or None."""
        folder = self._folder(key)
        try:
            entry = serde.from_json(Entry, serde.parse((folder / ENTRY).read_bytes()), key)
        except (OSError, ValueError, BadInputError):
            return None
        if entry != entry.sealed():
            return None
        return Made(
            Item(entry.kind, folder / FILES, entry.files, entry.facts), key, entry.libraries, entry.seconds, cached=True
        )

    def workspace(self) -> Path:
        """Return a new folder to prepare an entry in; its subfolder `files` is the stage's."""
        parent = self.root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process cleans here too
                if time.time() - old.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        (folder / FILES).mkdir()
        return folder

    def store(self, key: str, prepared: Path, entry: Entry) -> Made:
        """Turn a prepared folder into the entry of `key`; where another process was faster, its entry stands."""
        for record in entry.files:
            (prepared / FILES / record.path).chmod(0o444)
        (prepared / ENTRY).write_bytes(serde.canonical_bytes(entry.sealed()))
        folder = self._folder(key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            prepared.rename(folder)
        except OSError:
            if self.find(key) is None:  # what is in the way is damaged, or there is another reason
                self.drop(key)
                prepared.rename(folder)
            shutil.rmtree(prepared, ignore_errors=True)
        item = Item(entry.kind, folder / FILES, entry.files, entry.facts)
        return Made(item, key, entry.libraries, entry.seconds, cached=False)

    def drop(self, key: str) -> None:
        """Forget `key`.

        Raises:
            OSError: It can't be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder(key))

    def _folder(self, key: str) -> Path:
        return self.root / "items" / key[:2] / key
