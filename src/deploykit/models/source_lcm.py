"""UNets of latent consistency models: "lcm:FOLDER", "lcm:OWNER/NAME", "lcm:sd15" without weights, and the one that ships.

A folder is what diffusers' `save_pretrained` writes, a whole pipeline or its UNet alone; of a repository on the hub nothing
but the UNet's own files is fetched. Weights are read from safetensors only, and code that a model brings along is never run.
A UNet without a guidance embedding is an ordinary one, until an LCM-LoRA is fused into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit import optional, paths, serde
from deploykit.artifact import sha256_of
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models import lora, random_weights, shards
from deploykit.models.checkpoint import SAFETENSORS, read_checkpoint
from deploykit.models.fit import load_into
from deploykit.models.hf_place import CONFIG, Place, read_object
from deploykit.models.interface import BATCH, Input, Interface
from deploykit.models.original import Original, SourceOptions
from deploykit.models.scheme import Scheme
from deploykit.models.source_timm import FOREIGN, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

NAME: Final = "lcm"
UNET: Final = "UNet2DConditionModel"
#: The network that ships with the package, and the folder that it lies in.
SHIPPED: Final[Mapping[str, Path]] = {"tiny-lcm-unet": Path(__file__).parent / "tiny_lcm"}
#: Architectures without weights.
ARCHITECTURES: Final[Mapping[str, Mapping[str, Any]]] = {
    "sd15": {
        "_class_name": UNET,
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 768,
        "time_cond_proj_dim": 256,
    },
}
STEM: Final = "diffusion_pytorch_model"
WEIGHTS: Final = f"{STEM}{SAFETENSORS}"
#: Where they lie in a pipeline's folder, and in that of the UNet alone.
FOLDERS: Final = ("unet/", "")
#: Of a whole pipeline: which classes it is made of, and how long its prompts are.
PIPELINE, TOKENIZER, LENGTH = "model_index.json", "tokenizer/tokenizer_config.json", "model_max_length"
#: Tokens that CLIP pads prompts to.
USUAL_LENGTH: Final = 77
#: Settings that give a UNet another input, and what it is called.
FURTHER: Final[Mapping[str, str]] = {
    "addition_embed_type": "added_cond_kwargs",
    "class_embed_type": "class_labels",
    "num_class_embeds": "class_labels",
    "encoder_hid_dim_type": "added_cond_kwargs",
}
FIT: Final = Hint("unet/config.json", "must be the one that was saved with these weights")


class LcmScheme(Scheme):
    """Folders of diffusers, repositories of the hub that hold the same files, and architectures by name."""

    name = NAME
    adapts = True

    def names(self, pattern: str) -> tuple[str, ...]:
        """Return the names that match a shell pattern, of what ships with the package."""
        return tuple(name for name in SHIPPED if fnmatch(name, pattern))

    def claims(self, text: str) -> bool:
        """Tell whether it is the network that ships, or the path of a pipeline's folder."""
        return text in SHIPPED or not paths.fault(Path(text, "unet", CONFIG))

    def ships(self, name: str) -> bool:
        """Tell whether it is the network that ships."""
        return name in SHIPPED

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Read what a UNet's files say of it; the network is built without memory to count its values."""
        versions = optional.require("torch", "diffusers", "safetensors")
        refused = sorted(options.given.keys() - {"random_weights", "lora"})
        if refused:
            raise UsageError(f"{NAME}:{name} takes no {', '.join(refused)}")
        config = _config(name, options)
        interface = _interface(config, _length(name))
        file = None if options.random_weights else _weights(name)
        import torch

        with torch.device("meta"):
            module = _build(config, name)
        if options.lora is not None:
            lora.check(module, Path(options.lora))
            options = replace(options, lora=str(Path(options.lora).resolve()))
        return Original(
            id=_id(name),
            scheme=self.name,
            name=name if name in SHIPPED or name in ARCHITECTURES else Place.of(name, NAME).name,
            options=options,
            weights_file=str(file or ""),
            family=NAME,
            task="noise",
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            weights_sha256=_digest(file, options),
            spec_sha256=serde.digest([_settings(config), versions]),
            preprocess=None,
            labels=(),
            images=None,
            form="diffusers",
            interface=interface,
        )

    def check(self, original: Original) -> None:
        """Compare the files of the weights with what was resolved."""
        file = Path(original.weights_file) if original.weights_file else None
        files = [path for path in (file, original.options.lora) if path is not None]
        missing = [str(path) for path in files if not Path(path).is_file()]
        if missing or _digest(file, original.options) != original.weights_sha256:
            told = " and ".join(missing) or " or ".join(map(str, files))
            raise BadInputError(f"{told} is missing or has changed since it was resolved")

    def open(self, original: Original) -> nn.Module:
        """Build the network and load its weights: the tensors of the file become the network's own, no second copy."""
        optional.require("torch", "diffusers", "safetensors")
        import torch

        config = _config(original.name, original.options)
        self.check(original)
        if original.options.random_weights:
            with random_weights.seeded():
                unet = _build(config, original.name)
            random_weights.settle(unet, torch.empty(0))
        else:
            with torch.device("meta"):
                unet = _build(config, original.name)
            path = Path(original.weights_file)
            read = read_checkpoint(path)
            state = {key: value.float() if value.is_floating_point() else value for key, value in read.items()}
            load_into(unet, state, path, hint=FIT, assign=True)
        if original.options.lora is not None:
            lora.fuse(unet, Path(original.options.lora))
        return denoiser(unet, guided=bool(config.get("time_cond_proj_dim")))


def denoiser(unet: nn.Module, *, guided: bool) -> nn.Module:
    """Wrap a UNet so that it takes its inputs by position, in the order of the interface, and returns one tensor.

    Args:
        unet: diffusers' own.
        guided: It takes a guidance embedding too.
    """
    from torch import nn

    class Denoiser(nn.Module):
        """float32 [N, C, H, W], int64 [N] and float32 [N, L, D] to the predicted noise, float32 [N, C, H, W]."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(
            self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
        ) -> torch.Tensor:
            answer: tuple[torch.Tensor, ...] = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)
            return answer[0]

    class GuidedDenoiser(nn.Module):
        """The same with a guidance embedding as well, float32 [N, E]."""

        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(
            self,
            sample: torch.Tensor,
            timestep: torch.Tensor,
            encoder_hidden_states: torch.Tensor,
            timestep_cond: torch.Tensor,
        ) -> torch.Tensor:
            answer: tuple[torch.Tensor, ...] = self.unet(
                sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False
            )
            return answer[0]

    return (GuidedDenoiser if guided else Denoiser)().eval()


def _id(name: str) -> str:
    return f"{NAME}-{name}" if name in ARCHITECTURES else name if name in SHIPPED else Place.of(name, NAME).id


def _place(name: str) -> Place:
    return Place.of(str(SHIPPED.get(name, name)), NAME)


def _digest(file: Path | None, options: SourceOptions) -> str:
    """Hash what decides the weights: a file or a seed, and a LoRA."""
    base = serde.digest(["random", random_weights.SEED]) if file is None else shards.digest_of(file)
    return base if options.lora is None else serde.digest([base, "lora", sha256_of(Path(options.lora))])


def _config(name: str, options: SourceOptions) -> Mapping[str, Any]:
    """Read a UNet's configuration and check that it is one of an LCM, or becomes one by a LoRA.

    Raises:
        UsageError: It is something else; the message says what.
        BadInputError: It is damaged, or asks for code that would come with it.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    place = _place(name)
    path = place.find(f"unet/{CONFIG}", CONFIG)
    if path is None:
        index = place.find(PIPELINE)
        made = (
            f"a {read_object(index).get('_class_name')} without a UNet" if index is not None else "no diffusion model"
        )
        raise UsageError(
            f"{place.text} is {made}: it has neither unet/{CONFIG} nor {CONFIG}",
            Hint(f"{NAME}:FOLDER", "opens a folder as diffusers' save_pretrained writes it"),
        )
    config = read_object(path)
    _check_kind(place.text, config, adapted=options.lora is not None)
    return config


def _check_kind(text: str, config: Mapping[str, Any], *, adapted: bool) -> None:
    """Refuse what is no UNet of an LCM; an `adapted` one needs no guidance embedding.

    Raises:
        UsageError: It isn't; the message says what it is.
    """
    kind = config.get("_class_name")
    if kind != UNET:
        named = config.get("model_type") or config.get("architecture")
        raise UsageError(f"{text} is a {kind or named or 'model of an unknown kind'}, not a {UNET}")
    if config.get("addition_embed_type") == "text_time":
        raise UsageError(
            f"{text} is the UNet of Stable Diffusion XL, which takes text_embeds and time_ids too: not supported"
        )
    further = [f"{key} {config[key]!r} takes {name}" for key, name in FURTHER.items() if config.get(key) is not None]
    if further:
        raise UsageError(f"{text} takes more than an LCM's inputs, which isn't supported: {', '.join(further)}")
    if not (config.get("time_cond_proj_dim") or adapted):
        raise UsageError(
            f"{text} is an ordinary diffusion UNet, no LCM: it takes no guidance embedding (time_cond_proj_dim is not set)",
            Hint("--lora lcm-lora.safetensors", "makes one of it"),
        )
    if config.get("in_channels") != config.get("out_channels"):
        raise UsageError(
            f"{text} takes {config.get('in_channels')} channels and gives {config.get('out_channels')}: an inpainting UNet, "
            "whose latents are not what it gives"
        )


def _weights(name: str) -> Path:
    """Find the file of the weights and look into it.

    Raises:
        UsageError: An architecture has none, or there are several variants to choose from.
        BadInputError: They are not there whole, or only as a pickle.
    """
    if name in ARCHITECTURES:
        raise UsageError(f"{NAME}:{name} is an architecture without weights", Hint("--random-weights"))
    place = _place(name)
    path = place.spread(STEM, SAFETENSORS, FOLDERS)
    if path is not None:
        for part in shards.parts_of(path):
            if part.suffix == SAFETENSORS:
                _check_whole(part)
        return path
    pickle = place.find(*_either(f"{STEM}.bin"))
    what = (
        "only a pickle of its weights, which isn't read"
        if pickle is not None
        else "no weights: is its download complete?"
    )
    raise BadInputError(
        f"{place.text} holds {what}: {WEIGHTS} is missing",
        Hint("unet.save_pretrained(FOLDER)", "writes safetensors"),
        Hint("--random-weights", "to try the pipeline without them"),
    )


def _either(*files: str) -> tuple[str, ...]:
    """Return where files may lie: in a pipeline's folder or in that of the UNet alone."""
    return tuple(f"{folder}{file}" for folder in FOLDERS for file in files)


def _check_whole(path: Path) -> None:
    """Refuse half a download before anything is hashed or built.

    Raises:
        BadInputError: The file is shorter than its header says, or has none.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, "np"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise BadInputError(
            f"{path} is no whole safetensors file: {first_line(error)}",
            Hint("download it again", "half of it is not enough"),
        ) from error


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the architecture, without notes such as the version that wrote it."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _build(config: Mapping[str, Any], name: str) -> nn.Module:
    """Build the network.

    Raises:
        BadInputError: diffusers can't, from this configuration.
    """
    from diffusers import UNet2DConditionModel

    try:
        module: nn.Module = UNet2DConditionModel.from_config(_settings(config))
    except FOREIGN as error:
        raise BadInputError(
            f"{NAME}:{name}: diffusers builds no {UNET} from its {CONFIG}: {first_line(error)}"
        ) from error
    return module


def _length(name: str) -> int:
    """Return how many tokens prompts have: what a folder's tokenizer says, else CLIP's."""
    place = None if name in ARCHITECTURES else _place(name)
    path = place.find(TOKENIZER) if place is not None and place.is_folder else None
    found = read_object(path).get(LENGTH) if path is not None else None
    return found if isinstance(found, int) and 0 < found <= 512 else USUAL_LENGTH


def _interface(config: Mapping[str, Any], length: int) -> Interface:
    """Return the inputs under the names that diffusers gives them, time steps by row.

    Raises:
        BadInputError: Sizes that are no numbers.
    """
    side = config.get("sample_size")
    sides = side if isinstance(side, list) and len(side) == 2 else [side, side]
    height, width = (_number("sample_size", each) for each in sides)
    channels, states = (_number(key, config.get(key)) for key in ("in_channels", "cross_attention_dim"))
    latents = (BATCH, channels, "height", "width")
    inputs = [
        Input("sample", "float32", latents),
        Input("timestep", "int64", (BATCH,)),
        Input("encoder_hidden_states", "float32", (BATCH, "sequence", states)),
    ]
    guidance = config.get("time_cond_proj_dim")
    if guidance:
        inputs.append(Input("timestep_cond", "float32", (BATCH, _number("time_cond_proj_dim", guidance))))
    return Interface(tuple(inputs), "out_sample", latents, {"height": height, "width": width, "sequence": length}, NAME)


def _number(key: str, value: object) -> int:
    """Return a size.

    Raises:
        BadInputError: It is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInputError(f"{CONFIG}: {key} must be a number, found {value!r}")
    return value


SCHEME = LcmScheme()
