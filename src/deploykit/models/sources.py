"""Where originals come from: a source text such as "tiny-convnext" or "timm:convnext_tiny" to an Original and its module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import paths, serde
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models.checkpoint import SUFFIXES
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme, get_scheme, scheme_names
from deploykit.runtime.backends.base import Session, get_backend

if TYPE_CHECKING:
    from torch import nn

#: Endings of files that people take for models: a name that has one is a path.
FILES = (
    *(
        *SUFFIXES,
        ".onnx",
        ".pt2",
        ".xml",
        ".tflite",
        ".engine",
        ".plan",
        ".trt",
        ".mlmodel",
        ".mlpackage",
        ".pb",
        ".h5",
    ),
    *(".keras", ".pkl", ".npz", ".npy", ".gguf", ".json", ".yaml", ".yml", ".py", ".zip"),
)
#: Where a name is looked for that has no scheme and that none claims.
USUAL = "timm"


def resolve(source: str, options: SourceOptions | None = None) -> Original:
    """Find out what `source` names, without opening it.

    Args:
        source: "SCHEME:NAME", or a file, a folder, or a name that ships with the package or that timm knows.
        options: Weights, head, preprocessing.

    Raises:
        UsageError: No such model; the message names near ones.
        BadInputError: The model's card or weights are damaged.
        MissingComponentError: A library that it needs is not installed.
    """
    scheme, name = scheme_of(source)
    options = options or SourceOptions()
    if options.lora is not None and not scheme.adapts:
        raise UsageError(
            f"--lora {options.lora}: {source} takes none; UNets of diffusion models do", Hint("lcm:FOLDER")
        )
    return scheme.resolve(name, options)


def scheme_of(source: str) -> tuple[Scheme, str]:
    """Return the scheme that a source text is meant for, and the name within it.

    Raises:
        UsageError: It names a scheme that there is not.
    """
    scheme, colon, name = source.partition(":")
    if not colon:
        claiming = (known for known in map(get_scheme, scheme_names()) if known.claims(source))
        claimed = next(claiming, None)
        if claimed is None:
            _check_file(source)
        return claimed or get_scheme(USUAL), source
    if scheme not in scheme_names():
        raise UsageError(f"{source!r}: there is no scheme {scheme!r}; there are: {', '.join(scheme_names())}")
    return get_scheme(scheme), name


def ships(scheme: str, name: str) -> bool:
    """Tell whether the package brings the whole of an original."""
    return scheme in scheme_names() and get_scheme(scheme).ships(name)


def _check_file(source: str) -> None:
    """Refuse what is meant as a file or a folder and is none that holds a model.

    Raises:
        UsageError: It is.
    """
    path = Path(source)
    is_named_so = path.suffix.lower() in FILES or source.startswith("~")
    if not is_named_so and "/" not in source and os.sep not in source:
        return
    reason = paths.fault(path)
    folder = Hint("hf:FOLDER, lcm:FOLDER", "opens a folder as save_pretrained writes it")
    hub = Hint(f"hf:{source}", "is a repository of the hub, or timm's own name without its owner")
    hints = (folder,) if reason == "is a folder" else (hub,) if source.count("/") == 1 and not is_named_so else ()
    told = "is a folder in which no model lies: it has neither config.json nor unet/config.json"
    raise UsageError(f"{paths.shown(path)} {told if hints == (folder,) else reason or 'is no model'}", *hints)


def open_module(original: Original) -> nn.Module:
    """Build an original and load its weights.

    Returns:
        The module in evaluation mode, float32, on the CPU; it takes the original's inputs by
        position and returns one tensor [N, ...].

    Raises:
        MissingComponentError: torch, timm or safetensors is not installed.
        BadInputError: The weights are missing, changed, or of another shape than the architecture.
    """
    return get_scheme(original.scheme).open(original)


def check(original: Original) -> None:
    """Check, before anything opens it, that an original's files are still what was resolved.

    Raises:
        BadInputError: They are missing or changed.
    """
    get_scheme(original.scheme).check(original)


def open_original(original: Original) -> Session:
    """Open an original as it is, to ask it for its own answers.

    Raises:
        MissingComponentError: What runs it is not installed.
        BadInputError: Its weights are missing or changed.
    """
    check(original)
    model, run = original.reference
    return get_backend(run.backend).open(model, run)


def located(locator: str) -> Original:
    """Return the original that `Original.locator` stands for; a plain source text does as well.

    Raises:
        BadInputError: The text is damaged.
        UsageError: It is a source text that names nothing.
    """
    return read_locator(locator) if locator.startswith("{") else resolve(locator)


def read_locator(locator: str) -> Original:
    """Return what `Original.locator` says, opening nothing.

    Raises:
        BadInputError: The text is damaged.
    """
    try:
        data = serde.parse(locator)
    except ValueError as error:
        raise BadInputError(f"this locates no original: {error}") from error
    return serde.from_json(Original, data, "original")
