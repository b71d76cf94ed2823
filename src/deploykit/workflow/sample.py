"""Sample: let the artifacts of a diffusion model walk from noise to pictures, beside those that the original made.

Everything it takes lies in the bundle: prompts, time steps, the recurrence of the steps. PyTorch and diffusers are needed for
nothing but a decoder, where latents aren't pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit import optional, paths
from deploykit.artifact import Artifact
from deploykit.bundle import Bundle
from deploykit.errors import DeploykitError, Hint, ResourceError, UsageError
from deploykit.models import lcm, vae
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor, Tensors, get_backend
from deploykit.runtime.batches import run_rows
from deploykit.runtime.golden import Golden
from deploykit.runtime.rollout import Rollout
from deploykit.workflow.opened import open_bundle
from deploykit.workflow.verify import golden_of

#: Channels of latents that are pixels: no decoder is needed.
PIXELS: Final = 3
#: A latent that is a pixel becomes a square of this side.
SCALE: Final = 8
#: Numbers of noise begin here where a seed is given: golden inputs and calibration have those before.
FIRST: Final = 1_000_000

#: From latents, float32 [N, C, H, W], to pictures, uint8 [N, height, width, 3].
Drawn = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Strip:
    """What one of them made.

    Attributes:
        name: The artifact as it was run, or the original.
        pictures: uint8 [N, height, width, 3].
        psnr_db: Against the original's; NaN where it made none of these.
    """

    name: str
    pictures: NDArray[np.uint8]
    psnr_db: float


@dataclass(frozen=True)
class Sampled:
    """What was drawn.

    Attributes:
        strips: Rows from the top.
        skipped: Artifacts that can't run here, each with the reason.
    """

    strips: tuple[Strip, ...]
    skipped: tuple[str, ...]


def sample(target: Path, png: Path, seed: int | None = None, decoder: Path | None = None) -> Sampled:
    """Draw what artifacts make in four steps, a row of pictures each, and write them as one PNG.

    Args:
        target: A bundle's folder, or the file of one of its artifacts.
        png: Written.
        decoder: Folder of the autoencoder that makes pictures of latents; needs PyTorch and diffusers.
        seed: Other noise than that of the reference trajectories; the original has no pictures of it.

    Returns:
        The original's row first, unless there is a seed.

    Raises:
        UsageError: It is no bundle, no diffusion model, or one whose latents need a decoder.
        BadInputError: A file is damaged.
        MissingComponentError: Pillow is not installed, or nothing that could run an artifact.
        ResourceError: The PNG can't be written.
    """
    optional.require("PIL")
    paths.check_target(png)
    bundle = open_bundle(target if target.is_dir() else target.parent)
    golden = golden_of(bundle)
    chosen = [
        artifact for artifact in bundle.manifest.artifacts if target.is_dir() or target.name == artifact.main.path
    ]
    if not chosen:
        raise UsageError(f"{target} is no artifact of the bundle that it lies in")
    strips, refused = draw(bundle, golden, chosen, seed, decoder)
    if len(refused) == len(chosen):
        raise next(reversed(refused.values()))
    whole = np.concatenate([row_of(strip) for strip in strips])
    try:
        png.write_bytes(png_of(whole, scale_of(decoder)))
    except OSError as error:
        raise ResourceError(f"{png} can't be written: {error.strerror or error}") from error
    return Sampled(tuple(strips), tuple(f"{name}: {error.message}" for name, error in refused.items()))


def rollout_of(bundle: Bundle, golden: Golden, decoder: Path | None) -> Rollout:
    """Return how a bundle walks to what a picture can be made of.

    Raises:
        UsageError: It is no diffusion model, or one whose latents need a decoder.
    """
    if golden.rollout is None:
        raise UsageError(
            f"{bundle.root} walks no steps from noise: there is nothing to sample", Hint("deploykit run FILE IMAGE")
        )
    channels = golden.rollout.latents.shape[1]
    if channels != PIXELS and decoder is None:
        raise UsageError(
            f"{bundle.root} makes latents of {channels} channels, which are no pictures without a decoder",
            Hint("--vae FOLDER"),
        )
    return golden.rollout


def draw(
    bundle: Bundle, golden: Golden, chosen: Iterable[Artifact], seed: int | None, decoder: Path | None
) -> tuple[list[Strip], dict[str, DeploykitError]]:
    """Let artifacts walk.

    Returns:
        What they made, the original's first unless there is a seed; and those that can't run here, by name.

    Raises:
        UsageError: The bundle makes no pictures, or the decoder is one of other latents.
        BadInputError: The decoder is damaged.
    """
    known = rollout_of(bundle, golden, decoder)
    drawn = _pictures if decoder is None else partial(vae.decode, decoder)
    inputs, rollout = (golden.inputs, known) if seed is None else _anew(golden, known, seed)
    strips = [] if seed is not None else [Strip("original", drawn(rollout.latents), math.inf)]
    refused: dict[str, DeploykitError] = {}
    for artifact in chosen:
        try:
            strips.append(_strip(bundle, artifact, (inputs, rollout), drawn, known=seed is None))
        except DeploykitError as error:
            refused[artifact.name] = error
    return strips, refused


def scale_of(decoder: Path | None) -> int:
    """Return the side of the square that a pixel of a picture is drawn as."""
    return SCALE if decoder is None else 1


def row_of(strip: Strip) -> NDArray[np.uint8]:
    """Return a strip's pictures side by side, uint8 [height, N width, 3]."""
    return np.concatenate(list(strip.pictures), axis=1)


def png_of(picture: NDArray[np.uint8], scale: int) -> bytes:
    """Return a picture, uint8 [height, width, 3], as a PNG `scale` times its size."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1)).save(file, format="PNG")
    return file.getvalue()


def _anew(golden: Golden, rollout: Rollout, seed: int) -> tuple[dict[str, Tensor], Rollout]:
    """Return inputs and steps that begin with other noise."""
    shape = rollout.noise.shape
    start, fresh = lcm.noise(FIRST + seed, shape[1:]), lcm.noise(FIRST + seed + 1, shape)
    carried = np.concatenate([start] * rollout.steps)
    return {**golden.inputs, rollout.carried: carried}, replace(rollout, noise=fresh)


def _strip(bundle: Bundle, artifact: Artifact, walk: tuple[Tensors, Rollout], drawn: Drawn, *, known: bool) -> Strip:
    """Return what an artifact makes, as it is run first of all."""
    run, (inputs, rollout) = artifact.runs[0], walk
    with get_backend(run.backend).open(str(bundle.root / artifact.main.path), run) as session:
        name = session.outputs[0].name
        latents = rollout.play(lambda feeds: run_rows(session, feeds, 1)[name], inputs)
    psnr = drift.psnr_db(rollout.latents, latents) if known else math.nan
    return Strip(f"{artifact.name} ({run.label})", drawn(latents), psnr)


def _pictures(latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return latents that are pixels in -1..1, float32 [N, 3, height, width], as uint8 [N, height, width, 3]."""
    grey = (np.clip(latents, -1.0, 1.0) + 1.0) * 127.5
    pictures: NDArray[np.uint8] = np.rint(grey).astype(np.uint8).transpose(0, 2, 3, 1)
    return pictures
