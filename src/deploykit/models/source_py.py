"""A module of one's own: "py:package.module:function", a function that returns an nn.Module."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import optional, paths, serde
from deploykit.errors import BadInputError, UnsupportedError, UsageError
from deploykit.models import head, random_weights, returned, training
from deploykit.models.answers import named_tensors
from deploykit.models.checkpoint import Checkpoint, read
from deploykit.models.family import FALLBACK, family_name
from deploykit.models.fit import load_into, part_of
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme

if TYPE_CHECKING:
    import torch
    from torch import nn


class PyScheme(Scheme):
    """Functions that are importable from here: from the environment, or from the current folder."""

    name = "py"

    def names(self, pattern: str) -> tuple[str, ...]:  # noqa: ARG002 - what can be imported can't be listed
        """Return nothing."""
        return ()

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Call the function once, to hash its weights and to see how many classes it answers with."""
        versions = optional.require("torch")
        _check(name, options)
        found = read(Path(options.weights), options.checkpoint_key) if options.weights is not None else None
        module, notes = _build(name, options, found)
        channels = _channels(module, options)
        if found is not None:
            options, told = training.told_by(found.options, options, channels)
            notes += told
        recipe = head.preprocess_of(head.usual(channels), options)
        state = _state_hash(module)  # before it is called: forward may change a buffer
        answer = _answer(module, recipe.input_size, name)
        classes = _classes(answer)
        notes += head.notes_of(recipe, options)
        notes += training.classes_differ(found.options, classes) if found is not None and classes is not None else ()
        task = "embedding" if options.embedding or classes is None else "logits"
        weights = str(Path(options.weights).resolve()) if options.weights else ""
        if task == "embedding" and options.labels is not None:
            raise UsageError(f"--labels {options.labels}: {_told(answer)} have no class names")
        original = Original(
            id=name.rpartition(":")[2],
            scheme=self.name,
            name=name,
            options=options,
            weights_file=weights,
            family=family_name(options.family, FALLBACK),
            task=task,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            weights_sha256=state,
            spec_sha256=serde.digest([name, options.model_args, versions, str(module)]),
            preprocess=recipe,
            labels=head.labels_of(options, classes) if task == "logits" and classes is not None else (),
            images=None,
            notes=notes or None,
        )
        names = tuple(answer)
        return original if names == ("",) else original.answering(names)

    def open(self, original: Original) -> nn.Module:
        """Call the function again; its weights must be those that were resolved."""
        changed = f"{original.weights_file} is missing or has changed since it was resolved"
        if original.weights_file and not Path(original.weights_file).is_file():
            raise BadInputError(changed)
        options = dataclasses.replace(original.options, weights=original.weights_file or None)
        found = read(Path(original.weights_file), options.checkpoint_key) if original.weights_file else None
        module, _ = _build(original.name, options, found)
        if _state_hash(module) != original.weights_sha256:
            raise BadInputError(
                changed
                if original.weights_file
                else f"py:{original.name} returns other weights at each call: seed it, or give --weights FILE"
            )
        return module


def _check(name: str, options: SourceOptions) -> None:
    module, _, function = name.rpartition(":")
    if not function or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"'py:{name}': write py:package.module:function")
    unfit = {"num_classes", "random_weights"} | ({"checkpoint_key"} if options.weights is None else set())
    wrong = sorted(unfit & set(options.given))
    if wrong:
        raise UsageError(f"py:{name}: {', '.join(wrong)} is the function's own matter: pass --model-arg")
    if options.weights is not None:
        paths.check_file(Path(options.weights), "--weights")


def _build(name: str, options: SourceOptions, found: Checkpoint | None) -> tuple[nn.Module, tuple[str, ...]]:
    """Import the function, call it, load weights where a file is given; return the network and what is to be told of those."""
    module_name, _, attribute = name.rpartition(":")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - an entry of sys.path is a str
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise UsageError(f"py:{name} can't be imported: {type(error).__name__}: {error}") from error
    with random_weights.seeded():
        try:
            made = function(**dict(options.model_args))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise UsageError(f"py:{name} can't be called with {dict(options.model_args)}: {told}") from error
    module = returned.network(made, f"py:{name}")
    if found is None or options.weights is None:
        return module, ()
    path = Path(options.weights)
    part = part_of(module, found.state, path)
    load_into(module, part.state, path)
    return module, (*found.notes, *part.notes)


def _channels(module: nn.Module, options: SourceOptions) -> int:
    """Return how many channels images have: as many as means are given, else what the first convolution takes."""
    from torch import nn

    if options.mean is not None:
        return len(options.mean)
    return next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), 3)


def _answer(module: nn.Module, input_size: tuple[int, ...], name: str) -> dict[str, torch.Tensor]:
    """Return what a module answers for a black image.

    Raises:
        UsageError: It can't take such an image, or answers with what is no tensor.
        BadInputError: It changes its own weights.
    """
    import torch

    before = _sums(module)
    with torch.inference_mode():
        try:
            answer = module(torch.zeros(1, *input_size))
        except Exception as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"py:{name} can't take float32 [1, {', '.join(map(str, input_size))}] (see --image-size): {told}"
            ) from error
    changed = [key for key, found in _sums(module).items() if found != before.get(key, found)]
    if changed:
        raise BadInputError(
            f"py:{name}: its forward changes its own weights ({', '.join(changed[:3])}): no two answers are of one network"
        )
    try:
        return named_tensors(answer, f"py:{name}")
    except UnsupportedError as error:
        raise UsageError(error.message) from error


def _classes(answer: Mapping[str, torch.Tensor]) -> int | None:
    """Return how many classes an answer has; None where its first tensor isn't [N, classes]."""
    shape = tuple(next(iter(answer.values())).shape)
    return shape[1] if len(shape) == 2 and shape[0] == 1 else None


def _told(answer: Mapping[str, torch.Tensor]) -> str:
    """Return what an answer holds: "map [1, 8, 16, 16], score [1]"; of one tensor that it is features."""
    if len(answer) == 1:
        return "features"
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in answer.items())


def _sums(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Return two sums of each parameter, by which it is seen whether it changes."""
    found = ((name, one.detach().double()) for name, one in module.named_parameters() if one.is_floating_point())
    return {name: (float(one.sum()), float(one.abs().sum())) for name, one in found}


def _state_hash(module: nn.Module) -> str:
    import torch

    state = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        state.update(f"{key} {tensor.dtype} {list(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


SCHEME = PyScheme()
