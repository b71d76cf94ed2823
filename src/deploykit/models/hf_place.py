"""Where a model of the Hugging Face world lies: a folder, or a repository of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploykit import paths, serde
from deploykit.errors import BadInputError, Hint, ResourceError, UsageError
from deploykit.models import hub, shards

CONFIG = "config.json"
#: Keys by which a configuration names code: Python beside the model, or a repository of kernels.
CODE = re.compile("auto_map|_?(attn|experts)_implementation(_internal)?")
#: What a name may be: a folder, or nothing that is here.
FOLDER_OR_NOTHING: Final = ("is a folder", "does not exist")
#: Of Hugging Face's models.
HF: Final = "hf"


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub.

    Attributes:
        name: Absolute path of the folder, or id of the repository.
        is_folder: Which of the two it is: nothing is looked for elsewhere than in a folder.
        scheme: Of the source text that names it.
    """

    name: str
    is_folder: bool
    scheme: str = HF

    @classmethod
    def of(cls, name: str, scheme: str = HF) -> Place:
        """Tell which of the two a name means; a folder that exists goes first.

        Raises:
            UsageError: It is empty, or a file.
        """
        path = Path(os.path.expanduser(name))  # noqa: PTH111 - leaves "~nobody" as it is, where pathlib raises
        reason = paths.fault(path)
        if not name or reason not in FOLDER_OR_NOTHING:
            told = f": it {reason or 'is a file'}" if name else ""
            raise UsageError(
                f"'{scheme}:{paths.shown(name)}': write {scheme}:FOLDER or {scheme}:OWNER/NAME{told}", _folder(scheme)
            )
        if path.is_dir():
            return cls(str(path.resolve()), is_folder=True, scheme=scheme)
        return cls(name, is_folder=False, scheme=scheme)

    @property
    def text(self) -> str:
        """As a source text, for messages."""
        return f"{self.scheme}:{paths.shown(self.name)}"

    @property
    def id(self) -> str:
        """Its last part, as files can be called."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.name).name).strip("-.") or "model"

    def find(self, *candidates: str) -> Path | None:
        """Return the first of several files that there is.

        Raises:
            UsageError: There is no such folder, and it is no name that the hub can have.
            ResourceError: There is no such folder, none of them is in the hub's cache, and the hub can't be reached.
        """
        from huggingface_hub.errors import HFValidationError

        if self.is_folder:
            return next((path for name in candidates if (path := Path(self.name, name)).is_file()), None)
        try:
            return hub.fetch(self.name, candidates)
        except HFValidationError as error:
            raise UsageError(
                f"{self.text}: there is no such folder, and the hub has no such names", _folder(self.scheme)
            ) from error
        except ConnectionError as error:
            said = f": {str(error).splitlines()[0][:120]}" if str(error) else ""
            raise ResourceError(
                f"{self.text}: there is no such folder, {candidates[0]} isn't in the hub's cache, and the hub can't "
                f"be reached{said}",
                _folder(self.scheme),
            ) from error

    def config(self) -> dict[str, Any]:
        """Read the model's configuration.

        Raises:
            UsageError: There is none, so this is no model.
            BadInputError: It is damaged, or it asks for code that would come with it.
        """
        path = self.find(CONFIG)
        if path is None:
            raise UsageError(f"{self.text} is no model: it has no {CONFIG}", _folder(self.scheme))
        return read_object(path)

    def spread(self, stem: str, suffix: str, folders: tuple[str, ...] = ("",)) -> Path | None:
        """Find weights in one file or several, of whatever variant; those of none go first.

        Args:
            stem: Of their names, such as "model".
            suffix: Such as ".safetensors".
            folders: Where they may lie, such as "unet/".

        Returns:
            The file, or the index of several, all of which are here; None where there are no such weights.

        Raises:
            UsageError: There are several variants and none of them is plain.
            BadInputError: The index is damaged, or a file that it names is missing.
            ResourceError: The hub can't be reached.
        """
        plain = self.find(*(f"{folder}{name}" for folder in folders for name in shards.names_of(stem, suffix)))
        path = plain or self._variant(stem, suffix, folders)
        if path is not None and shards.is_index(path):
            self._fetch_shards(path, folders)
            shards.parts_of(path)
        return path

    def _variant(self, stem: str, suffix: str, folders: tuple[str, ...]) -> Path | None:
        variants: tuple[str, ...] = shards.VARIANTS
        if self.is_folder:
            variants = next(
                filter(None, (shards.variants_in(Path(self.name, each), stem, suffix) for each in folders)), ()
            )
            if len(variants) > 1:
                raise UsageError(
                    f"{self.text} holds {stem}{suffix} in {len(variants)} variants, none of them plain: {', '.join(variants)}",
                    Hint("leave one of them in the folder", "or rename it to that"),
                )
        names = (name for each in variants for name in shards.names_of(stem, suffix, each))
        return self.find(*(f"{folder}{name}" for name in names for folder in folders)) if variants else None

    def _fetch_shards(self, index: Path, folders: tuple[str, ...]) -> None:
        """Bring the files that an index of the hub names beside it."""
        if not self.is_folder:
            folder = next((each for each in folders if each and index.parent.name == each.rstrip("/")), "")
            for name in shards.shards_of(index):
                self.find(f"{folder}{name}")

    def weights(self) -> tuple[str, str]:
        """Find the file of the weights, or the index of several, and hash it.

        Raises:
            UsageError: There are several variants to choose from.
            BadInputError: There are none, or some are missing.
        """
        for name in hub.WEIGHTS:
            stem, suffix = name.split(".")
            path = self.spread(stem, f".{suffix}")
            if path is not None:
                return str(path), shards.digest_of(path)
        raise BadInputError(
            f"{self.text} holds no weights: neither {' nor '.join(hub.WEIGHTS)} is there",
            Hint("--weights FILE", "a checkpoint of yours (.safetensors, .pth)"),
            Hint("--random-weights", "to try the pipeline without them"),
        )


def _folder(scheme: str) -> Hint:
    return Hint(f"{scheme}:FOLDER", "opens a folder as save_pretrained writes it")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        BadInputError: It does not, or it asks for code that would come with it.
    """
    try:
        data = serde.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadInputError(f"{path} holds a {type(data).__name__}, not an object")
    _check_code(path, data)
    return data


def _check_code(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse what would fetch code and run it: classes beside the model, attention kernels of the hub."""
    within: list[Any] = [data]
    while within:
        found = within.pop()
        if isinstance(found, dict):
            for key, value in found.items():
                if CODE.fullmatch(key) and value and (key == "auto_map" or "/" in str(value)):
                    raise BadInputError(f"{path} asks for code of its own ({key} {value}): it is never run")
            within += found.values()
        elif isinstance(found, list):
            within += found
