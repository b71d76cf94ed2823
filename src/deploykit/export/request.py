"""Request: what an export is to make, before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deploykit.data.imageset import NATIVE_SIZE
from deploykit.errors import UsageError
from deploykit.export import probe, ranges, reference
from deploykit.export.calibrate import CalibrationRequest
from deploykit.models.original import Original


@dataclass(frozen=True, order=True)
class Cell:
    """One precision for one target, for all classes of processors or for some.

    Attributes:
        precision: Such as "int8".
        target: Such as "ort".
        processors: Classes, or groups of them, whose sums of products have 32 bits: weights of 8 bits have their whole range.
            None: they fit pairs of 16 bits, so that it is right everywhere.
    """

    precision: str
    target: str
    processors: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What it is called by: "int8", "int8-vnni"."""
        return "-".join([self.precision, *self.processors])

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read "fp32:ort".

        Raises:
            UsageError: Not of that form.
        """
        precision, colon, target = text.partition(":")
        if not (precision and colon and target):
            raise UsageError(f"{text!r} is no cell: write PRECISION:TARGET, such as fp32:ort")
        return cls(precision, target)


@dataclass(frozen=True)
class ImagesRequest:
    """Images to judge on: the name of a set, its content hash, and a number where the set has none of its own.

    `size` is that of rendered images in pixels. Images that are not `labelled` need not show the model's classes; those that
    are `prepared` are inputs already. Of a user's images `count` are chosen by `draw`; None takes all, or the first.
    """

    images: str
    digest: str
    count: int | None
    size: int = NATIVE_SIZE
    labelled: bool = True
    prepared: bool = False
    draw: reference.Draw | None = None


#: Of a part of an axis: the least, the usual and the largest size.
Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    """What an export is to make.

    Attributes:
        cells: Precisions and targets.
        batch: Rows of the input where the batch is static.
        dynamic: Axes that stay open.
        golden: The images that golden inputs are taken from; None where the original takes none.
        evaluation: Labelled images for the task gates; None leaves them out.
        calibration: Images that activations are measured on; None where no cell needs any.
        prompts: What activations are measured on where the original takes no images; None where no cell needs any.
        table: Ranges that were measured before, instead of images; None measures them.
        profiles: Open axes by name, with the least, the usual and the largest size of those that are not the family's; of an
            axis that is tuned for in several parts, those of each.
        capabilities: Compute capabilities of GPUs to build for, as 86 for 8.6; empty for all that a precision runs on.
        opset: ONNX operator set of the graph that all are made from; None is the family's.
        kept: First outputs of layers that stay in the higher precision, by cell, beside those of the family's recipe.
    """

    cells: tuple[Cell, ...]
    batch: int
    dynamic: tuple[str, ...]
    golden: ImagesRequest | None
    evaluation: ImagesRequest | None
    calibration: CalibrationRequest | None = None
    prompts: probe.Prompts | None = None
    table: ranges.TableOptions | None = None
    profiles: Mapping[str, tuple[Sizes, ...]] = field(default_factory=dict)
    capabilities: tuple[int, ...] = ()
    opset: int | None = None
    kept: Mapping[Cell, tuple[str, ...]] = field(default_factory=dict)


def images_options(request: ImagesRequest, original: Original) -> reference.ImagesOptions:
    """Return which images a request is for, prepared as the original takes them."""
    return reference.ImagesOptions(
        request.images,
        request.digest,
        request.count,
        request.size,
        original.labels if request.labelled else (),
        original.recipe,
        request.prepared,
        request.draw,
    )
