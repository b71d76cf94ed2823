"""Stage and Item: the contract between the pipeline and the work.

A stage is a function of content-hashed items and frozen options. It writes files into an empty workspace and returns facts
worth noting; the files become a new Item. It never changes its inputs: items in the cache are read-only files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from deploykit import serde
from deploykit.artifact import FileRecord
from deploykit.errors import InternalError

#: Where items of the kind "tensors" keep their arrays.
TENSORS = "tensors.npz"

O_contra = TypeVar("O_contra", contravariant=True)


@dataclass(frozen=True)
class Item:
    """Files with a content hash: what stages hand to one another.

    Attributes:
        kind: What it is: "original", "graph", "images", "tensors", "answers", "artifact", "judgement", "timings".
        root: Folder that the files lie in.
        files: The files.
        facts: Small things worth knowing, plain JSON values, for people: no part of the hash, so no stage reads them.
        identity: What is known of what lies in no file of the item: of an original, the text that opens it again.
    """

    kind: str
    root: Path
    files: tuple[FileRecord, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""

    @property
    def digest(self) -> str:
        """Hash of kind, identity, file names and contents."""
        return serde.digest([self.kind, self.identity, [[record.path, record.sha256] for record in self.files]])

    def path(self, name: str) -> Path:
        """Return the file called `name`."""
        if all(record.path != name for record in self.files):
            raise InternalError(f"item {self.kind!r} has no file {name!r}; it has {[r.path for r in self.files]}")
        return self.root / name

    def has(self, name: str) -> bool:
        """Tell whether there is a file called `name`."""
        return any(record.path == name for record in self.files)

    def check(self) -> None:
        """Compare every file with its recorded hash.

        Raises:
            BadInputError: One differs or is missing.
        """
        for record in self.files:
            record.check(self.root)


@dataclass(frozen=True)
class Workspace:
    """Where a running stage writes, and how it says how far it is.

    Attributes:
        folder: Empty; what lies there afterwards is the new item's files.
        progress: Called with steps done and steps in all.
    """

    folder: Path
    progress: Callable[[int, int], None]


Inputs = Mapping[str, Item]
Facts = Mapping[str, Any]


def _nothing(_inputs: Inputs, _options: object, _made: Item) -> None:
    """Ensure nothing beyond what the runner checks."""


@dataclass(frozen=True)
class Stage(Generic[O_contra]):
    """One kind of work.

    Attributes:
        name: In plans and manifests.
        version: Raised whenever the same inputs and options give another result.
        takes: Role of each input, and the kind of item that it must be.
        makes: Kind of item that it makes.
        files: Name of the first file that it must write, or "" where the options decide.
        libraries: Modules (keys of `deploykit.optional.COMPONENTS`) that do the work; their versions are in the cache key.
        run: Does the work and returns facts.
        ensure: Checks the result; raises InternalError where it isn't what was promised.
    """

    name: str
    version: int
    takes: Mapping[str, str]
    makes: str
    libraries: tuple[str, ...]
    run: Callable[[Inputs, O_contra, Workspace], Facts]
    ensure: Callable[[Inputs, O_contra, Item], None] = _nothing


@dataclass(frozen=True)
class Node:
    """One use of a stage in a plan.

    Attributes:
        id: Unique in its plan.
        stage: What to do.
        options: How.
        inputs: Role to the id of the node or given item that fills it.
    """

    id: str
    stage: Stage[Any]
    options: object
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """A DAG of nodes over given items, in an order in which it can be run.

    Attributes:
        given: Items that exist, by id.
        nodes: What to make of them.
    """

    given: Mapping[str, Item]
    nodes: tuple[Node, ...]

    def check(self) -> None:
        """Check ids, roles and kinds before anything runs.

        Raises:
            InternalError: The plan can't work.
        """
        kinds = {name: item.kind for name, item in self.given.items()}
        for node in self.nodes:
            if node.id in kinds:
                raise InternalError(f"the plan has two nodes {node.id!r}")
            if set(node.inputs) != set(node.stage.takes):
                raise InternalError(
                    f"node {node.id!r} is given {sorted(node.inputs)}; it takes {sorted(node.stage.takes)}"
                )
            for role, source in node.inputs.items():
                if kinds.get(source) != node.stage.takes[role]:
                    raise InternalError(
                        f"node {node.id!r} takes {node.stage.takes[role]!r} as {role!r}, "
                        f"but {source!r} is {kinds.get(source, 'not made before it')!r}"
                    )
            kinds[node.id] = node.stage.makes

    def reaching(self, ids: Iterable[str]) -> Plan:
        """Return the plan of these nodes and of all that they are made from."""
        wanted = set(ids)
        for node in reversed(self.nodes):
            if node.id in wanted:
                wanted |= set(node.inputs.values())
        return Plan(self.given, tuple(node for node in self.nodes if node.id in wanted))

    def text(self) -> str:
        """The plan as people read it: one line of node ids."""
        return " → ".join(node.id for node in self.nodes)
