"""Train a tiny model on the rendered image set and put it into the package.

    python -m scripts.train_tiny tiny-convnext

The recipe of each model is a row of `RECIPES`. A run writes `<id>.safetensors` and `<id>.json` to `--out` and its log,
`<id>.md`, to `--docs`. On one machine, with one thread count, a second run gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import PIL
import timm
import torch
from numpy.typing import NDArray
from scripts.training import (
    MEAN,
    SETTLING_BATCHES,
    STD,
    ImageSet,
    Lesson,
    Log,
    Recipe,
    predict,
    resized,
    train,
    write_weights,
)

from deploykit.data import rendered

ROOT: Final = Path(__file__).resolve().parent.parent
CROP_PCT: Final = 0.875


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


# ---- images ----------------------------------------------------------------------------------------------------------


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


# ---- results ---------------------------------------------------------------------------------------------------------


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a proportion."""
    z = 1.959964
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return centre - half, centre + half


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
    command = shlex.join(["python", "-m", "scripts.train_tiny", *options])
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
        *log.lines,
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
    lesson = Lesson(classes=len(rendered.CLASSES), images=data, held_out=held_out, augment=random_crops)
    model = train(job.recipe, lesson, log)
    log.seconds["training"] = time.perf_counter() - start
    found = predict(model, test, job.recipe.input_size)
    top1 = float(np.mean(found == test.labels))
    parameters = sum(p.numel() for p in model.parameters())
    weights = job.out / f"{job.model_id}.safetensors"
    write_weights(model, weights)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
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
