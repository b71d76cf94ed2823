"""A network of transformers: built from its configuration, loaded strictly, its position embeddings fixed to one size.

transformers fills what a checkpoint lacks with random values and goes on; here names and shapes must fit exactly. Vision
transformers resample their position embeddings at each call, by a bicubic Resize that runtimes disagree on: its result is
computed once, by transformers' own function, when the network is opened.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from deploykit import optional, serde
from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError, Hint, MissingComponentError, UsageError
from deploykit.models import dtypes, head, hf_preprocess, random_weights, source_timm
from deploykit.models.checkpoint import read
from deploykit.models.family import FALLBACK, family_name
from deploykit.models.fit import COUNTER, State, part_of, refuse
from deploykit.models.hf_place import CONFIG, Place
from deploykit.models.hf_quiet import quiet
from deploykit.models.original import Original, SourceOptions
from deploykit.models.source_timm import FOREIGN, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

#: Families by transformers' model_type.
FAMILIES = {"convnext": "convnext", "convnextv2": "convnext", "dinov2": "dinov2", "dinov2_with_registers": "dinov2"}
#: How names of networks say what they answer with.
CLASSIFIER, BACKBONE = "ForImageClassification", "Model"
#: What transformers calls classes that nobody named.
UNNAMED = "LABEL_"
#: The parameter of a token that stands for the whole image.
CLS = "cls_token"
SIZE = Hint("--image-size PIXELS", "height and width of the input")
#: The argument that leaves a pooler off.
POOLER = "add_pooling_layer"
#: The method and the argument of embeddings that fit their positions to an image size.
RESAMPLE = "interpolate_pos_encoding"


@dataclass(frozen=True)
class Kind:
    """Which network a configuration describes.

    Attributes:
        network: transformers' class.
        config: What it is built from.
        task: What is asked of it: "logits" or "embedding".
    """

    network: type[PreTrainedModel]
    config: PretrainedConfig
    task: str

    @property
    def name(self) -> str:
        """The class's name."""
        return self.network.__name__


def describe(place: Place, data: Mapping[str, Any], options: SourceOptions) -> Original:
    """Describe a network of transformers; it is built without memory to see what it takes and answers with.

    Args:
        place: Where it lies.
        data: What its config.json holds.
        options: How it is opened.

    Raises:
        UsageError: No such network, or one that doesn't take images or options as asked.
        BadInputError: Its files are missing or damaged.
        MissingComponentError: A library that it needs is not installed.
        ResourceError: The hub can't be reached.
    """
    versions = optional.require("torch", "timm", "safetensors", "transformers")
    kind = _kind(place, data, options)
    weights = source_timm.given_weights(options) or place.weights()
    recipe = head.preprocess_of(hf_preprocess.read(place, kind.config, options), options)
    state, notes = _state(kind, weights[0], options)
    module = _on_meta(kind, _arguments(kind, state), recipe)
    settings = {"config": data, "versions": versions, "key": options.checkpoint_key}
    return Original(
        id=place.id,
        scheme="hf",
        name=place.name,
        options=options,
        weights_file=weights[0],
        family=family_name(options.family, FAMILIES.get(str(data["model_type"]), FALLBACK)),
        task=kind.task,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weights_sha256=weights[1],
        spec_sha256=serde.digest(settings),
        preprocess=recipe,
        labels=_labels(place, kind, data, options) if kind.task == "logits" else (),
        images=None,
        notes=notes or None,
    )


def open_network(place: Place, data: Mapping[str, Any], original: Original) -> nn.Module:
    """Build a network and load its weights.

    Returns:
        The module in evaluation mode; it maps float32 [N, 3, H, W] of the original's size to one tensor [N, ...].

    Raises:
        BadInputError: The weights are missing or damaged, or don't fit to the letter.
    """
    optional.require("torch", "timm", "safetensors", "transformers")
    kind, recipe = _kind(place, data, original.options), original.recipe
    state, _ = _state(kind, original.weights_file, original.options)
    arguments = _arguments(kind, state)
    with random_weights.seeded():
        file = original.weights_file
        model = _built(kind, arguments) if state is None else _loaded(kind, arguments, state, file)
    module = _answering(kind, model, recipe)
    if state is None:
        random_weights.settle(module, head.sample_images(recipe))
    _fix_positions(module, recipe)
    return module.eval()


def _kind(place: Place, data: Mapping[str, Any], options: SourceOptions) -> Kind:
    """Find the network that a configuration names, and check that it answers as asked."""
    unfit = sorted({"num_classes", "model_args"} & set(options.given))
    if unfit:
        raise UsageError(f"hf:{place.name}: {', '.join(unfit)} is the matter of its {CONFIG}")
    network = _network(place, data)
    name = network.__name__
    if CLASSIFIER not in name and not name.endswith(BACKBONE):
        raise UsageError(
            f"hf:{place.name} is a {name}, which answers with neither class logits nor features: ...{CLASSIFIER} and "
            f"...{BACKBONE} do"
        )
    task = "logits" if CLASSIFIER in name and not options.embedding else "embedding"
    if task == "embedding" and options.labels is not None:
        raise UsageError(f"--labels {options.labels}: hf:{place.name} answers with features, which have no class names")
    config = _config(place, network, data)
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise UsageError(f"hf:{place.name} takes {channels} channels: only images of 3 are prepared")
    return Kind(network, config, task)


def _network(place: Place, data: Mapping[str, Any]) -> type[PreTrainedModel]:
    import transformers

    model_type, names = data["model_type"], data.get("architectures")
    known = f"hf:{place.name}: transformers {transformers.__version__} knows no"
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise UsageError(f"{known} model_type {model_type!r}")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UsageError(f"hf:{place.name}: its {CONFIG} doesn't say which network it is: architectures {names!r}")
    try:
        network: Any = getattr(transformers, names[0], None)
    except (ImportError, RuntimeError) as error:
        raise MissingComponentError(f"transformers can't import {names[0]}: {first_line(error)}") from error
    is_network = isinstance(network, type) and issubclass(network, transformers.PreTrainedModel)
    if not is_network:
        raise UsageError(f"{known} network {names[0]!r}")
    own = getattr(network.config_class, "model_type", None)
    if own != model_type:
        raise BadInputError(
            f"hf:{place.name}: its {CONFIG} contradicts itself: {names[0]} is {own!r}, not {model_type!r}"
        )
    if network.main_input_name != "pixel_values":
        raise UsageError(f"hf:{place.name} is a {names[0]}, which takes {network.main_input_name}, not one image")
    found: type[PreTrainedModel] = network
    return found


def _config(place: Place, network: type[PreTrainedModel], data: Mapping[str, Any]) -> PretrainedConfig:
    """Build the configuration; attention is the library's usual, never a kernel that a configuration names."""
    if data.get("quantization_config"):
        raise UsageError(f"hf:{place.name} is quantized already: give the one that was trained")
    if elsewhere := _elsewhere(data):
        raise UsageError(f"hf:{place.name} is built around another model ({elsewhere}), which isn't fetched")
    from huggingface_hub.errors import StrictDataclassError

    attention = "sdpa" if getattr(network, "_supports_sdpa", False) else "eager"
    try:
        with quiet():
            config: PretrainedConfig = network.config_class.from_dict(dict(data))
            config._attn_implementation = attention  # noqa: SLF001 - what the constructor takes, a configuration overrules
    except (*FOREIGN, StrictDataclassError) as error:
        raise BadInputError(f"hf:{place.name}: {CONFIG} is damaged: {_told(error)}") from error
    return config


def _elsewhere(data: Mapping[str, Any]) -> str:
    """Return what a configuration, or one within it, says of another model that it would fetch, or ""."""
    within: list[Any] = [data]
    while within:
        value = within.pop()
        if isinstance(value, dict):
            named = [str(value[key]) for key in ("backbone", "use_pretrained_backbone") if value.get(key)]
            if named:
                return named[0]
            within += value.values()
        elif isinstance(value, list):
            within += value
    return ""


def _told(error: Exception) -> str:
    """Return a message on one line: those of a configuration's checks say the value on their second."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _state(kind: Kind, weights_file: str, options: SourceOptions) -> tuple[State | None, tuple[str, ...]]:
    """Read the network's part of a checkpoint; return it with what is to be told."""
    import torch

    if not weights_file:
        return None, ()
    found = read(Path(weights_file), options.checkpoint_key)
    with torch.device("meta"):
        network = _built(kind, {POOLER: False} if _may_pool(kind) else {})
    part = part_of(network, found.state, Path(weights_file))
    return part.state, (*found.notes, *part.notes)


def _may_pool(kind: Kind) -> bool:
    return POOLER in inspect.signature(kind.network.__init__).parameters


def _arguments(kind: Kind, state: State | None) -> dict[str, Any]:
    """Leave a pooler off that the checkpoint was trained without: it would be made of random values."""
    if not _may_pool(kind) or state is None or any("pooler" in name.split(".") for name in state):
        return {}
    return {POOLER: False}


def _built(kind: Kind, arguments: Mapping[str, Any]) -> PreTrainedModel:
    try:
        with quiet():
            return kind.network(kind.config, **arguments)
    except ImportError as error:
        raise MissingComponentError(f"{kind.name} can't be built here: {_told(error)}") from error
    except FOREIGN as error:
        raise BadInputError(f"{CONFIG} describes no {kind.name} that can be built: {_told(error)}") from error


def _loaded(kind: Kind, arguments: Mapping[str, Any], state: State, weights_file: str) -> PreTrainedModel:
    """Build a network with the checkpoint's values, and nothing but those."""
    import torch

    try:
        with quiet():
            model, found = kind.network.from_pretrained(
                None,
                config=kind.config,
                state_dict=dict(state),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                **arguments,
            )
    except FOREIGN as error:
        raise BadInputError(f"{weights_file} can't be loaded into {kind.name}: {_told(error)}") from error
    shapes = [f"{name} {list(given)} for {list(own)}" for name, given, own in found["mismatched_keys"]]
    problems = {
        "missing": sorted(name for name in found["missing_keys"] if not name.endswith(COUNTER)),
        "unknown": sorted(found["unexpected_keys"]),
        "of another shape": sorted(shapes),
        "of another type": dtypes.misfits(model.state_dict(), state),
        "unreadable": sorted(found["error_msgs"]),
    }
    hint = Hint(CONFIG, "must be the one that was saved with these weights")
    refuse(f"{weights_file} doesn't fit {kind.name}", problems, hint)
    loaded: PreTrainedModel = model
    return loaded


def _answering(kind: Kind, model: PreTrainedModel, recipe: Preprocess) -> nn.Module:
    """Wrap a network so that it maps images to one tensor; of a classifier whose features are asked for, its backbone."""
    from torch import nn

    body: nn.Module = model.base_model if kind.task == "embedding" else model
    if kind.task == "embedding" and CLASSIFIER in kind.name and body is model:
        raise UsageError(f"{kind.name} has no backbone apart from its head: its features can't be asked for")
    native = getattr(kind.config, "image_size", None)
    sides = (native, native) if isinstance(native, int) else native
    is_fitted = sides is None or tuple(sides) == tuple(recipe.input_size[1:])
    takes = RESAMPLE in inspect.signature(body.forward).parameters
    further = {RESAMPLE: True} if takes and not is_fitted else {}
    take = TAKE[kind.task]

    class Network(nn.Module):
        """float32 [N, 3, H, W] to logits or features [N, C]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = body
            self.further = further

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return take(self.model(pixel_values=images, **self.further))

    return Network().eval()


def _features(answer: Any) -> torch.Tensor:  # noqa: ANN401 - a different class for each network
    """Return what the network pools, [N, C] or [N, C, 1, 1], else its CLS token."""
    pooled: torch.Tensor | None = getattr(answer, "pooler_output", None)
    return pooled.flatten(1) if pooled is not None else _first_token(answer.last_hidden_state)


def _first_token(states: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _logits(answer: Any) -> torch.Tensor:  # noqa: ANN401
    logits: torch.Tensor = answer.logits
    return logits


#: What is taken of an answer, by the task.
TAKE: Mapping[str, Callable[[Any], torch.Tensor]] = {"logits": _logits, "embedding": _features}


def _on_meta(kind: Kind, arguments: Mapping[str, Any], recipe: Preprocess) -> nn.Module:
    """Build a network without memory, and check that it takes images of this size and answers with one vector each."""
    import torch

    with torch.device("meta"):
        module: Any = _answering(kind, _built(kind, arguments), recipe)
        _check_patches(kind, module, recipe)
        images = torch.empty(1, *recipe.input_size)
        try:
            with torch.inference_mode(), quiet():
                raw = module.model(pixel_values=images, **module.further)
                answer = TAKE[kind.task](raw)
        except FOREIGN as error:
            size = "x".join(map(str, recipe.input_size[1:]))
            raise UsageError(f"{kind.name} can't take images of {size} pixels: {_told(error)}", SIZE) from error
    is_pooled = kind.task == "logits" or getattr(raw, "pooler_output", None) is not None
    if not is_pooled and not any(name.endswith(CLS) for name, _ in module.named_parameters()):
        raise UsageError(f"{kind.name} answers with neither pooled features nor a CLS token")
    if answer.ndim != 2:
        raise UsageError(f"{kind.name} answers with {list(answer.shape)}: one vector per image is needed")
    network: nn.Module = module
    return network


def _check_patches(kind: Kind, module: nn.Module, recipe: Preprocess) -> None:
    """Refuse an image that embeddings would cut the edge off."""
    patch = getattr(kind.config, "patch_size", None)
    if not isinstance(patch, int) or not _embeddings(module):
        return
    for side in recipe.input_size[1:]:
        below = side - side % patch
        near = ", ".join(str(size) for size in (below, below + patch) if size)
        if side != below:
            raise UsageError(f"{kind.name} takes patches of {patch} pixels: {side} is no multiple. Near: {near}", SIZE)


def _embeddings(module: nn.Module) -> list[nn.Module]:
    """Return the parts that take the image and can fit their position embeddings to its size."""
    return [
        part
        for part in module.modules()
        if callable(getattr(part, RESAMPLE, None)) and "pixel_values" in inspect.signature(part.forward).parameters
    ]


def _fix_positions(module: nn.Module, recipe: Preprocess) -> None:
    """Put in place of each resampling of position embeddings its result at the recipe's image size."""
    for part in _embeddings(module):
        positions = _resampled(part, recipe, module.further)  # type: ignore[arg-type]
        if positions is not None:
            part.register_buffer("fixed_positions", positions, persistent=False)
            setattr(part, RESAMPLE, MethodType(lambda part, *_: part.fixed_positions, part))


def _resampled(part: nn.Module, recipe: Preprocess, further: Mapping[str, Any]) -> torch.Tensor | None:
    """Run embeddings on one image and return the positions, [1, tokens, C], that they resample; None where they don't."""
    import torch

    resample: Callable[..., torch.Tensor] = getattr(part, RESAMPLE)
    results: list[torch.Tensor] = []

    def note(*given: object) -> torch.Tensor:
        results.append(resample(*given))
        return results[-1]

    setattr(part, RESAMPLE, note)
    try:
        with torch.no_grad():
            part(torch.zeros(1, *recipe.input_size), **further)
    finally:
        delattr(part, RESAMPLE)
    return results[-1].detach().clone() if results else None


def _labels(place: Place, kind: Kind, data: Mapping[str, Any], options: SourceOptions) -> tuple[str, ...]:
    """Return the class names: of the file that was given, else of the configuration, else as `head` finds them."""
    classes = int(kind.config.num_labels)
    names = data.get("id2label") or {}
    if options.labels is not None or not names or all(str(name).startswith(UNNAMED) for name in names.values()):
        return head.labels_of(options, classes)
    if set(names) != {str(index) for index in range(classes)}:
        raise BadInputError(f"hf:{place.name}: id2label in its {CONFIG} names no classes 0 to {classes - 1}")
    return distinct([str(names[str(index)]) for index in range(classes)])


def distinct(names: list[str]) -> tuple[str, ...]:
    """Tell classes of the same name apart by their numbers: ImageNet has two cranes."""
    return tuple(name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names))
