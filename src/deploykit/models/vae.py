"""Decoders: from latents to pictures, by the autoencoder of a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit import optional
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models.hf_place import CONFIG, read_object
from deploykit.models.source_timm import FOREIGN, first_line

if TYPE_CHECKING:
    import torch

AUTOENCODER: Final = "AutoencoderKL"
FOLDER: Final = "vae"
HINT: Final = Hint(
    "--vae FOLDER", "takes a pipeline's folder, or its vae folder, as diffusers' save_pretrained writes it"
)


def decode(folder: Path, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Decode latents as diffusers' pipelines do, one picture at a time.

    Args:
        folder: A pipeline's, or that of its autoencoder; weights are read from safetensors only.
        latents: float32 [N, C, H, W].

    Returns:
        uint8 [N, height, width, 3].

    Raises:
        UsageError: The folder holds no autoencoder, or one of other latents.
        BadInputError: It is damaged.
        MissingComponentError: torch or diffusers is not installed.
    """
    optional.require("torch", "diffusers", "safetensors")
    import torch

    decoder = _opened(place_of(folder, latents.shape[1]))
    scaled = torch.from_numpy(latents) / decoder.config.scaling_factor
    with torch.inference_mode():
        return np.concatenate([_grey(decoder.decode(row[None], return_dict=False)[0]) for row in scaled])


def _grey(values: torch.Tensor) -> NDArray[np.uint8]:
    scaled = ((values.clamp(-1.0, 1.0) + 1.0) * 127.5).round().permute(0, 2, 3, 1)
    pictures: NDArray[np.uint8] = scaled.numpy().astype(np.uint8)
    return pictures


def place_of(folder: Path, channels: int) -> Path:
    """Return the folder of the autoencoder that decodes latents of so many channels; nothing is loaded.

    Raises:
        UsageError: There is none, or one of other latents.
        BadInputError: Its configuration is damaged.
    """
    place = folder / FOLDER if (folder / FOLDER / CONFIG).is_file() else folder
    if not (place / CONFIG).is_file():
        raise UsageError(f"{folder} holds no autoencoder: there is neither {FOLDER}/{CONFIG} nor {CONFIG}", HINT)
    config = read_object(place / CONFIG)
    if config.get("_class_name") != AUTOENCODER:
        raise UsageError(
            f"{place} is a {config.get('_class_name') or 'model of an unknown kind'}, not an {AUTOENCODER}", HINT
        )
    if config.get("latent_channels") != channels:
        raise UsageError(
            f"{place} decodes latents of {config.get('latent_channels')} channels; these have {channels}", HINT
        )
    return place


def _opened(place: Path) -> Any:  # noqa: ANN401 - a module with methods of its own
    """Build the autoencoder and load its weights.

    Raises:
        BadInputError: It is damaged.
    """
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(place, local_files_only=True, use_safetensors=True).eval()
    except FOREIGN as error:
        raise BadInputError(f"{place}: its autoencoder can't be loaded: {first_line(error)}", HINT) from error
