"""What int8 costs the tiny models when it is made without care.

    python benchmarks/naive_int8.py [MODEL ...] [--images 10000] [--out docs/results/naive_int8.md]

Each model's fp32 ONNX, as deploykit exports it, is quantized by ONNX Runtime's `quantize_static`: QDQ, int8 weights and
activations with one scale per tensor, ranges by minimum and maximum over 300 images of split `calib`. Both graphs then answer
the same images of split `test` in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

import deploykit
from deploykit.artifact import Preprocess
from deploykit.data.imageset import prepare_crops, rendered_images
from deploykit.data.preprocess import normalize
from deploykit.manifest import Machine
from deploykit.models.original import INPUT_NAME
from deploykit.models.source_tiny import tiny_card, tiny_names
from deploykit.runtime.gate import paired_drop

CALIBRATION = 300
BATCH = 250


@dataclass(frozen=True)
class Classified:
    """How one model and its int8 copy did on the same `n` images, in counts.

    Attributes:
        model: Its name.
        right: Images that fp32 classifies rightly.
        lost: Those of them that int8 doesn't.
        gained: Images that int8 alone classifies rightly.
        agreed: Images that both put into the same class.
        n: All images.
    """

    model: str
    right: int
    lost: int
    gained: int
    agreed: int
    n: int

    @property
    def drop(self) -> float:
        """Accuracy lost, in points."""
        return 100.0 * (self.lost - self.gained) / self.n

    @property
    def row(self) -> str:
        """The row of the table; the drop with both one-sided 99 % bounds of the pairs."""
        fp32, int8 = (100.0 * count / self.n for count in (self.right, self.right - self.lost + self.gained))
        low, high = (100.0 * bound for bound in paired_drop(self.lost, self.gained, self.n))
        agreed = 100.0 * self.agreed / self.n
        return f"| {self.model} | {fp32:.2f} | {int8:.2f} | {self.drop:.2f} ({low:.2f} to {high:.2f}) | {agreed:.2f} |"


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Calibration images, one at a time, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._rows: Iterator[NDArray[np.float32]] = iter(images[:, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next feed: float32 [1, C, H, W]; None at the end."""
        row = next(self._rows, None)
        return None if row is None else {INPUT_NAME: row}


def export(model: str, folder: Path) -> Path:
    """Export fp32 ONNX with an open batch; returns the file."""
    options = deploykit.ExportOptions(out=str(folder), dynamic=("batch",), verify=False, bench=False)
    bundle = deploykit.export_model(model, options).bundle
    return bundle.root / bundle.manifest.artifacts[0].main.path


def quantize(fp32: Path, recipe: Preprocess, int8: Path) -> None:
    """Write the int8 copy of a graph."""
    images = rendered_images("rendered:calib", CALIBRATION)
    quantize_static(
        fp32,
        int8,
        Calibration(normalize(prepare_crops(images, recipe), recipe)),
        quant_format=QuantFormat.QDQ,
        per_channel=False,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


def classes(graph: Path, crops: NDArray[np.uint8], recipe: Preprocess) -> NDArray[np.int64]:
    """Return the top classes, int64 [N], of uint8 crops [N, H, W, 3]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    parts = (crops[start : start + BATCH] for start in range(0, len(crops), BATCH))
    logits = [session.run(None, {INPUT_NAME: normalize(part, recipe)})[0] for part in parts]
    found: NDArray[np.int64] = np.concatenate(logits).argmax(axis=1)
    return found


def measure(model: str, count: int) -> Classified:
    """Export and quantize a model, then classify the first `count` test images with both graphs."""
    recipe = tiny_card(model).preprocess
    images = rendered_images("rendered:test", count)
    crops, truth = prepare_crops(images, recipe), np.array(images.labels)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = export(model, Path(folder) / "bundle"), Path(folder) / "int8.onnx"
        quantize(fp32, recipe, int8)
        reference, candidate = (classes(graph, crops, recipe) for graph in (fp32, int8))
    was, still = reference == truth, candidate == truth
    return Classified(
        model=model,
        right=int(was.sum()),
        lost=int((was & ~still).sum()),
        gained=int((~was & still).sum()),
        agreed=int((reference == candidate).sum()),
        n=count,
    )


def table(results: list[Classified], command: str) -> str:
    """Return the results as Markdown."""
    machine = Machine.here()
    lines = [
        "# Int8 made without care",
        "",
        f"`{command}`, {machine.cpu}, ONNX Runtime {ort.__version__}, Python {machine.python}.",
        "`quantize_static`: QDQ, int8 weights and activations with one scale per tensor, minimum and maximum over",
        f"{CALIBRATION} images of `rendered:calib`; then the same {results[0].n} images of `rendered:test` through both.",
        "In brackets both one-sided 99 % bounds of the paired drop.",
        "",
        "| model | fp32 top-1, % | int8 top-1, % | drop, points | same class, % |",
        "|---|---:|---:|---:|---:|",
        *(result.row for result in results),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names that ship with the package; none means all")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models = options.models or list(tiny_names())
    results = [measure(model, options.images) for model in models]
    command = " ".join(["python benchmarks/naive_int8.py", *options.models, f"--images {options.images}"])
    text = table(results, command)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
