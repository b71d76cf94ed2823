"""What 8 bits cost a vision transformer's features, by weighted k-nearest-neighbour classification.

    python -m benchmarks.knn --archives FOLDER --state FOLDER [--out docs/results/knn.md]

The protocol of DINO (Caron et al. 2021, arXiv:2104.14294, section 4.1): the 20 nearest of a bank of labelled images by cosine
vote, each with exp(similarity / 0.07). Bank and queries are both embedded by the artifact that is judged. Rendered images and
photographs, each with the network that was trained on their like, its head left off: see `photographs.py`. Ends with 3 where
more than `LIMIT` points are lost.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import openvino
import torch
from benchmarks.drift_table import CALIBRATION
from benchmarks.photographs import SOURCE
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scripts.train_photographs import PHOTOGRAPHS, read, train_network, unpack, weights_of
from scripts.train_tiny import render_set
from scripts.training import ImageSet, centre_crops

import deploykit
from deploykit.artifact import Preprocess, RunConfig
from deploykit.bundle import Bundle
from deploykit.data.preprocess import normalize
from deploykit.manifest import Machine
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.batches import run_rows

MODEL: Final = "tiny-dinov2"
NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
#: Images of the bank, and as many queries.
COUNT: Final = 10_000
#: Points that may be lost.
LIMIT: Final = 0.3
RUNS: Final = {
    "ort": (RunConfig("onnxruntime", precision="f32"),),
    "openvino": (RunConfig("openvino", precision="f32"), RunConfig("openvino", precision="auto")),
}
#: Rows embedded, and queries compared, at once.
BATCH: Final = 500

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One kind of images.

    Attributes:
        name: Of the images.
        source: The network without its head.
        options: How that is opened, and what else its export needs.
        bank: Labelled images.
        queries: Images to classify.
    """

    name: str
    source: str
    options: deploykit.ExportOptions
    bank: ImageSet
    queries: ImageSet


def classify(bank: Floats, labels: NDArray[np.int64], queries: Floats) -> NDArray[np.int64]:
    """Return the class that the nearest of `bank`, [N, D], give each of `queries`, [M, D]: int64 [M]."""
    bank, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries))
    found = []
    for start in range(0, len(queries), BATCH):
        near = queries[start : start + BATCH] @ bank.T
        chosen = np.argpartition(near, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
        votes = np.zeros((len(near), labels.max() + 1))
        weights = np.exp(np.take_along_axis(near, chosen, axis=1) / TEMPERATURE)
        np.add.at(votes, (np.arange(len(near))[:, None], labels[chosen]), weights)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)


def embed(path: Path, run: RunConfig, crops: NDArray[np.uint8], recipe: Preprocess) -> Floats:
    """Return the features, [N, D], that an artifact gives crops."""
    with get_backend(run.backend).open(str(path), run) as session:
        name = session.inputs[0].name
        parts = [
            next(iter(run_rows(session, {name: normalize(crops[start : start + BATCH], recipe)}).values()))
            for start in range(0, len(crops), BATCH)
        ]
    return np.concatenate(parts)


def hits(path: Path, run: RunConfig, case: Case, recipe: Preprocess) -> NDArray[np.bool_]:
    """Tell which queries an artifact gets right."""
    size = recipe.input_size[1]
    bank, queries = (
        embed(path, run, centre_crops(images.images, size), recipe) for images in (case.bank, case.queries)
    )
    right: NDArray[np.bool_] = classify(bank, case.bank.labels, queries) == case.queries.labels
    return right


def rows_of(case: Case) -> Iterator[tuple[str, float]]:
    """Yield a line of the table for each way to run int8, and the points that it loses."""
    bundle: Bundle = deploykit.export_model(case.source, case.options).bundle
    files = {artifact.name.split(".", 1)[1]: bundle.root / artifact.main.path for artifact in bundle.manifest.artifacts}
    recipe = sources.located(bundle.manifest.source.locator).recipe
    before = hits(files["fp32.ort"], RUNS["ort"][0], case, recipe)
    for target, runs in RUNS.items():
        for run in runs:
            after = hits(files[f"int8.{target}"], run, case, recipe)
            drop = 100 * float(before.mean() - after.mean())
            # Of the difference of pairs, as both answer the same queries.
            error = 100 * float(np.std(before.astype(int) - after.astype(int), ddof=1)) / np.sqrt(len(before))
            cells = (case.name, run.label, 100 * before.mean(), 100 * after.mean(), drop, error)
            yield "| {} | {} | {:.2f} | {:.2f} | {:.2f} ± {:.2f} |".format(*cells), drop


def rendered_case(folder: Path) -> Case:
    """Return the network that ships with the package, and rendered images."""
    options = deploykit.ExportOptions(
        cells=("fp32:ort", "int8:ort", "int8:openvino"),
        out=str(folder / "rendered"),
        calib="rendered:calib",
        calib_size=CALIBRATION,
        bench=False,
        source=SourceOptions(embedding=True),
    )
    size = sources.resolve(MODEL, SourceOptions(embedding=True)).recipe.input_size[1]
    bank, queries = (render_set(split, COUNT, size, workers=2) for split in ("train", "test"))
    return Case("rendered", MODEL, options, bank, queries)


def photographs_case(archives: Path, state: Path, folder: Path) -> Case:
    """Return the network that was trained on photographs, and those."""
    photographs = unpack(archives, state / "photographs")
    train_network(MODEL, photographs, state)
    headless = folder / "headless.safetensors"
    weights = load_file(weights_of(MODEL, state))
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("head.")}, headless)
    size = PHOTOGRAPHS[MODEL].input_size
    options = deploykit.ExportOptions(
        cells=("fp32:ort", "int8:ort", "int8:openvino"),
        out=str(folder / "photographs"),
        calib=str(photographs.folder / "train"),
        calib_size=CALIBRATION,
        golden=str(photographs.folder / "train"),
        bench=False,
        source=SourceOptions(
            weights=str(headless),
            model_args={"model": MODEL, "classes": 0},
            family="dinov2",
            image_size=size,
            crop_pct=1.0,
            embedding=True,
        ),
    )
    whole, queries = (read(photographs, split, size) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(whole.labels))[:COUNT]
    return Case("photographs", SOURCE, options, ImageSet(whole.images[order], whole.labels[order]), queries)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, required=True, help="folder of train.tar.gz and test.tar.gz")
    parser.add_argument("--state", type=Path, required=True, help="folder of unpacked images and weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases = (rendered_case(folder), photographs_case(options.archives, options.state, folder))
        found = [row for case in cases for row in rows_of(case)]
    machine = Machine.here()
    lines = [
        "# Nearest neighbours",
        "",
        f"`python -m benchmarks.knn --archives FOLDER --state FOLDER`, {machine.cpu}, Python {platform.python_version()},",
        f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__.split('-')[0]}.",
        "",
        f"Features of {MODEL}, with its head left off: the {NEIGHBOURS} nearest of {COUNT:,} training images vote on",
        f"{COUNT:,} test images. *lost* is in points, with the standard error of the pairs; at most {LIMIT} are asked for.",
        "",
        "| images | run as | fp32, % | int8, % | lost |",
        "|---|---|---:|---:|---:|",
        *(line for line, _ in found),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return 3 if any(drop > LIMIT for _, drop in found) else os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
