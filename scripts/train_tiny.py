"""Train a tiny model on the rendered image set and put it into the package.

    python scripts/train_tiny.py tiny-convnext

The recipe of each model is a row of `RECIPES`. A run writes `<id>.safetensors` and `<id>.json` to `--out` and its log,
`<id>.md`, to `--docs`. On one machine, with one thread count, a second run gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from deploykit.data import rendered

ROOT: Final = Path(__file__).resolve().parent.parent
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
CROP_PCT: Final = 0.875
EVAL_BATCH: Final = 250
SETTLING_BATCHES: Final = 50
TOKENS: Final = {"pos_embed", "cls_token", "reg_token"}
WHITENING_IMAGES: Final = 500
#: Where the heads of even and of odd blocks look at first: rows down, columns right.
NEIGHBOURS: Final = (((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (-1, -1), (1, -1), (-1, 1)))
SHARPNESS: Final = 1.7


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one tiny model is built and trained.

    `images` training images are rendered once; every epoch sees each of them once. Muon trains the matrices, at a peak
    rate of `matrix_lr`, and AdamW the rest, at `lr`; both rates warm up for `warmup` epochs, then follow a cosine.
    `ema` is the decay per step of the averaged weights, which are the ones that ship. With `kernels`, the kernels of
    dense convolutions count as matrices, (out, in * k * k). `local` is how transformers start: `_start_local`.
    """

    module: str
    kwargs: Mapping[str, Any]
    family: str
    input_size: int = 64
    images: int = 50_000
    epochs: int = 10
    batch: int = 128
    lr: float = 3e-3
    matrix_lr: float = 1e-2
    warmup: float = 0.25
    weight_decay: float = 0.05
    smoothing: float = 0.05
    ema: float = 0.998
    clip: float = 1.0
    kernels: bool = False
    local: bool = False
    seed: int = 20_240_607


RECIPES: Final[dict[str, Recipe]] = {
    "tiny-convnext": Recipe(
        module="timm.models.convnext:ConvNeXt",
        kwargs={"depths": [1, 1, 4, 1], "dims": [32, 64, 128, 192], "ls_init_value": 1.0},
        family="convnext",
    ),
    "tiny-convnextv2": Recipe(
        module="timm.models.convnext:ConvNeXt",
        kwargs={"depths": [1, 1, 3, 1], "dims": [24, 48, 96, 160], "ls_init_value": None, "use_grn": True},
        family="convnext",
        epochs=8,
        kernels=True,
    ),
    "tiny-mobilenetv3": Recipe(
        module="timm.models.mobilenetv3:_gen_mobilenet_v3",
        kwargs={"variant": "mobilenetv3_large_100", "channel_multiplier": 0.4},
        family="mobilenetv3",
        epochs=6,
        kernels=True,
    ),
    "tiny-efficientnetv2": Recipe(
        module="timm.models.efficientnet:_gen_efficientnetv2_base",
        kwargs={"variant": "tf_efficientnetv2_b0", "channel_multiplier": 0.75, "depth_multiplier": 0.2},
        family="efficientnetv2",
        epochs=5,
        kernels=True,
    ),
    "tiny-dinov2": Recipe(
        module="timm.models.vision_transformer:VisionTransformer",
        kwargs={
            "img_size": 70,
            "patch_size": 14,
            "embed_dim": 128,
            "depth": 5,
            "num_heads": 4,
            "init_values": 1.0,
            "reg_tokens": 4,
            "no_embed_class": True,
        },
        family="dinov2",
        input_size=70,
        images=100_000,
        epochs=8,
        lr=1.5e-3,
        matrix_lr=3e-3,
        kernels=True,
        local=True,
    ),
}


@dataclass(frozen=True)
class ImageSet:
    """Images (N, S, S, 3) uint8, resized and not yet cropped, and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of the command: the recipe after the options were applied."""

    model_id: str
    recipe: Recipe
    threads: int
    workers: int
    held_out: int
    test: int
    out: Path
    docs: Path


@dataclass(kw_only=True)
class Log:
    """What the Markdown log tells: one line per epoch, and the time each part took, in seconds."""

    epochs: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, line: str) -> None:
        """Print a line of the epoch table and keep it."""
        print(line, flush=True)
        self.epochs.append(line)


# ---- images ----------------------------------------------------------------------------------------------------------


def resized(image: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """Resize an RGB image (H, W, 3) so that its short side is `short`, with Pillow's bicubic filter."""
    height, width = image.shape[:2]
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=None)
    return np.asarray(picture, dtype=np.uint8)


def _render_range(split: str, short: int, bounds: tuple[int, int]) -> ImageSet:
    pairs = [rendered.render(split, index) for index in range(*bounds)]
    images = np.stack([resized(image, short) for image, _ in pairs])
    return ImageSet(images, np.array([label for _, label in pairs], dtype=np.int64))


def render_set(split: str, count: int, input_size: int, workers: int) -> ImageSet:
    """Render the first `count` images of a split in `workers` processes, resized for a model's input size."""
    short = math.floor(input_size / CROP_PCT)
    bounds = [(start, min(start + 500, count)) for start in range(0, count, 500)]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by the workers, which start afresh
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(partial(_render_range, split, short), bounds))
    return ImageSet(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def to_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn crops (N, S, S, 3) uint8 into normalised (N, 3, S, S) float32 in channels-last memory."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    return (scaled - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def centre_crops(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the middle (N, size, size, 3) out of (N, H, W, 3), at the offset that torchvision takes."""
    top, left = (round((extent - size) / 2.0) for extent in images.shape[1:3])
    return np.ascontiguousarray(images[:, top : top + size, left : left + size])


def random_crops(images: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a random (N, size, size, 3) out of (N, H, W, 3); flip and transpose at random, which no class minds."""
    spare = images.shape[1] - size + 1
    crops = np.empty((len(images), size, size, 3), dtype=np.uint8)
    draws = rng.integers(0, (spare, spare, 2, 2, 2), size=(len(images), 5))
    for crop, image, (top, left, mirror, flip, transpose) in zip(crops, images, draws.tolist(), strict=True):
        view = image[top : top + size, left : left + size]
        view = view[:: 1 - 2 * flip, :: 1 - 2 * mirror]
        crop[:] = view.transpose(1, 0, 2) if transpose else view
    return crops


# ---- training --------------------------------------------------------------------------------------------------------


class _Fp32Conv(nn.Conv2d):
    """A convolution that leaves autocast: depthwise ones are three times slower in bfloat16 than in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that the base class has
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


class _MatrixConv(nn.Conv2d):
    """A convolution that keeps its kernel as a matrix (out, in * k * k), the form that Muon takes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that the base class has
        kernel = self.weight.view(self.out_channels, self.in_channels, *self.kernel_size)
        output: torch.Tensor = self._conv_forward(input, kernel, self.bias)
        return output


def build(recipe: Recipe) -> nn.Module:
    """Build the recipe's network with one logit per class."""
    module, _, name = recipe.module.partition(":")
    model: nn.Module = getattr(importlib.import_module(module), name)(
        num_classes=len(rendered.CLASSES), **recipe.kwargs
    )
    return model


def _initialise(model: nn.Module) -> None:
    """Draw every kernel with variance 1 / fan-in.

    The fixed deviation of 0.02 that timm takes suits wide networks; one of 32 channels hardly passes a signal with it
    and stays at chance for thousands of steps.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=1.0 / math.sqrt(module.weight[0].numel()))


def _whitening(images: torch.Tensor, patch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give kernels (count, 3, patch, patch) and a bias (count,) that whiten the patches of images (N, 3, S, S).

    They find the strongest principal components, of deviation 0.7, which is a cosine's; the weakest stay smaller.
    """
    patches = functional.unfold(images.double(), patch, stride=patch).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    kernels = 0.7 * (vectors / (values + 1e-3 * values.max()).sqrt()).T.flip(0)[:count]
    return kernels.view(count, 3, patch, patch).float(), -(kernels @ mean).float()


def _shift(waves: torch.Tensor, steps: int) -> torch.Tensor:
    """Give the matrix (2n, 2n) that takes the cosines and sines of n waves at a place to those `steps` further."""
    cos, sin = torch.diag(torch.cos(waves * steps)), torch.diag(torch.sin(waves * steps))
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def _start_local(model: VisionTransformer, images: torch.Tensor) -> None:
    """Let a vision transformer of four heads start as a network of 3x3 convolutions over whitened patches.

    A head's width of channels holds the position, as cosines and sines along columns and rows; nothing else is written
    there at first, and the other channels take the patch's principal components. Queries are the position one step
    further and keys are the position, so that each head looks at one neighbour (Zheng et al. 2024, arXiv:2404.01139).
    It gives a head start: tiny-dinov2 has 34.9 % right after its first epoch, and 28.9 % from a random start.
    """
    side, heads = model.patch_embed.grid_size[0], model.blocks[0].attn.num_heads
    width, place = model.embed_dim, model.embed_dim // heads
    waves = math.pi / side * (torch.arange(place // 4) + 0.5)
    angles = torch.arange(side)[:, None] * waves
    along = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
    kernels, bias = _whitening(images, model.patch_embed.patch_size[0], width - place)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, :, :place] = torch.cat([along.repeat(side, 1), along.repeat_interleave(side, dim=0)], dim=1)
        model.patch_embed.proj.weight[:place], model.patch_embed.proj.bias[:place] = 0.0, 0.0
        model.patch_embed.proj.weight[place:], model.patch_embed.proj.bias[place:] = kernels, bias
        for token in (model.cls_token, model.reg_token):
            nn.init.normal_(token, std=0.5)[..., :place] = 0.0
        for block, neighbours in zip(model.blocks, cycle(NEIGHBOURS), strict=False):
            block.attn.proj.weight[:place], block.mlp.fc2.weight[:place] = 0.0, 0.0
            block.attn.qkv.weight[: 2 * width] *= 0.1
            queries, keys, _ = block.attn.qkv.weight.view(3, heads, place, width)
            keys[..., :place] += SHARPNESS * torch.eye(place)
            for query, (down, right) in zip(queries, neighbours, strict=True):
                query[:, :place] += SHARPNESS * torch.block_diag(_shift(waves, right), _shift(waves, down))  # type: ignore[no-untyped-call]


def _for_training(model: nn.Module, recipe: Recipe) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = _Fp32Conv
        elif isinstance(module, nn.Conv2d) and recipe.kernels:
            module.__class__ = _MatrixConv
            module.weight = nn.Parameter(module.weight.detach().flatten(1))
        elif getattr(module, "fused_attn", False):
            module.fused_attn = False  # type: ignore[assignment]  # the fused kernel is slower in bfloat16 on CPU
    return model.to(memory_format=torch.channels_last)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices and AdamW for the rest; biases, norms, LayerScale, tokens and positions don't decay.

    Muon halves the number of steps that a network from scratch needs here.
    """
    parameters = dict(model.named_parameters())
    matrices = [p for p in parameters.values() if p.ndim == 2]
    kernels = [p for name, p in parameters.items() if p.ndim > 2 and name not in TOKENS]
    others = [p for name, p in parameters.items() if p.ndim < 2 or name in TOKENS]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(groups, lr=recipe.lr, fused=True)]


def _lr_factor(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _batches(data: ImageSet, recipe: Recipe, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give one epoch of shuffled, augmented batches; the last incomplete one is left out."""
    order = rng.permutation(len(data.labels))
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        chosen = order[start : start + recipe.batch]
        yield (
            to_input(random_crops(data.images[chosen], recipe.input_size, rng)),
            torch.from_numpy(data.labels[chosen]),
        )


def _settle(model: nn.Module, data: ImageSet, recipe: Recipe) -> None:
    """Measure the statistics of BatchNorm anew: averages of those of other weights don't fit averaged weights."""
    batches = _batches(data, recipe, np.random.default_rng(recipe.seed))
    update_bn(islice(batches, SETTLING_BATCHES), model)


def predict(model: nn.Module, data: ImageSet, input_size: int) -> NDArray[np.int64]:
    """Classify the centre crops in float32; returns the top classes, (N,) int64."""
    model.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(data.labels), EVAL_BATCH):
            crops = centre_crops(data.images[start : start + EVAL_BATCH], input_size)
            found.append(model(to_input(crops)).argmax(dim=1).numpy())
    return np.concatenate(found)


def train(job: Job, data: ImageSet, held_out: ImageSet, log: Log) -> nn.Module:
    """Train the recipe from its seed; returns the averaged network in float32."""
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = build(recipe)
    _initialise(model)
    if recipe.local:
        _start_local(model, to_input(random_crops(data.images[:WHITENING_IMAGES], recipe.input_size, rng)))
    model = _for_training(model, recipe)
    follow = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    optimizers = _optimizers(model, recipe)
    steps = len(data.labels) // recipe.batch
    schedule = partial(_lr_factor, warmup=max(1, round(recipe.warmup * steps)), total=recipe.epochs * steps)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) for optimizer in optimizers]
    log.tell("| epoch | training loss | held-out top-1 | seconds |")
    log.tell("|---:|---:|---:|---:|")
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        losses = []
        for images, labels in _batches(data, recipe, rng):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
            average.update_parameters(model)
            losses.append(loss.item())
        _settle(average.module, data, recipe)
        correct = predict(average.module, held_out, recipe.input_size) == held_out.labels
        seconds = time.perf_counter() - start
        log.tell(f"| {epoch} | {np.mean(losses):.4f} | {correct.mean():.4f} | {seconds:.0f} |")
    shipped = build(recipe)
    own = shipped.state_dict()
    shipped.load_state_dict({name: value.view_as(own[name]) for name, value in average.module.state_dict().items()})
    return shipped


# ---- results ---------------------------------------------------------------------------------------------------------


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a proportion."""
    z = 1.959964
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return centre - half, centre + half


def write_weights(job: Job, model: nn.Module) -> str:
    """Write `<id>.safetensors` in float32; returns its SHA-256."""
    job.out.mkdir(parents=True, exist_ok=True)
    path = job.out / f"{job.model_id}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    path.chmod(0o644)  # the writer leaves it readable to its owner only, and a wheel would keep that
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_card(job: Job, sha256: str, parameters: int, top1: float) -> None:
    """Write `<id>.json`: all that is needed to build the network, feed it and check it."""
    recipe = job.recipe
    card = {
        "id": job.model_id,
        "module": recipe.module,
        "kwargs": {**recipe.kwargs, "num_classes": len(rendered.CLASSES)},
        "family": recipe.family,
        "task": "logits",
        "preprocess": {
            "input_size": [3, recipe.input_size, recipe.input_size],
            "interpolation": "bicubic",
            "crop_pct": CROP_PCT,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
        },
        "labels": list(rendered.CLASSES),
        "weights": f"{job.model_id}.safetensors",
        "weights_sha256": sha256,
        "parameters": parameters,
        "top1": {"value": top1, "n": job.test, "set": "rendered:test"},
    }
    (job.out / f"{job.model_id}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _confusions(truth: NDArray[np.int64], found: NDArray[np.int64], most: int = 10) -> list[str]:
    """Give table rows of the commonest confusions, as a share of the images of the true class."""
    names = rendered.CLASSES
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (truth, found), 1)
    totals = counts.sum(axis=1)
    pairs = [(int(counts[a, b]), a, b) for a in range(len(names)) for b in range(len(names)) if a != b]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:most]
    return [f"| {names[a]} | {names[b]} | {n} | {n / totals[a]:.2%} |" for n, a, b in worst]


def _per_class(truth: NDArray[np.int64], found: NDArray[np.int64]) -> list[str]:
    return [
        f"| {name} | {np.mean(found[truth == k] == k):.4f} | {np.sum(truth == k)} |"
        for k, name in enumerate(rendered.CLASSES)
        if np.any(truth == k)
    ]


def _facts(job: Job, log: Log) -> list[str]:
    recipe = job.recipe
    kwargs = ", ".join(f"{name}={value!r}" for name, value in recipe.kwargs.items())
    versions = f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}, numpy {np.__version__}"
    seconds = ", ".join(f"{part} {value:.0f} s" for part, value in log.seconds.items())
    where = {"--out", "--docs"}
    matrices = "matrices and dense kernels" if recipe.kernels else "matrices"
    start = ", attention that starts as 3x3 convolutions over whitened patches" if recipe.local else ""
    options = [word for at, word in enumerate(sys.argv) if at and not where & {word, sys.argv[at - 1]}]
    command = shlex.join(["python", "scripts/train_tiny.py", *options])
    return [
        f"- Network: `{recipe.module}({kwargs})`, {recipe.input_size}x{recipe.input_size} input",
        f"- Images: rendered set version {rendered.VERSION}: {recipe.images} to train on, {job.held_out} held out "
        f"(split `calib`) for the table, {job.test} (split `test`) used once, at the end",
        f"- Recipe: Muon for {matrices} (peak learning rate {recipe.matrix_lr}), AdamW for the rest (peak learning rate "
        f"{recipe.lr}), {recipe.warmup:g} epochs of warm-up, cosine to 0, {recipe.epochs} epochs, batch "
        f"{recipe.batch}, weight decay {recipe.weight_decay}, label smoothing {recipe.smoothing}, averaged weights "
        f"(decay {recipe.ema}), gradient norm at most {recipe.clip:g}, seed {recipe.seed}{start}",
        f"- BatchNorm, where there is any: statistics of the averaged weights, from {SETTLING_BATCHES} training batches",
        "- Arithmetic: bfloat16 autocast, depthwise convolutions and weights in float32, deterministic algorithms, "
        f"{job.threads} CPU thread(s) ({torch.backends.cpu.get_cpu_capability()})",
        f"- Versions: {versions}, Pillow {PIL.__version__}, Python {platform.python_version()}",
        f"- Time: {seconds}",
        f"- Command: `{command}`",
    ]


def write_log(job: Job, log: Log, parameters: int, truth: NDArray[np.int64], found: NDArray[np.int64]) -> None:
    """Write `<id>.md`: what was trained, how it went, and how good it is."""
    correct = int(np.sum(truth == found))
    low, high = wilson(correct, len(truth))
    lines = [
        f"# {job.model_id}",
        "",
        f"Top-1 on {len(truth)} held-out images: **{correct / len(truth):.4f}** (95 % Wilson interval {low:.4f} to "
        f"{high:.4f}). Parameters: {parameters}.",
        "",
        *_facts(job, log),
        "",
        "## Training",
        "",
        *log.epochs,
        "",
        "## Most frequent confusions",
        "",
        "| true class | taken for | images | share of the class |",
        "|---|---|---:|---:|",
        *_confusions(truth, found),
        "",
        "## Top-1 by class",
        "",
        "| class | top-1 | images |",
        "|---|---:|---:|",
        *_per_class(truth, found),
        "",
    ]
    job.docs.mkdir(parents=True, exist_ok=True)
    (job.docs / f"{job.model_id}.md").write_text("\n".join(lines), encoding="utf-8")


def run(job: Job) -> None:
    """Render, train, test and write."""
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(mode=True)
    log = Log()
    start = time.perf_counter()
    data, held_out, test = (
        render_set(split, count, job.recipe.input_size, job.workers)
        for split, count in (("train", job.recipe.images), ("calib", job.held_out), ("test", job.test))
    )
    log.seconds["rendering"] = time.perf_counter() - start
    print(f"rendered in {log.seconds['rendering']:.0f} s", flush=True)
    start = time.perf_counter()
    model = train(job, data, held_out, log)
    log.seconds["training"] = time.perf_counter() - start
    found = predict(model, test, job.recipe.input_size)
    top1 = float(np.mean(found == test.labels))
    parameters = sum(p.numel() for p in model.parameters())
    sha256 = write_weights(job, model)
    write_card(job, sha256, parameters, top1)
    write_log(job, log, parameters, test.labels, found)
    print(f"top-1 {top1:.4f} on {job.test} test images, {parameters} parameters, weights {sha256}")


def main() -> None:
    """Read the command line and run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_id", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=ROOT / "src/deploykit/models/tiny", help="folder of the weights")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/models", help="folder of the log")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--images", type=int, help="training images, instead of the recipe's")
    parser.add_argument("--held-out", type=int, default=3000, help="images scored after each epoch")
    parser.add_argument("--test", type=int, default=10_000, help="images scored once, at the end")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of what makes a run repeatable")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    options = parser.parse_args()
    changes = {name: value for name in ("epochs", "images") if (value := getattr(options, name)) is not None}
    recipe = RECIPES[options.model_id]
    recipe = Recipe(**{**vars(recipe), **changes})
    run(
        Job(
            model_id=options.model_id,
            recipe=recipe,
            threads=options.threads,
            workers=options.workers,
            held_out=options.held_out,
            test=options.test,
            out=options.out,
            docs=options.docs,
        )
    )


if __name__ == "__main__":
    main()
