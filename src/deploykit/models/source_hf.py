"""Models of the Hugging Face world: "hf:FOLDER" or "hf:OWNER/NAME", timm's own and transformers' own.

Which of the two it is, its config.json says: timm's names an "architecture", transformers' a "model_type". From a folder
nothing but files of that folder is read, and code that a model brings along is never run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import optional, paths
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models import head, hf_network, source_timm
from deploykit.models.hf_place import CONFIG, Place
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme
from deploykit.models.source_timm import FOREIGN, first_line

if TYPE_CHECKING:
    from torch import nn

#: By which key of its config.json a model is known.
TIMM, TRANSFORMERS = "architecture", "model_type"
#: timm's networks as transformers saves them: both keys, and other names of weights.
WRAPPER = "timm_wrapper"
#: Arguments that timm saves with a model, of those that an option of ours stands for.
SAVED = {"img_size", "in_chans", "num_classes"}


class HfScheme(Scheme):
    """Folders that `save_pretrained` or timm wrote, and repositories of the hub that hold the same files."""

    name = "hf"

    def names(self, pattern: str) -> tuple[str, ...]:  # noqa: ARG002 - folders aren't searched, and the hub isn't asked
        """Return nothing."""
        return ()

    def claims(self, text: str) -> bool:
        """Tell whether it is the path of a folder with a model in it; a name alone may be one of timm's."""
        return ("/" in text or os.sep in text) and not paths.fault(Path(text, CONFIG))

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Read what a model's files say of it."""
        optional.require("torch", "timm", "safetensors")
        source_timm.check(options)
        place = Place.of(name)
        config = place.config()
        return (
            _describe_timm(place, config, options)
            if _is_timm(place, config)
            else hf_network.describe(place, config, options)
        )

    def check(self, original: Original) -> None:
        """Compare the file of the weights with what was resolved."""
        if not original.options.random_weights:
            source_timm.check_weights(original)

    def open(self, original: Original) -> nn.Module:
        """Build the network and load its weights."""
        self.check(original)
        place = Place.of(original.name)
        config = place.config()
        if not _is_timm(place, config):
            return hf_network.open_network(place, config, original)
        architecture, _, options = _timm(place, config, original.options)
        return source_timm.open_network(architecture, dataclasses.replace(original, options=options))


def _is_timm(place: Place, config: Mapping[str, Any]) -> bool:
    if TIMM not in config and TRANSFORMERS not in config:
        raise UsageError(
            f"hf:{place.name} is no model that I know: its {CONFIG} has neither {TIMM!r} nor {TRANSFORMERS!r}"
        )
    if config.get(TRANSFORMERS) == WRAPPER:
        raise UsageError(
            f"hf:{place.name} is a network of timm's that transformers wraps ({WRAPPER}), which isn't read",
            Hint("timm.models.save_for_hf(model.timm_model, FOLDER)", "writes it as timm's own"),
        )
    return TIMM in config


def _describe_timm(place: Place, config: Mapping[str, Any], options: SourceOptions) -> Original:
    architecture, own, merged = _timm(place, config, options)
    try:
        head.preprocess_of(own, options)
    except FOREIGN as error:
        raise BadInputError(
            f"hf:{place.name}: pretrained_cfg in its {CONFIG} is damaged: {first_line(error)}"
        ) from error
    weights = source_timm.given_weights(options) or place.weights()
    original = source_timm.describe(architecture, own, weights, merged)
    classes = original.options.num_classes or 0
    names = own.get("label_names") or ()
    is_named = original.task == "logits" and options.labels is None and len(names) == classes
    return dataclasses.replace(
        original,
        id=place.id,
        scheme=HfScheme.name,
        name=place.name,
        options=dataclasses.replace(original.options, model_args=options.model_args),
        labels=hf_network.distinct([str(name) for name in names]) if is_named else original.labels,
    )


def _timm(place: Place, config: Mapping[str, Any], options: SourceOptions) -> tuple[str, dict[str, Any], SourceOptions]:
    """Return the architecture, its pretrained configuration, and the options with the arguments that it was saved with.

    Raises:
        UsageError: timm knows no such architecture.
        BadInputError: The configuration is damaged, or has timm load something else.
    """
    from timm.models import PretrainedCfg
    from timm.models._hub import load_model_config_from_path

    path = place.find(CONFIG)
    assert path is not None, "the configuration has been read"  # noqa: S101
    if not isinstance(config[TIMM], str):
        raise BadInputError(f"{path} is damaged: {TIMM} {config[TIMM]!r}")
    source_timm.config_of(config[TIMM])
    try:
        found, architecture, arguments = load_model_config_from_path(path.parent)
        kept = {key: value for key, value in found.items() if key not in {"file", "source"}}
        own: dict[str, Any] = dataclasses.asdict(PretrainedCfg(**kept))
        strange = sorted((source_timm.RESERVED.keys() - SAVED) & dict(arguments).keys())
    except FOREIGN as error:
        raise BadInputError(f"{path} is damaged: {first_line(error)}") from error
    if strange:
        raise BadInputError(f"{path}: model_args {strange[0]} {arguments[strange[0]]!r} isn't supported")
    merged = {**arguments, "pretrained_cfg": own, **options.model_args}
    merged.pop("num_classes", None)
    return architecture, own, dataclasses.replace(options, model_args=merged)


SCHEME = HfScheme()
