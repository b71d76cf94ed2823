"""What callers choose: frozen options, declared once; the command line and the Python API derive from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from deploykit.artifact import Preprocess
from deploykit.data.imageset import NATIVE_SIZE
from deploykit.models.original import SourceOptions
from deploykit.runtime.latency import BenchOptions

#: Images that the task gates are judged on where a model has a set of its own: enough to tell 98 % from 99 %.
EVALUATION_COUNT = 2000
#: Golden inputs of a bundle: how many, the most that one holds, and the images that they are taken from where none are given.
GOLDEN_COUNT = 16
GOLDEN_LIMIT = 32
GOLDEN_IMAGES = "rendered:calib"
#: What `golden` says to have them rendered though there are photographs.
RENDERED = "rendered"
#: Seconds that an artifact may take on an emulated processor, which computes some 50 times slower.
ON_LIMIT_S = 600.0
#: Images that activations are measured on.
CALIB_SIZE = 300


def rendered_size(recipe: Preprocess) -> int:
    """Return how many pixels wide golden images are rendered: enough that none is enlarged for the model."""
    return max(NATIVE_SIZE, *recipe.resized)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `deploykit.export_model` makes.

    Attributes:
        cells: Precision and target of each artifact, as "fp32:ort".
        out: The bundle's folder; None is `deploy/<model>`.
        batch: Rows of the input.
        dynamic: Axes of the input that stay open, such as "batch"; each is verified at three sizes off the traced one.
        profile: Least, usual and largest size of an open axis, as "batch=1,8,32", for targets that are tuned for a range; an
            axis that is named again has a further part, tuned for by itself.
        sm: Compute capabilities of the GPUs to build for, as 86 for 8.6; empty for all that the precision runs on.
        processors: Classes of processors, or groups such as "vnni", that int8 artifacts are for: where all of them add
            products in 32 bits, weights have their whole range. Empty for all: then they are right everywhere.
        opset: ONNX operator set of the graph that all are made from, for runtimes that take none newer; None is the family's.
        data: Labelled images for the task gates, a folder per class or a CSV; None takes the model's own set.
        eval_size: How many images of the model's own set are judged.
        golden: Images that golden inputs are made of, a folder, a .npy or .npz. An array of float32 [N, channels, height,
            width] is inputs already, of which there may be fewer. None takes some of `data`, else some of `calib` that aren't
            calibrated on, else it renders them, as "rendered" does.
        golden_size: How many golden inputs are taken, and kept in the bundle, 32 at most.
        calib: Images that activations are measured on, for int8: a folder, a .npy or .npz; None takes the model's own set.
        calib_size: How many of them are taken.
        calib_seed: What the choice is drawn from.
        calib_few: Fewer than 32 are enough.
        calib_table: What activations were measured to be, from a file that `save_calib_table` wrote: instead of images.
        save_calib_table: File that the measured activations are written to.
        repair: Return layers to the higher precision where an int8 artifact would not pass; needs `verify`.
        verify: Judge each artifact against the original.
        bench: Time each artifact beside the original.
        defer: Write what another machine builds from, of targets that are built on their own device.
        replace: Write into a folder that holds another original's bundle or other files.
        cache: Reuse and keep the results of stages.
        bench_options: How latency is measured.
        source: How the original is opened: weights, head, preprocessing.
    """

    cells: tuple[str, ...] = ("fp32:ort",)
    out: str | None = None
    batch: int = 1
    dynamic: tuple[str, ...] = ()
    profile: tuple[str, ...] = ()
    sm: tuple[int, ...] = ()
    processors: tuple[str, ...] = ()
    opset: int | None = None
    data: str | None = None
    eval_size: int = EVALUATION_COUNT
    golden: str | None = None
    golden_size: int = GOLDEN_COUNT
    calib: str | None = None
    calib_size: int = CALIB_SIZE
    calib_seed: int = 0
    calib_few: bool = False
    calib_table: str | None = None
    save_calib_table: str | None = None
    repair: bool = True
    verify: bool = True
    bench: bool = True
    defer: bool = False
    replace: bool = False
    cache: bool = True
    bench_options: BenchOptions = field(default_factory=BenchOptions)
    source: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How `deploykit.verify` judges.

    Attributes:
        reference: Source of the original: of a bare artifact, or of a bundle whose original `data` is judged by.
        data: Labelled images, a folder per class or a CSV; needs PyTorch for the original's answers.
        eval_size: How many images of the model's own set a bare artifact is judged on.
        golden: Images that golden inputs of a bare artifact are made of, as of `ExportOptions`; None renders some.
        golden_size: How many are taken.
        precision: What a bare artifact is judged as; None: what its weights are held in.
        device: Where everything runs, such as "cuda:0"; None: where its RunConfigs say.
        on: Virtual sites to judge on instead of this machine, such as "avx2" and "arm64": processors that are emulated.
        on_limit_s: Seconds that each artifact may take on each of them, in each way to run it.
        source: How the original that `reference` names is opened.
    """

    reference: str | None = None
    data: str | None = None
    eval_size: int = EVALUATION_COUNT
    golden: str | None = None
    golden_size: int = GOLDEN_COUNT
    precision: str | None = None
    device: str | None = None
    on: tuple[str, ...] = ()
    on_limit_s: float = ON_LIMIT_S
    source: SourceOptions = field(default_factory=SourceOptions)
