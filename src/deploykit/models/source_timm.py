"""Any timm model: pretrained from the local cache or the hub, from a checkpoint, or with random weights."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import optional, paths, serde
from deploykit.errors import BadInputError, Hint, ResourceError, UsageError
from deploykit.models import head, hub, random_weights, shards, training
from deploykit.models.checkpoint import Checkpoint, read
from deploykit.models.family import family_name, family_of
from deploykit.models.fit import State, load_into, part_of
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme

if TYPE_CHECKING:
    from torch import nn

#: Arguments of timm's constructors that an option of ours stands for, or that fetch or wrap what we don't measure.
RESERVED = {
    "img_size": "--image-size",
    "num_classes": "--num-classes",
    "pretrained": "--weights",
    "checkpoint_path": "--weights",
    "pretrained_cfg": "--weights",
    "pretrained_cfg_overlay": "--mean, --std, --crop-pct",
    "in_chans": "",
    "features_only": "",
    "scriptable": "",
    "exportable": "",
    "cache_dir": "",
}
#: What constructors and filters raise at arguments and weights that they weren't written for.
FOREIGN = (TypeError, ValueError, AssertionError, LookupError, RuntimeError, AttributeError, OSError, ArithmeticError)
#: Near names that an error lists.
NEAR = 4


class TimmScheme(Scheme):
    """timm's registry of models."""

    name = "timm"
    decided_by = ("torch", "timm")

    def names(self, pattern: str) -> tuple[str, ...]:
        """Return timm's names that match a shell pattern, pretrained tags left out."""
        optional.require("timm")
        import timm

        return tuple(timm.list_models(pattern))

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Find the architecture and the weights; the network is built without memory to count its values."""
        optional.require("torch", "timm")
        check(options)
        config = config_of(name)
        return describe(name, config, given_weights(options) or _pretrained(name, config), options)

    def open(self, original: Original) -> nn.Module:
        """Build the network and load its weights."""
        return open_network(original.name, original)


def describe(name: str, config: dict[str, Any], weights: tuple[str, str], options: SourceOptions) -> Original:
    """Describe a network that timm builds.

    Args:
        name: Of the architecture, as timm knows it.
        config: Its pretrained configuration.
        weights: File of its weights ("" for random ones), and their hash.
        options: How it is opened.

    Raises:
        UsageError: Options that don't fit it.
        BadInputError: A checkpoint that can't be read.
    """
    versions = optional.require("torch", "timm")
    found = read(Path(options.weights), options.checkpoint_key) if options.weights is not None else None
    options, told = training.told_by(found.options, options) if found is not None else (options, ())
    recipe = head.preprocess_of(config, options)
    classes, noted = _classes(name, config, options, found)
    task = "embedding" if options.embedding or classes == 0 else "logits"
    if task == "embedding" and options.labels is not None:
        raise UsageError(f"--labels {options.labels}: {name} answers with features, which have no class names")
    settings = {"classes": classes, "arguments": dict(options.model_args), "image_size": options.image_size}
    import torch

    with torch.device("meta"):
        module = _headless(_build(name, options, classes), task, classes)
    return Original(
        id=name.partition(".")[0],
        scheme=TimmScheme.name,
        name=name,
        options=dataclasses.replace(options, num_classes=classes),
        weights_file=weights[0],
        family=family_name(options.family, family_of(name).name),
        task=task,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weights_sha256=weights[1],
        spec_sha256=serde.digest([name, settings, versions, options.checkpoint_key]),
        preprocess=recipe,
        labels=head.labels_of(options, classes) if task == "logits" else (),
        images=None,
        notes=(*told, *noted) or None,
    )


def open_network(name: str, original: Original) -> nn.Module:
    """Build the network that timm knows as `name`, and load the weights of `original`.

    Raises:
        BadInputError: They are missing, changed, or of another shape than the architecture.
    """
    optional.require("torch", "timm", "safetensors")
    options, classes = original.options, original.options.num_classes or 0
    with random_weights.seeded():
        module = _build(name, options, classes)
    if options.random_weights:
        random_weights.settle(module, head.sample_images(original.recipe))
    else:
        check_weights(original)
        path = Path(original.weights_file)
        _load(module, read(path, options.checkpoint_key).state, path)
    return _headless(module, original.task, classes).eval()


def check(options: SourceOptions) -> None:
    """Refuse arguments that would be ignored or that would go around an option.

    Raises:
        UsageError: There is one.
    """
    if options.checkpoint_key is not None and options.weights is None:
        raise UsageError(f"--checkpoint-key {options.checkpoint_key}: there is no --weights FILE to look in")
    for name in sorted(RESERVED.keys() & options.model_args.keys()):
        instead = f": say {RESERVED[name]}" if RESERVED[name] else " isn't supported"
        raise UsageError(f"--model-arg {name}{instead}")


def check_weights(original: Original) -> None:
    """Compare the file of an original's weights with what was resolved.

    Raises:
        BadInputError: It is missing or has changed.
    """
    path = Path(original.weights_file)
    if not path.is_file() or shards.digest_of(path) != original.weights_sha256:
        raise BadInputError(f"{path} is missing or has changed since it was resolved")


def _classes(
    name: str, config: dict[str, Any], options: SourceOptions, found: Checkpoint | None
) -> tuple[int, tuple[str, ...]]:
    """Return the size of the head, and what is to be told of a checkpoint.

    One with another project's names tells its head after timm has renamed them.
    """
    import torch

    usual = config.get("num_classes") or 0
    state: State | None = None
    notes: tuple[str, ...] = ()
    if found is not None and options.weights is not None:
        with torch.device("meta"):
            module = _build(name, options, usual if options.num_classes is None else options.num_classes)
        part = part_of(module, found.state, Path(options.weights))
        state, notes = _renamed(module, part.state), (*found.notes, *part.notes)
    classes = head.class_count(options, state, config.get("classifier"), usual)
    differ = training.classes_differ(found.options, classes) if found is not None else ()
    return classes, (*notes, *differ)


def _headless(module: nn.Module, task: str, classes: int) -> nn.Module:
    if task == "embedding" and classes:
        module.reset_classifier(0)  # type: ignore[operator]
    return module


def config_of(name: str) -> dict[str, Any]:
    """Return timm's pretrained configuration of a name.

    Raises:
        UsageError: timm knows no such model.
    """
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = [*timm.list_models()]
        near = difflib.get_close_matches(architecture, known, n=NEAR, cutoff=0.6)
        from deploykit.models.source_tiny import tiny_names

        near = [*difflib.get_close_matches(architecture, tiny_names(), n=NEAR, cutoff=0.6), *near][:NEAR]
        raise UsageError(
            f"{name!r} is no model that I know" + (f". Near: {', '.join(near)}" if near else ""),
            Hint("deploykit models 'PATTERN'", "lists those there are"),
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        raise UsageError(
            f"{name!r} has no such tag" + (f"; {architecture} has {', '.join(tags)}" if tags else "")
        ) from error
    return dict(dataclasses.asdict(config)) if config is not None else {}


def given_weights(options: SourceOptions) -> tuple[str, str] | None:
    """Return the file of the weights that were asked for ("" for random ones) and their hash, or None where none were.

    Raises:
        UsageError: No such file, or both were asked for.
    """
    if options.weights is not None and options.random_weights:
        raise UsageError("--weights and --random-weights contradict one another: choose one")
    if options.random_weights:
        return "", serde.digest(["random", random_weights.SEED])
    if options.weights is None:
        return None
    path = Path(options.weights)
    paths.check_file(path, "--weights")
    return str(path.resolve()), shards.digest_of(path)


def _pretrained(name: str, config: dict[str, Any]) -> tuple[str, str]:
    """Find timm's pretrained weights in the local cache of the hub, else on the hub; return their file and hash.

    Raises:
        ResourceError: They can't be had.
    """
    repository, filename = config.get("hf_hub_id"), config.get("hf_hub_filename")
    hints = (
        Hint("--weights FILE", "a checkpoint of yours (.safetensors, .pth)"),
        Hint("--random-weights", "to try the pipeline without them"),
    )
    if not repository:
        raise ResourceError(f"no weights for {name}: timm has none, and no file was given", *hints)
    candidates = (filename,) if filename else hub.WEIGHTS
    try:
        path = hub.fetch(repository, candidates)
    except ConnectionError as error:
        said = f": {first_line(error)[:120]}" if str(error) else ""
        unreachable = f"no weights for {name}: the hub can't be reached and no file was given{said}"
        raise ResourceError(unreachable, *hints) from error
    if path is None:
        raise ResourceError(f"no weights for {name}: {repository} holds none of {', '.join(candidates)}", *hints)
    return str(path), shards.digest_of(path)


def _build(name: str, options: SourceOptions, classes: int) -> nn.Module:
    """Build the network as timm leaves it.

    Raises:
        UsageError: It takes no such arguments.
    """
    import timm

    arguments: dict[str, Any] = dict(options.model_args)
    sized = {**arguments, "img_size": options.image_size} if options.image_size is not None else arguments
    try:
        try:
            module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **sized)
        except TypeError:
            if sized is arguments:
                raise
            module = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
    except FOREIGN as error:
        told = {key: value for key, value in sized.items() if key != "pretrained_cfg"}
        raise UsageError(f"timm can't build {name} with {told}: {first_line(error)}") from error
    return module


def first_line(error: Exception) -> str:
    """Return the first line of a message, or the error's kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load(module: nn.Module, state: State, path: Path) -> None:
    load_into(module, _renamed(module, part_of(module, state, path).state), path)


def _renamed(module: nn.Module, state: State) -> State:
    """Apply timm's own filter where names or shapes differ: it renames other projects' and resamples position embeddings."""
    own = module.state_dict()
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None or {key: value.shape for key, value in state.items()} == {key: own[key].shape for key in own}:
        return state
    try:
        return {str(key): value for key, value in rename(dict(state), module).items()}
    except FOREIGN:  # weights of another kind of network: loading says what doesn't fit
        return state


SCHEME = TimmScheme()
