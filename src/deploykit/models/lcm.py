"""Latent consistency models: a UNet that four steps take from noise to an image's latents.

Luo et al. 2023, arXiv:2310.04378. The guidance scale is an input like the time step (`time_cond_proj_dim`), so one call per
step does where classifier-free guidance takes two.

What reference inputs are made of is here too, in numpy: prompts and noise are drawn from raw bits of PCG64, whose stream numpy
promises to keep. There is no text encoder: prompt number n is a fixed sequence of normal vectors, and the network that
ships with the package was trained on the first twelve of them, one for each class of the rendered images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit.models.family import AxisRule, Family
from deploykit.models.interface import Interface
from deploykit.models.precision import Int8Recipe
from deploykit.verdict import Budget

#: Steps from noise to latents, as LCM pipelines take by default.
STEPS: Final = 4
#: Guidance scales of the reference trajectories, in turn.
GUIDANCE: Final = (3.0, 8.0, 5.0, 2.0)
SEED: Final = 20_261_126
PROMPT, NOISE = 0, 1  # the two uses of the seed
#: Names of a UNet's inputs, as diffusers has them.
SAMPLE, TIMESTEP, STATES, GUIDING = "sample", "timestep", "encoder_hidden_states", "timestep_cond"

#: 8 latents are 64 pixels; downsampling thrice takes multiples of 8. Sizes are tried off those that are traced.
_SIDE: Final = {"min": 8, "max": 256, "step": 8}

FAMILY = Family(
    name="lcm",
    title="latent consistency model",
    matches=(),
    opset=21,  # GroupNormalization stays one operator, which says that it computes in float32
    axes={
        "batch": AxisRule(min=1, max=16, step=1, traced=2),
        "height": AxisRule(**_SIDE, traced=24, tried=(8, 40)),
        "width": AxisRule(**_SIDE, traced=32, tried=(8, 48)),
        "sequence": AxisRule(min=1, max=512, step=1, traced=7, tried=(1, 11)),
    },
    # Where the noise is strongest a step multiplies the error of a noise prediction by about seven: what is left of it in the
    # latents is held to a bound of its own. bfloat16 has 18 dB less than float16.
    budgets={
        "f32": Budget(relative_max=1e-4, sqnr_db=90.0, cosine=0.999999, latent_psnr_db=60.0),
        "f16": Budget(sqnr_db=40.0, cosine=0.99995, latent_psnr_db=38.0),
        "int8-weights": Budget(sqnr_db=32.0, cosine=0.9995, latent_psnr_db=30.0),
        "bf16": Budget(sqnr_db=22.0, cosine=0.995, latent_psnr_db=22.0),
        "int8": Budget(sqnr_db=22.0, cosine=0.995, latent_psnr_db=22.0, int8_share=0.8),
        "fp8": Budget(sqnr_db=22.0, cosine=0.995, latent_psnr_db=22.0, int8_share=0.8),
    },
    islands=("time-embedding", "decomposed-norms", "group-norm-before-21"),
    # What lies nearest to latents, times and prompts errs most in 8 bits, and is little of the whole.
    int8=Int8Recipe(
        floats=(
            *("*conv_in", "*conv_out", "*conv_shortcut"),
            *("*time_embedding.*", "*time_emb_proj", "*attn2.to_k", "*attn2.to_v"),
        )
    ),
)


def normal(seed: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw float32 normal values, the same everywhere: the method of Box and Muller (1958) on raw bits."""
    count = math.prod(shape)
    raw = np.asarray(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(2 * count), np.uint64)
    units = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(units[:count])), 2.0 * math.pi * units[count:]
    return (radius * np.cos(angle)).reshape(shape).astype(np.float32)


def prompt(number: int, length: int, width: int) -> NDArray[np.float32]:
    """Return the states of prompt `number`, float32 [length, width]."""
    return normal((SEED, PROMPT, number), (length, width))


def noise(number: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return what trajectory `number` begins with, float32 of one row's shape."""
    return normal((SEED, NOISE, number), shape)


def guidance_embedding(scales: Sequence[float], width: int) -> NDArray[np.float32]:
    """Return sines and cosines of guidance scales, float32 [N, width], as diffusers' LCM pipelines compute them.

    Args:
        scales: Guidance scales; 1 is none.
        width: Even.
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000.0) / (half - 1)))
    angles = (np.asarray(scales, np.float32)[:, None] - 1.0) * 1000.0 * frequencies[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def inputs_of(
    takes: Interface, sizes: Mapping[str, int], times: Sequence[int], first: int = 0
) -> dict[str, NDArray[np.generic]]:
    """Return a row of every input for each time step, noise as the sample, another prompt and guidance in each.

    Args:
        takes: What the model takes.
        sizes: Of axes that have other sizes than usual.
        times: Of the rows.
        first: Number of the first row's prompt and noise.
    """
    shapes, rows = takes.at(sizes), range(first, first + len(times))
    made: dict[str, NDArray[np.generic]] = {
        SAMPLE: np.stack([noise(row, shapes[SAMPLE][1:]) for row in rows]),
        TIMESTEP: np.asarray(times, np.int64),
        STATES: np.stack([prompt(row, *shapes[STATES][1:]) for row in rows]),
    }
    if GUIDING in shapes:
        scales = [GUIDANCE[row % len(GUIDANCE)] for row in rows]
        made[GUIDING] = guidance_embedding(scales, shapes[GUIDING][1])
    return {each.name: made[each.name] for each in takes.inputs}
