"""Weights in several files: an index says which of them holds which tensor, as transformers and diffusers write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploykit import paths, serde
from deploykit.artifact import sha256_of
from deploykit.errors import BadInputError, Hint

#: How indices are called: "model.safetensors.index.json", or with a variant, "model.safetensors.index.fp16.json".
INDEX: Final = re.compile(r".+\.(?:safetensors|bin)\.index(?:\.[\w-]+)?\.json")
#: Variants that are looked for where files can't be listed.
VARIANTS: Final = ("fp16", "bf16", "fp32")


def names_of(stem: str, suffix: str, variant: str = "") -> tuple[str, ...]:
    """Return what weights may be called: of one file, then of indices."""
    if not variant:
        return f"{stem}{suffix}", f"{stem}{suffix}.index.json"
    one = f"{stem}.{variant}{suffix}"
    return one, f"{stem}{suffix}.index.{variant}.json", f"{one}.index.json"


def variants_in(folder: Path, stem: str, suffix: str) -> tuple[str, ...]:
    """Return the variants of weights that lie in a folder, such as "fp16"; the plain ones are none of them."""
    known = re.compile(
        rf"{re.escape(stem)}(?:\.(?P<a>[\w-]+?)(?:-\d+-of-\d+)?{re.escape(suffix)}(?:\.index\.json)?"
        rf"|{re.escape(suffix)}\.index\.(?P<b>[\w-]+)\.json)"
    )
    found = [known.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return tuple(sorted({match["a"] or match["b"] for match in found if match}))


def is_index(path: Path) -> bool:
    """Tell whether a file is called as indices are."""
    return INDEX.fullmatch(path.name) is not None


def shards_of(index: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the names of the files that an index spreads weights over, each with the names of its tensors.

    Raises:
        BadInputError: It is damaged, or names files elsewhere.
    """
    try:
        data = serde.parse(index.read_text(encoding="utf-8"))
        placed = data["weight_map"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{index} is no index of weights: it has no weight_map of names to files") from error
    found: dict[str, list[str]] = {}
    for name, file in placed:
        if not isinstance(file, str) or file in {"", ".", ".."} or re.search(r"[/\\:\0]", file):
            raise BadInputError(f"{index} takes {name!r} from {file!r}: shards lie in the folder of their index")
        found.setdefault(file, []).append(str(name))
    if not found:
        raise BadInputError(f"{index} names no weights")
    return {file: tuple(names) for file, names in found.items()}


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files that weights at `path` lie in: itself, and of an index the shards.

    Raises:
        BadInputError: The index is damaged, or a shard is missing.
    """
    if not is_index(path):
        return (path,)
    shards = tuple(path.parent / name for name in shards_of(path))
    for shard in shards:
        if reason := paths.fault(shard):
            raise BadInputError(
                f"{path} spreads weights over {len(shards)} files: {paths.shown(shard.name)} {reason}",
                Hint("download it again", "half of it is not enough"),
            )
    return (path, *shards)


def digest_of(path: Path) -> str:
    """Return the hash of weights at `path`: of the file, or of an index and all its shards.

    Raises:
        BadInputError: As `parts_of` does.
    """
    parts = parts_of(path)
    return sha256_of(path) if len(parts) == 1 else serde.digest([sha256_of(part) for part in parts])
