"""Training of small networks, on one CPU core if need be: what every set of images shares.

Muon and bfloat16 arithmetic, averaged weights that ship, and a start for vision transformers that have few images.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

#: From an image to the input of every network here.
MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
EVAL_BATCH: Final = 250
SETTLING_BATCHES: Final = 50
TOKENS: Final = {"pos_embed", "cls_token", "reg_token"}
WHITENING_IMAGES: Final = 500
#: Where the heads of even and of odd blocks look at first: rows down, columns right.
NEIGHBOURS: Final = (((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (-1, -1), (1, -1), (-1, 1)))
SHARPNESS: Final = 1.7

#: From images (N, H, W, 3) uint8 and a size to random variants (N, size, size, 3) uint8 that keep their class.
Augment = Callable[[NDArray[np.uint8], int, np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is built and trained.

    Every epoch sees each training image once; of an endless set, `images` are taken. Muon trains the matrices, at a peak rate
    of `matrix_lr`, and AdamW the rest, at `lr`; both rates warm up for `warmup` epochs, then follow a cosine. `ema` is the
    decay per step of the averaged weights, which are the ones that are kept. With `kernels`, the kernels of dense convolutions
    count as matrices, (out, in * k * k). `local` is how transformers start: `_start_local`.
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


@dataclass(frozen=True)
class ImageSet:
    """Images (N, S, S, 3) uint8, resized and not yet cropped, and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a network learns: `classes`, from images varied by `augment`; `held_out` images are scored after each epoch."""

    classes: int
    images: ImageSet
    held_out: ImageSet
    augment: Augment


@dataclass(kw_only=True)
class Log:
    """What the Markdown log tells: lines as they were printed, and the time each part took, in seconds."""

    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def tell(self, line: str) -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self.lines.append(line)


def resized(image: NDArray[np.uint8], short: int) -> NDArray[np.uint8]:
    """Resize an RGB image (H, W, 3) so that its short side is `short`, with Pillow's bicubic filter."""
    height, width = image.shape[:2]
    size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=None)
    return np.asarray(picture, dtype=np.uint8)


def to_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn crops (N, S, S, 3) uint8 into normalised (N, 3, S, S) float32 in channels-last memory."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0
    return (scaled - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def centre_crops(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut the middle (N, size, size, 3) out of (N, H, W, 3), at the offset that torchvision takes."""
    top, left = (round((extent - size) / 2.0) for extent in images.shape[1:3])
    return np.ascontiguousarray(images[:, top : top + size, left : left + size])


class _Fp32Conv(nn.Conv2d):
    """A convolution that leaves autocast: depthwise ones are three times slower in bfloat16 than in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that the base class has
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class _MatrixConv(nn.Conv2d):
    """A convolution that keeps its kernel as a matrix (out, in * k * k), the form that Muon takes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that the base class has
        kernel = self.weight.view(self.out_channels, self.in_channels, *self.kernel_size)
        output: torch.Tensor = self._conv_forward(input, kernel, self.bias)
        return output


def build(recipe: Recipe, classes: int) -> nn.Module:
    """Build the recipe's network with one logit per class."""
    module, _, name = recipe.module.partition(":")
    model: nn.Module = getattr(importlib.import_module(module), name)(num_classes=classes, **recipe.kwargs)
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


def _batches(
    lesson: Lesson, recipe: Recipe, rng: np.random.Generator, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give one epoch of shuffled, augmented batches on `device`; the last incomplete one is left out."""
    data = lesson.images
    order = rng.permutation(len(data.labels))
    for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
        chosen = order[start : start + recipe.batch]
        yield (
            to_input(lesson.augment(data.images[chosen], recipe.input_size, rng)).to(device),
            torch.from_numpy(data.labels[chosen]).to(device),
        )


def _settle(model: nn.Module, lesson: Lesson, recipe: Recipe) -> None:
    """Measure the statistics of BatchNorm anew: averages of those of other weights don't fit averaged weights."""
    batches = _batches(lesson, recipe, np.random.default_rng(recipe.seed), _device_of(model))
    update_bn(islice(batches, SETTLING_BATCHES), model)


def predict(model: nn.Module, data: ImageSet, input_size: int) -> NDArray[np.int64]:
    """Classify the centre crops in float32 where the model is; returns the top classes, (N,) int64."""
    model.eval()
    found, device = [], _device_of(model)
    with torch.inference_mode():
        for start in range(0, len(data.labels), EVAL_BATCH):
            crops = centre_crops(data.images[start : start + EVAL_BATCH], input_size)
            found.append(model(to_input(crops).to(device)).argmax(dim=1).cpu().numpy())
    return np.concatenate(found)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def train(recipe: Recipe, lesson: Lesson, log: Log, device: str = "cpu") -> nn.Module:
    """Train the recipe from its seed on `device`; returns the averaged network in float32, on the CPU."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = build(recipe, lesson.classes)
    _initialise(model)
    if recipe.local:
        _start_local(model, to_input(lesson.augment(lesson.images.images[:WHITENING_IMAGES], recipe.input_size, rng)))
    model = _for_training(model, recipe).to(device)
    follow = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    optimizers = _optimizers(model, recipe)
    steps = len(lesson.images.labels) // recipe.batch
    schedule = partial(_lr_factor, warmup=max(1, round(recipe.warmup * steps)), total=recipe.epochs * steps)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) for optimizer in optimizers]
    log.tell("| epoch | training loss | held-out top-1 | seconds |")
    log.tell("|---:|---:|---:|---:|")
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        losses = []
        for images, labels in _batches(lesson, recipe, rng, torch.device(device)):
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
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
        _settle(average.module, lesson, recipe)
        correct = predict(average.module, lesson.held_out, recipe.input_size) == lesson.held_out.labels
        seconds = time.perf_counter() - start
        log.tell(f"| {epoch} | {np.mean(losses):.4f} | {correct.mean():.4f} | {seconds:.0f} |")
    shipped = build(recipe, lesson.classes)
    own = shipped.state_dict()
    trained = average.module.state_dict()
    shipped.load_state_dict({name: value.cpu().view_as(own[name]) for name, value in trained.items()})
    return shipped


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a network's weights in float32, as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    path.chmod(0o644)  # the writer leaves it readable to its owner only, and a wheel would keep that
