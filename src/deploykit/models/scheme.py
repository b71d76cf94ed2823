"""Scheme: one kind of place that originals come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from deploykit import registry
from deploykit.models.original import Original, SourceOptions

if TYPE_CHECKING:
    from torch import nn

GROUP = "deploykit.sources"


class Scheme(ABC):
    """One kind of place that originals come from, registered under `deploykit.sources`.

    Attributes:
        name: What stands before the colon of a source text.
        decided_by: Libraries whose versions decide, with name, options and weights, what a source text resolves to; None
            where more than that does, such as code or a folder's other files.
        adapts: It can fuse a LoRA into what it opens.
    """

    name: ClassVar[str]
    adapts: ClassVar[bool] = False
    decided_by: ClassVar[tuple[str, ...] | None] = None

    @abstractmethod
    def names(self, pattern: str) -> tuple[str, ...]:
        """Return the names that match a shell pattern; empty where they can't be listed."""

    def claims(self, text: str) -> bool:  # noqa: ARG002 - most schemes are asked by their names only
        """Tell whether a source text without a scheme is meant for this one."""
        return False

    def ships(self, name: str) -> bool:  # noqa: ARG002 - most schemes lead to files, code or a hub
        """Tell whether the package brings the whole of what `name` is: nothing but its own files is read to open it."""
        return False

    @abstractmethod
    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Find out what `name` is.

        Raises:
            UsageError: No such model, or options that don't fit it.
            BadInputError: Its files are damaged.
            MissingComponentError: A library that it needs is not installed.
        """

    def check(self, original: Original) -> None:  # noqa: B027 - most schemes check as they open
        """Check, before anything opens it, that an original is still what was resolved.

        Raises:
            BadInputError: Its files are missing or changed.
        """

    @abstractmethod
    def open(self, original: Original) -> nn.Module:
        """Build an original and load its weights.

        Returns:
            The module in evaluation mode, float32, on the CPU; it takes the original's inputs by
            position and returns one tensor [N, ...].

        Raises:
            BadInputError: The weights are missing, changed, or of another shape than the architecture.
            MissingComponentError: A library that it needs is not installed.
        """


def get_scheme(name: str) -> Scheme:
    """Return the scheme registered as `name`.

    Raises:
        UsageError: There is none.
    """
    return registry.load(GROUP, name, Scheme)


def scheme_names() -> tuple[str, ...]:
    """Return the names of all registered schemes."""
    return registry.names(GROUP)
