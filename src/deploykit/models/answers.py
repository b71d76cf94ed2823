"""What a module answers with: one tensor, or several in a mapping, a sequence or a class of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

#: What an output is called that has a place and no name.
PLACED = "output{place}"


def named_tensors(result: object, whose: str) -> dict[str, torch.Tensor]:
    """Return the tensors of an answer by name, in the order in which torch.export has them.

    Args:
        result: What a module returned.
        whose: Whose answer it is, for messages.

    Returns:
        One tensor under "", those of a mapping under its keys, those of a sequence under "output0" and so on; no None.

    Raises:
        UnsupportedError: It holds something that is no tensor, or no tensor at all.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves = [(path, leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0] if leaf is not None]
    others = [
        f"{_name(path) or 'it'}: {type(leaf).__name__}" for path, leaf in leaves if not isinstance(leaf, torch.Tensor)
    ]
    if others or not leaves:
        found = ", ".join(others) or f"a {type(result).__name__} without tensors"
        raise UnsupportedError(f"{whose} answers with what is no tensor ({found}): tensors alone can be exported")
    found_names = [_name(path) for path, _ in leaves]
    if len(set(found_names)) < len(found_names):
        raise UnsupportedError(f"{whose} answers with outputs of the same name: {', '.join(found_names)}")
    return {name: leaf for name, (_, leaf) in zip(found_names, leaves, strict=True)}


def _name(path: tuple[Any, ...]) -> str:
    """Return the name of a place in a nested answer: "logits", "output1", "maps.0"."""
    words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return PLACED.format(place=words[0]) if len(words) == 1 and words[0].isdecimal() else ".".join(words)
