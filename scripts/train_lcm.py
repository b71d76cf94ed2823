"""Train the latent consistency model that ships with the package, on the rendered images.

    python -m scripts.train_lcm --state STATE
    python -m scripts.train_lcm --state STATE --untrained

A teacher learns to predict noise, with every seventh prompt left out; a student that takes the guidance scale as an input then
learns to say in one step what the guided teacher says in many (Luo et al. 2023, arXiv:2310.04378). Latents are pixels: 16 by
16, in -1 to 1. Prompt number c stands for class c, as `deploykit.models.lcm.prompt` draws it; the empty prompt is zeros.

A run writes the UNet's folder to `--out` and its log with a picture of what four steps make to `--docs`. What was done is kept
in `--state`, so that a run that was broken off goes on with the next part.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from scripts.training import Log
from torch import nn

from deploykit.data import rendered
from deploykit.models import lcm, sources
from deploykit.models.source_lcm import SHIPPED, WEIGHTS

ROOT: Final = Path(__file__).resolve().parent.parent
NAME: Final = "tiny-lcm-unet"
CLASSES: Final = len(rendered.CLASSES)
#: The scheduler's own table decides what noise there is at a time step, and which steps a student may take.
SCHEDULER: Final = LCMScheduler()
KEPT: Final = SCHEDULER.alphas_cumprod
SKIPPED: Final = SCHEDULER.config.num_train_timesteps // SCHEDULER.config.original_inference_steps
#: Deviation of the latents, as the scheduler takes it for its boundary conditions.
DATA: Final = 0.5
REPORT_EVERY: Final = 100

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How teacher and student are trained.

    `images` are rendered `rendered_size` pixels wide and averaged down to `size`. `left_out` is the share of prompts that the
    teacher doesn't see. Rates warm up for `warmup` steps and follow a cosine; `ema` is the decay per step of the averaged
    weights, which are the ones that are kept. Guidance scales are drawn evenly from `guidance`.
    """

    images: int = 24_000
    rendered_size: int = 64
    size: int = 16
    length: int = 4
    width: int = 32
    channels: tuple[int, ...] = (32, 64, 64)
    teacher_steps: int = 3_000
    student_steps: int = 1_000
    batch: int = 64
    teacher_lr: float = 2e-3
    student_lr: float = 5e-4
    warmup: int = 100
    ema: float = 0.997
    left_out: float = 1 / 7
    guidance: tuple[float, float] = (1.0, 9.0)
    gamma: float = 5.0
    huber: float = 1e-3
    clip: float = 1.0
    seed: int = 20_261_126

    @property
    def config(self) -> dict[str, Any]:
        """The UNet's configuration, without notes of the library that writes it."""
        return {
            "_class_name": "UNet2DConditionModel",
            "sample_size": self.size,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 1,
            "block_out_channels": list(self.channels),
            "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            "cross_attention_dim": self.width,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "time_cond_proj_dim": 256,
        }


def pictures(recipe: Recipe, state: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (N, size, size, 3) uint8 and their classes (N,), from `state` where they lie there."""
    path = state / "pictures.npz"
    if not path.is_file():
        block = recipe.rendered_size // recipe.size
        shape = (recipe.size, block, recipe.size, block, 3)
        found = [rendered.render("train", index, recipe.rendered_size) for index in range(recipe.images)]
        small = [image.reshape(shape).mean(axis=(1, 3)).round().astype(np.uint8) for image, _ in found]
        np.savez(path, images=np.stack(small), labels=np.asarray([label for _, label in found], np.int64))
    with np.load(path) as kept:
        return kept["images"], kept["labels"]


def build(recipe: Recipe) -> UNet2DConditionModel:
    """Build the UNet from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return UNet2DConditionModel.from_config({k: v for k, v in recipe.config.items() if not k.startswith("_")})


def prompts(recipe: Recipe) -> torch.Tensor:
    """Return the prompts of all classes and the empty one, float32 (classes + 1, length, width)."""
    known = [lcm.prompt(number, recipe.length, recipe.width) for number in range(CLASSES)]
    return torch.from_numpy(np.stack([*known, np.zeros_like(known[0])]))


def batches(recipe: Recipe, images: NDArray[np.uint8], labels: NDArray[np.int64], steps: int) -> Iterator[Batch]:
    """Give latents (B, 3, size, size) in -1 to 1, mirrored at random, and classes (B,)."""
    rng = np.random.default_rng(recipe.seed)
    for _ in range(steps):
        chosen = rng.integers(len(labels), size=recipe.batch)
        found = images[chosen]
        mirrored = rng.random(recipe.batch) < 0.5
        found[mirrored] = found[mirrored][:, :, ::-1]
        latents = torch.from_numpy(found).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        yield latents, torch.from_numpy(labels[chosen])


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return one value per row, (B,), so that it multiplies latents (B, C, H, W)."""
    return values.view(-1, 1, 1, 1)


def noised(latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return latents with the noise of a time step; those of a time below zero as they are."""
    kept = wide(torch.where(times < 0, 1.0, KEPT[times.clamp(min=0)]))
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise


def clean(sample: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return the latents that a noise prediction implies."""
    kept = wide(KEPT[times])
    return (sample - (1.0 - kept).sqrt() * noise) / kept.sqrt()


def consistent(sample: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return what a consistency model says: the implied latents, and the sample itself where there is no noise yet."""
    scaled = wide(times.clamp(min=0)) * SCHEDULER.config.timestep_scaling
    skip, out = DATA**2 / (scaled**2 + DATA**2), scaled / (scaled**2 + DATA**2).sqrt()
    made: torch.Tensor = skip * sample + out * clean(sample, noise, times.clamp(min=0))
    return made


class Trainer:
    """AdamW, warm-up and cosine, averaged weights, bfloat16 arithmetic."""

    def __init__(self, model: nn.Module, recipe: Recipe, lr: float, steps: int) -> None:
        self.model = model.train()
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._recipe = recipe
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min((step + 1) / recipe.warmup, 0.5 * (1.0 + math.cos(math.pi * step / steps))),
        )
        self._steps = 0

    def step(self, loss: torch.Tensor) -> float:
        """Follow the gradient of a loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self._recipe.clip)
        self._optimizer.step()
        self._scheduler.step()
        self._steps += 1
        decay = min(self._recipe.ema, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1.0 - decay)
        return loss.item()


def asked(model: nn.Module, *inputs: torch.Tensor, guidance: torch.Tensor | None = None) -> torch.Tensor:
    """Return the predicted noise, float32, computed in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer: torch.Tensor = model(*inputs, timestep_cond=guidance, return_dict=False)[0]
    return answer.float()


def train_teacher(recipe: Recipe, data: Iterator[Batch], log: Log) -> dict[str, torch.Tensor]:
    """Train a noise predictor; errors count as in the image, up to `gamma` times (Hang et al. 2023, arXiv:2303.09556)."""
    trainer = Trainer(build(recipe), recipe, recipe.teacher_lr, recipe.teacher_steps)
    states = prompts(recipe)

    def loss(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = torch.where(torch.rand(len(labels)) < recipe.left_out, CLASSES, labels)
        times, noise = torch.randint(0, len(KEPT), labels.shape), torch.randn(latents.shape)
        found = asked(trainer.model, noised(latents, noise, times), times, states[labels])
        ratio = KEPT[times] / (1.0 - KEPT[times])
        return (wide(ratio.clamp(max=recipe.gamma) / ratio) * (found - noise).square()).mean()

    return _trained(trainer, data, loss, "teacher", log)


def train_student(
    recipe: Recipe, weights: dict[str, torch.Tensor], data: Iterator[Batch], log: Log
) -> dict[str, torch.Tensor]:
    """Train a consistency model by a guided teacher, from the teacher's weights; guidance begins as nothing."""
    teacher, student, target = (build(recipe) for _ in range(3))
    teacher.load_state_dict(weights)
    teacher.eval().requires_grad_(requires_grad=False)
    nn.init.zeros_(weights["time_embedding.cond_proj.weight"])
    student.load_state_dict(weights)
    target.eval().requires_grad_(requires_grad=False)
    trainer = Trainer(student, recipe, recipe.student_lr, recipe.student_steps)
    states = prompts(recipe)
    grid = torch.arange(SKIPPED - 1, len(KEPT), SKIPPED)

    def loss(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target.load_state_dict(trainer.average)
        times = grid[torch.randint(0, len(grid), labels.shape)]
        low, high = recipe.guidance
        scales = low + (high - low) * torch.rand(len(labels))
        embedded = torch.from_numpy(lcm.guidance_embedding(scales.tolist(), 256))
        sample = noised(latents, torch.randn(latents.shape), times)
        with torch.no_grad():
            before = _guided(
                teacher, sample, times, (states[labels], states[CLASSES].expand(len(labels), -1, -1)), scales
            )
            earlier = times - SKIPPED
            there = asked(target, before, earlier.clamp(min=0), states[labels], guidance=embedded)
            wanted = torch.where(wide(earlier) < 0, before, consistent(before, there, earlier))
        found = consistent(sample, asked(trainer.model, sample, times, states[labels], guidance=embedded), times)
        return (((found - wanted).square() + recipe.huber**2).sqrt() - recipe.huber).mean()

    return _trained(trainer, data, loss, "student", log)


def _guided(
    teacher: nn.Module,
    sample: torch.Tensor,
    times: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor],
    scales: torch.Tensor,
) -> torch.Tensor:
    """Take one DDIM step of `SKIPPED` with classifier-free guidance."""
    with_prompt, without = (asked(teacher, sample, times, each) for each in states)
    noise = without + wide(scales) * (with_prompt - without)
    latents = clean(sample, noise, times).clamp(-1.0, 1.0)
    kept = wide(KEPT[times])
    implied = (sample - kept.sqrt() * latents) / (1.0 - kept).sqrt()
    return noised(latents, implied, times - SKIPPED)


def _trained(
    trainer: Trainer, data: Iterator[Batch], loss: Callable[..., torch.Tensor], name: str, log: Log
) -> dict[str, torch.Tensor]:
    began, losses = time.perf_counter(), []
    for number, batch in enumerate(data, start=1):
        losses.append(trainer.step(loss(*batch)))
        if number % REPORT_EVERY == 0:
            mean, seconds = float(np.mean(losses[-REPORT_EVERY:])), time.perf_counter() - began
            log.tell(f"| {name} | {number:,} | {mean:.4f} | {seconds:.0f} |")
    log.seconds[name] = time.perf_counter() - began
    return trainer.average


def drawn(model: nn.Module, recipe: Recipe, labels: Sequence[int], scale: float, seed: int) -> NDArray[np.uint8]:
    """Draw images of classes in `lcm.STEPS` steps, float32: (N, size, size, 3) uint8."""
    scheduler = LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn((len(labels), 3, recipe.size, recipe.size), generator=generator)
    states = prompts(recipe)[torch.tensor(labels)]
    guidance = torch.from_numpy(lcm.guidance_embedding([scale] * len(labels), 256))
    with torch.inference_mode():
        for moment in scheduler.timesteps:
            times = moment.expand(len(labels))
            noise = model(sample, times, states, timestep_cond=guidance, return_dict=False)[0]
            sample = scheduler.step(noise, moment, sample, generator=generator, return_dict=False)[0]
    grey = (sample.clamp(-1.0, 1.0) + 1.0) * 127.5
    return grey.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def recognised(images: NDArray[np.uint8], labels: Sequence[int]) -> float:
    """Return the share of images, enlarged, that tiny-convnext knows for what they were asked to be."""
    original = sources.resolve("tiny-convnext")
    recipe = original.recipe
    side = recipe.input_size[1]
    large = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in images]
    values = (np.stack(large).astype(np.float32) / 255.0 - recipe.mean) / recipe.std
    with torch.inference_mode():
        answers = sources.open_module(original)(torch.from_numpy(values.transpose(0, 3, 1, 2)).float()).argmax(dim=1)
    return float((answers.numpy() == np.asarray(labels)).mean())


def sheet(rows: Sequence[NDArray[np.uint8]], scale: int = 4) -> Image.Image:
    """Return a picture of rows of images."""
    whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return Image.fromarray(whole.repeat(scale, axis=0).repeat(scale, axis=1))


def write(recipe: Recipe, weights: dict[str, torch.Tensor], out: Path) -> None:
    """Write the folder that ships, as diffusers would read it."""
    (out / "unet").mkdir(parents=True, exist_ok=True)
    (out / "tokenizer").mkdir(exist_ok=True)
    (out / "unet/config.json").write_text(json.dumps(recipe.config, indent=2) + "\n", encoding="utf-8")
    length = {"model_max_length": recipe.length}
    (out / "tokenizer/tokenizer_config.json").write_text(json.dumps(length, indent=2) + "\n", encoding="utf-8")
    path = out / "unet" / WEIGHTS
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    path.chmod(0o644)  # the writer leaves it readable to its owner only, and a wheel would keep that


def report(recipe: Recipe, weights: dict[str, torch.Tensor], real: Batch, log: Log, docs: Path) -> None:
    """Measure what four steps make, draw it, and write the log."""
    model = build(recipe).eval()
    model.load_state_dict(weights)
    labels = [number % CLASSES for number in range(50 * CLASSES)]
    shares = {
        scale: recognised(drawn(model, recipe, labels, scale, seed), labels)
        for seed, scale in enumerate((1.0, 3.0, 5.0, 8.0), start=1)
    }
    images = ((real[0] + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    held = recognised(images, real[1].tolist())
    rows = [drawn(model, recipe, list(range(CLASSES)), scale, seed) for scale in (3.0, 8.0) for seed in (5, 6, 7)]
    sheet(rows).save(docs / f"{NAME}.png", optimize=True)
    settings = ", ".join(f"{key} {value}" for key, value in vars(recipe).items())
    lines = [
        f"# {NAME}",
        "",
        f"The UNet of a latent consistency model, {sum(value.numel() for value in weights.values()):,} parameters, whose "
        f"latents are pixels: {recipe.size}x{recipe.size}, of the {CLASSES} classes of the rendered images.",
        "",
        f"![what four steps make]({NAME}.png)",
        "",
        "One column per class, in the order of `deploykit.data.rendered.CLASSES`; three rows with guidance 3, three with 8.",
        "",
        f"tiny-convnext knows, of {len(labels)} images that four steps make, enlarged, for what they were asked to be: "
        + ", ".join(f"**{share:.1%}** (guidance {scale:g})" for scale, share in shares.items())
        + f"; of {len(images)} rendered images at {recipe.size} pixels, enlarged the same way, {held:.1%}; "
        f"by chance it would be {1 / CLASSES:.1%}.",
        "",
        f"- Recipe (`scripts/train_lcm.py`): {settings}",
        f"- Versions: torch {torch.__version__}, diffusers {diffusers.__version__}, {torch.get_num_threads()} thread(s)",
        f"- Seconds: {', '.join(f'{name} {seconds:.0f}' for name, seconds in log.seconds.items())}",
        "",
        "| part | step | loss | seconds |",
        "|---|---:|---:|---:|",
        *log.lines,
    ]
    (docs / f"{NAME}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Train both, and write what ships."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="where finished parts are kept")
    parser.add_argument("--out", type=Path, default=SHIPPED[NAME], help="folder of the UNet")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/models", help="folder of the log")
    parser.add_argument("--untrained", action="store_true", help="write the weights that training begins with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe, log = Recipe(), Log()
    if options.untrained:
        write(recipe, build(recipe).state_dict(), options.out)
        return
    options.state.mkdir(parents=True, exist_ok=True)
    images, labels = pictures(recipe, options.state)
    kept = options.state / "teacher.safetensors"
    if not kept.is_file():
        weights = train_teacher(recipe, batches(recipe, images, labels, recipe.teacher_steps), log)
        save_file(weights, kept, {"log": json.dumps([log.lines, log.seconds])})
    else:
        from safetensors import safe_open

        with safe_open(kept, "pt") as file:
            log.lines, log.seconds = json.loads(file.metadata()["log"])
    torch.manual_seed(recipe.seed + 1)
    data = batches(recipe, images, labels, recipe.student_steps)
    student = train_student(recipe, load_file(kept), data, log)
    write(recipe, student, options.out)
    report(recipe, student, next(batches(recipe, images, labels, 1)), log, options.docs)


if __name__ == "__main__":
    main()
