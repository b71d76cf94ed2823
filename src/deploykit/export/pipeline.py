"""Run a plan: take what the cache has, do the rest, check every promise."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from deploykit import heap, optional, telemetry
from deploykit.artifact import FileRecord
from deploykit.errors import BadInputError, DeploykitError, Hint, InternalError, ResourceError, UnsupportedError
from deploykit.export.cache import FILES, Cache, Entry, Made
from deploykit.export.stage import Item, Node, Plan, Workspace
from deploykit.manifest import StageRecord


class Watcher(Protocol):
    """Is told how a plan proceeds."""

    def started(self, node: Node) -> None:
        """`node` begins to run."""

    def progressed(self, done: int, total: int) -> None:
        """The running node has done `done` of `total` steps."""

    def finished(self, node: Node, made: Made) -> None:
        """`node` is made, now or earlier."""


class Silent:
    """A watcher that says nothing."""

    def started(self, node: Node) -> None:
        """Say nothing."""

    def progressed(self, done: int, total: int) -> None:
        """Say nothing."""

    def finished(self, node: Node, made: Made) -> None:
        """Say nothing."""


class _CorruptEntry(Exception):  # noqa: N818 - a signal inside this module, no error that users see
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Pipeline:
    """Runs plans.

    Args:
        cache: Where results are kept.
        watcher: Is told how it goes.
        quiet: Keep what the libraries print to themselves.
    """

    def __init__(self, cache: Cache, watcher: Watcher, *, quiet: bool = True) -> None:
        self.cache = cache
        self.watcher = watcher
        self.quiet = quiet

    def run(self, plan: Plan) -> dict[str, Made]:
        """Make every node of `plan`.

        Returns:
            The result of each node, by id; its files have been hashed.

        Raises:
            DeploykitError: A stage failed; what was made before stays in the cache. An UnsupportedError names its node.
        """
        plan.check()
        while True:
            try:
                return self._pass(plan)
            except _CorruptEntry as corrupt:
                try:
                    self.cache.drop(corrupt.key)
                except OSError as error:
                    raise self._translated(error) from error

    def _pass(self, plan: Plan) -> dict[str, Made]:
        results: dict[str, Made] = {}
        items: dict[str, Item] = dict(plan.given)
        sound: set[str] = set(plan.given)
        for node in plan.nodes:
            key = self.cache.key(node, {role: items[source].digest for role, source in node.inputs.items()})
            made = self.cache.find(key)
            if made is None:
                for source in node.inputs.values():
                    if source not in sound:
                        self._check(results[source])
                        sound.add(source)
                self.watcher.started(node)
                made = self._make(node, {role: items[source] for role, source in node.inputs.items()}, key)
                sound.add(node.id)
            self.watcher.finished(node, made)
            results[node.id] = made
            items[node.id] = made.item
        for name, made in results.items():
            if name not in sound:
                self._check(made)
        return results

    def _check(self, made: Made) -> None:
        try:
            made.item.check()
        except BadInputError as error:
            raise _CorruptEntry(made.key) from error

    def _make(self, node: Node, inputs: Mapping[str, Item], key: str) -> Made:
        libraries = optional.require(*node.stage.libraries)
        telemetry.switch_off()
        started = time.perf_counter()
        try:
            folder = self.cache.workspace()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with _captured() if self.quiet else contextlib.nullcontext():
                facts = node.stage.run(inputs, node.options, Workspace(folder / FILES, self.watcher.progressed))
            heap.trim()  # the next stage may hold the weights again
            seconds = time.perf_counter() - started
            entry = Entry(node.stage.makes, _records(folder / FILES), facts, libraries, seconds)
            node.stage.ensure(inputs, node.options, Item(entry.kind, folder / FILES, entry.files, facts))
            return self.cache.store(key, folder, entry)
        except UnsupportedError as error:
            error.node = error.node or node.id
            raise
        except OSError as error:
            raise self._translated(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _translated(self, error: OSError) -> DeploykitError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}:
            return self._unwritable(error)
        return InternalError(f"unexpected {type(error).__name__}: {error}")

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self.cache.root} can't be written: {error.strerror}", Hint("DEPLOYKIT_CACHE=DIR", "caches elsewhere")
        )


def _records(folder: Path) -> tuple[FileRecord, ...]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    if not names:
        raise InternalError("a stage wrote no files")
    return tuple(FileRecord.of(folder, name) for name in names)


@contextlib.contextmanager
def _captured() -> Iterator[None]:
    """Swallow what libraries print and warn; what they raise gets out."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def record_of(node: Node, made: Made, digests: Mapping[str, str]) -> StageRecord:
    """Return what the manifest says of a node.

    Args:
        node: The node.
        made: Its result.
        digests: Content hash of every item of the plan, by id.
    """
    from deploykit.serde import to_json

    options: dict[str, Any] = to_json(node.options)
    return StageRecord(
        node=node.id,
        stage=node.stage.name,
        version=node.stage.version,
        options=options,
        inputs={role: digests[source] for role, source in node.inputs.items()},
        output=made.item.digest,
        libraries=made.libraries,
        facts=made.item.facts,
        seconds=round(made.seconds, 3),
        cached=made.cached,
    )
