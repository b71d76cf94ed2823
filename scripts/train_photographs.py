"""Train the architectures of the tiny models on photographs.

    python -m scripts.train_photographs --archives FOLDER --state FOLDER [MODEL ...]

FOLDER holds `train.tar.gz` and `test.tar.gz`, each with a folder per class: CIFAR-10 as JPEG files, say. They are unpacked to
`--state`, where each network's weights and log, `<id>-<recipe>.safetensors` and `.md`, are written. What is there already is
not done again, so that a run which was stopped goes on with the network that it was at. Needs Python 3.11.4 or newer, whose
tarfile refuses what leads outside.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.train_tiny import RECIPES
from scripts.training import ImageSet, Lesson, Log, Recipe, build, predict, resized, train, write_weights

from deploykit import serde
from deploykit.data.images import decode

SPLITS: Final = ("train", "test")
HELD_OUT: Final = 1000
#: A random crop may leave the photograph by this share of its side; what is outside is mirrored in.
MARGIN: Final = 1 / 8


def _recipe(model: str, **changes: Any) -> Recipe:  # noqa: ANN401 - fields of a Recipe
    return replace(RECIPES[model], **changes)


#: As `RECIPES`, but for small inputs: photographs of 32 pixels show nothing more in large ones.
PHOTOGRAPHS: Final[Mapping[str, Recipe]] = {
    "tiny-convnext": _recipe("tiny-convnext", input_size=48, epochs=7, kernels=True),
    "tiny-mobilenetv3": _recipe("tiny-mobilenetv3", input_size=48, epochs=16),
    "tiny-efficientnetv2": _recipe("tiny-efficientnetv2", input_size=48, epochs=8),
    "tiny-convnextv2": _recipe("tiny-convnextv2", input_size=48, epochs=9),
    "tiny-dinov2": _recipe(
        "tiny-dinov2", input_size=56, epochs=14, kwargs={**RECIPES["tiny-dinov2"].kwargs, "img_size": 56}
    ),
}


@dataclass(frozen=True)
class Photographs:
    """Unpacked images: `folder`/train and `folder`/test, each with a folder per class.

    Attributes:
        folder: Where they lie.
        classes: Their names, in order.
    """

    folder: Path
    classes: tuple[str, ...]


def unpack(archives: Path, scratch: Path) -> Photographs:
    """Unpack both archives to `scratch`, where they aren't there yet.

    Raises:
        FileNotFoundError: An archive is missing.
        tarfile.FilterError: An archive holds what is no plain file, or what lies outside its folder.
        ValueError: The splits show different classes.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        if not (scratch / split).is_dir():
            with TemporaryDirectory(dir=scratch) as incoming, tarfile.open(archives / f"{split}.tar.gz") as archive:
                archive.extractall(incoming, filter="data")
                (Path(incoming) / split).rename(scratch / split)
    shown = {split: sorted(path.name for path in (scratch / split).iterdir()) for split in SPLITS}
    if shown["train"] != shown["test"]:
        raise ValueError(f"train shows {shown['train']}, test {shown['test']}")
    return Photographs(scratch, tuple(shown["test"]))


@lru_cache(maxsize=2)
def read(photographs: Photographs, split: str, size: int) -> ImageSet:
    """Read a split, class by class, its images (N, size, size, 3)."""
    files = [
        (path, label)
        for label, name in enumerate(photographs.classes)
        for path in sorted((photographs.folder / split / name).iterdir())
    ]
    images = np.stack([resized(decode(path), size) for path, _ in files])
    return ImageSet(images, np.array([label for _, label in files], dtype=np.int64))


def mirrored_crops(images: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a random (N, size, size, 3) out of (N, size, size, 3), margins mirrored in; mirror left and right at random."""
    margin = round(size * MARGIN)
    framed = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    crops = np.empty((len(images), size, size, 3), dtype=np.uint8)
    draws = rng.integers(0, (2 * margin + 1, 2 * margin + 1, 2), size=(len(images), 3))
    for crop, image, (top, left, mirror) in zip(crops, framed, draws.tolist(), strict=True):
        crop[:] = image[top : top + size, left : left + size][:, :: 1 - 2 * mirror]
    return crops


def split_off(images: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Part a set at random into all but `count` images, and those."""
    order = np.random.default_rng(seed).permutation(len(images.labels))
    rest, chosen = order[:-count], order[-count:]
    return ImageSet(images.images[rest], images.labels[rest]), ImageSet(images.images[chosen], images.labels[chosen])


def weights_of(model: str, state: Path) -> Path:
    """Return where a network's weights lie: under a name of their recipe's own, so that another one trains anew."""
    return state / f"{model}-{serde.digest(PHOTOGRAPHS[model])[:8]}.safetensors"


def train_network(model: str, photographs: Photographs, state: Path, device: str = "cpu") -> None:
    """Train a network on `device` and write its weights and its log, unless they are there."""
    weights = weights_of(model, state)
    if weights.is_file():
        return
    recipe, classes = PHOTOGRAPHS[model], len(photographs.classes)
    images, held_out = split_off(read(photographs, "train", recipe.input_size), HELD_OUT, recipe.seed)
    log, start = Log(), time.perf_counter()
    trained = train(
        recipe, Lesson(classes=classes, images=images, held_out=held_out, augment=mirrored_crops), log, device
    )
    minutes = (time.perf_counter() - start) / 60
    test = read(photographs, "test", recipe.input_size)
    top1 = float(np.mean(predict(trained, test, recipe.input_size) == test.labels))
    log.tell(f"\nTop-1 on {len(test.labels)} test images {top1:.4f}; {minutes:.1f} minutes on {device}.")
    weights.with_suffix(".md").write_text("\n".join([f"# {model}", "", *log.lines, ""]), encoding="utf-8")
    written = weights.with_suffix(".partial")
    write_weights(trained, written)
    written.rename(weights)


def network(model: str, classes: int) -> torch.nn.Module:
    """Build the network that weights of `train_network` fit."""
    return build(PHOTOGRAPHS[model], classes)


def main() -> None:
    """Read the command line and train what isn't there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(PHOTOGRAPHS)}; none means all")
    parser.add_argument("--archives", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of what makes a run repeatable")
    parser.add_argument("--device", default="cpu", help="where it trains; another device gives other weights")
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS sums in any order
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=options.device != "cpu")
    photographs = unpack(options.archives, options.state / "photographs")
    for model in options.models or PHOTOGRAPHS:
        train_network(model, photographs, options.state, options.device)


if __name__ == "__main__":
    main()
