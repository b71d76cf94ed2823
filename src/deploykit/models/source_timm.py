"""Any timm model: pretrained from the local cache or the hub, from a checkpoint, or with random weights."""

from __future__ import annotations

import dataclasses
import difflib
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import optional, serde
from deploykit.artifact import sha256_of
from deploykit.errors import BadInputError, Hint, ResourceError, UsageError
from deploykit.models import head, random_weights
from deploykit.models.checkpoint import State, load_into, read_checkpoint
from deploykit.models.family import family_of
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme

if TYPE_CHECKING:
    from torch import nn

#: Files that timm's hub repositories keep weights in, best first.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
#: Patience for the hub to answer at all.
CONNECT_SECONDS = 5.0
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
FOREIGN = (TypeError, ValueError, AssertionError, LookupError, RuntimeError, AttributeError, OSError)
#: Near names that an error lists.
NEAR = 4


class TimmScheme(Scheme):
    """timm's registry of models."""

    name = "timm"

    def names(self, pattern: str) -> tuple[str, ...]:
        """Return timm's names that match a shell pattern, pretrained tags left out."""
        optional.require("timm")
        import timm

        return tuple(timm.list_models(pattern))

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Find the architecture and the weights; the network is built without memory to count its values."""
        versions = optional.require("torch", "timm")
        _check(options)
        config = _config(name)
        weights, digest = _weights(name, config, options)
        recipe = head.preprocess_of(config, options)
        classes = _classes(name, config, options)
        task = "embedding" if options.embedding or classes == 0 else "logits"
        if task == "embedding" and options.labels is not None:
            raise UsageError(f"--labels {options.labels}: {name} answers with features, which have no class names")
        settings = {"classes": classes, "arguments": dict(options.model_args), "image_size": options.image_size}
        import torch

        with torch.device("meta"):
            module = _headless(_build(name, options, classes), task, classes)
        return Original(
            id=name.partition(".")[0],
            scheme=self.name,
            name=name,
            options=dataclasses.replace(options, num_classes=classes),
            weights_file=weights,
            family=family_of(name).name,
            task=task,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            weights_sha256=digest,
            spec_sha256=serde.digest([name, settings, versions, options.checkpoint_key]),
            preprocess=recipe,
            labels=head.labels_of(options, classes) if task == "logits" else (),
            images=None,
        )

    def open(self, original: Original) -> nn.Module:
        """Build the network and load its weights."""
        optional.require("torch", "timm", "safetensors")
        options, classes = original.options, original.options.num_classes or 0
        with random_weights.seeded():
            module = _build(original.name, options, classes)
        if options.random_weights:
            random_weights.settle(module, head.sample_images(original.preprocess))
        else:
            path = Path(original.weights_file)
            if not path.is_file() or sha256_of(path) != original.weights_sha256:
                raise BadInputError(f"{path} is missing or has changed since it was resolved")
            _load(module, read_checkpoint(path, options.checkpoint_key), path)
        return _headless(module, original.task, classes).eval()


def _check(options: SourceOptions) -> None:
    """Refuse arguments that would be ignored or that would go around an option.

    Raises:
        UsageError: There is one.
    """
    if options.checkpoint_key is not None and options.weights is None:
        raise UsageError(f"--checkpoint-key {options.checkpoint_key}: there is no --weights FILE to look in")
    for name in sorted(RESERVED.keys() & options.model_args.keys()):
        instead = f": say {RESERVED[name]}" if RESERVED[name] else " isn't supported"
        raise UsageError(f"--model-arg {name}{instead}")


def _classes(name: str, config: dict[str, Any], options: SourceOptions) -> int:
    """Return the size of the head; a checkpoint with another project's names tells it after timm has renamed them."""
    import torch

    usual = config.get("num_classes") or 0
    state: State | None = None
    if options.weights is not None:
        state = read_checkpoint(Path(options.weights), options.checkpoint_key)
        if options.num_classes is None:
            with torch.device("meta"):
                module = _build(name, options, usual)
            state = _renamed(module, state)
    return head.class_count(options, state, config.get("classifier"), usual)


def _headless(module: nn.Module, task: str, classes: int) -> nn.Module:
    if task == "embedding" and classes:
        module.reset_classifier(0)  # type: ignore[operator]
    return module


def _config(name: str) -> dict[str, Any]:
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


def _weights(name: str, config: dict[str, Any], options: SourceOptions) -> tuple[str, str]:
    """Return the file of the weights ("" for random ones) and their hash."""
    if options.weights is not None and options.random_weights:
        raise UsageError("--weights and --random-weights contradict one another: choose one")
    if options.random_weights:
        return "", serde.digest(["random", random_weights.SEED])
    if options.weights is not None:
        path = Path(options.weights)
        if not path.is_file():
            raise UsageError(f"{path} does not exist (given as --weights)")
        return str(path.resolve()), sha256_of(path)
    path = _pretrained(name, config)
    return str(path), sha256_of(path)


def _pretrained(name: str, config: dict[str, Any]) -> Path:
    """Find timm's pretrained weights in the local cache of the hub, else on the hub.

    Raises:
        ResourceError: They can't be had.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository, filename = config.get("hf_hub_id"), config.get("hf_hub_filename")
    hints = (
        Hint("--weights FILE", "a checkpoint of yours (.safetensors, .pth)"),
        Hint("--random-weights", "to try the pipeline without them"),
    )
    if not repository:
        raise ResourceError(f"no weights for {name}: timm has none, and no file was given", *hints)
    candidates = (filename,) if filename else HUB_FILES
    for candidate in candidates:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    unreachable = f"no weights for {name}: the hub can't be reached and no file was given"
    if huggingface_hub.constants.HF_HUB_OFFLINE or not _is_reachable(huggingface_hub.constants.ENDPOINT):
        raise ResourceError(unreachable, *hints)
    for candidate in candidates:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, candidate))
        except LocalEntryNotFoundError as error:  # its name says "not found", its meaning is "not reached"
            raise ResourceError(unreachable, *hints) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise ResourceError(f"{unreachable}: {_first(error)[:120]}", *hints) from error
    raise ResourceError(f"no weights for {name}: {repository} holds none of {', '.join(candidates)}", *hints)


def _is_reachable(endpoint: str) -> bool:
    """Tell at once what the hub's client finds out after half a minute of trying again: whether it, or its proxy, answers."""
    hub = urllib.parse.urlparse(endpoint)
    proxies = {} if urllib.request.proxy_bypass(hub.hostname or "") else urllib.request.getproxies()
    address = proxies.get(hub.scheme) or proxies.get("all") or endpoint
    host = urllib.parse.urlparse(address if "//" in address else f"//{address}")
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


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
        raise UsageError(f"timm can't build {name} with {sized}: {_first(error)}") from error
    return module


def _first(error: Exception) -> str:
    """Return the first line of a message, or the error's kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load(module: nn.Module, state: State, path: Path) -> None:
    load_into(module, _renamed(module, state), path)


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
