"""What artifacts are judged by: prepared images, golden inputs, and the original's answers to both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess, RunConfig
from deploykit.bundle import load_tensors, save_tensors
from deploykit.calibration.images import CalibrationInputs, Choice, open_calibration
from deploykit.data.imageset import RENDERED, FileSet, ImageSet, open_imageset, prepare_crops, rendered_images
from deploykit.data.listing import labelled_files
from deploykit.data.preprocess import check_channels, normalize, stretched
from deploykit.errors import BadInputError, UsageError
from deploykit.export import onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.soundness import Asked, check_answers, notes_on_rows
from deploykit.export.stage import TENSORS, Facts, Inputs, Item, Stage, Workspace
from deploykit.models import sources
from deploykit.models.original import FORMS, SIDES, Original
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Session, get_backend
from deploykit.runtime.batches import ask, save_outputs
from deploykit.runtime.judge import logits_of
from deploykit.runtime.rollout import FURTHER, Sized, save_sized

#: Golden inputs of other sizes.
SIZED_ROWS = 2
#: What the choice of a user's golden images is drawn from: another seed than that of calibration images.
GOLDEN_SEED = 1


@dataclass(frozen=True)
class Draw:
    """How golden images are chosen among a user's.

    Attributes:
        seed: What the choice is drawn from.
        after: How many of the same seed are left to calibration.
    """

    seed: int = GOLDEN_SEED
    after: int = 0


CROPS, LABELS, ANSWERS = "crops.npy", "labels.npy", "answers.npz"


@dataclass(frozen=True)
class ImagesOptions:
    """Which images, prepared how.

    Attributes:
        images: Name of the set.
        digest: Its content hash, so that changed files are other images.
        count: How many of a set that renders itself; None for files.
        size: Pixels of rendered images.
        labels: The model's classes by index; none where the images need not show them.
        preprocess: From image to crop.
        prepared: They are inputs already.
        draw: How `count` of them are chosen; None takes the first ones, or all.
    """

    images: str
    digest: str
    count: int | None
    size: int
    labels: tuple[str, ...]
    preprocess: Preprocess
    prepared: bool = False
    draw: Draw | None = None


def _prepare_images(_inputs: Inputs, options: ImagesOptions, workspace: Workspace) -> Facts:
    images = _open(options)
    channels, height, width = options.preprocess.input_size
    crops = np.lib.format.open_memmap(
        str(workspace.folder / CROPS), mode="w+", dtype=np.uint8, shape=(len(images), height, width, channels)
    )
    reserve(workspace.folder / CROPS)
    prepare_crops(images, options.preprocess, crops, workspace.progress)
    crops.flush()
    np.save(workspace.folder / LABELS, np.asarray(images.labels, np.int64))
    return {"images": len(images), "set": options.images}


def _open(options: ImagesOptions) -> ImageSet:
    if options.labels and options.draw is not None:
        chosen = drawn(options.images, options.labels, options.count or 1, options.draw)
        _check_unchanged(chosen, options)
        return chosen
    if options.labels:
        return open_imageset(options.images, options.labels, options.count)
    if options.images.startswith(f"{RENDERED}:"):
        return rendered_images(options.images, options.count, options.size)
    found = unlabelled(options.images, options.count or 1, options.preprocess, "", options.draw or Draw())
    _check_unchanged(found, options)
    assert not isinstance(found, CalibrationInputs), "those are planned as what they are"  # noqa: S101
    return found


def _check_unchanged(found: ImageSet | CalibrationInputs, options: ImagesOptions) -> None:
    if found.digest != options.digest:
        raise BadInputError(f"{options.images} has changed since this began: start again when it is complete")


def drawn(name: str, labels: tuple[str, ...], count: int, draw: Draw) -> FileSet:
    """Choose images of a labelled set: a folder per class or a CSV.

    Raises:
        UsageError: No such set, or what it shows is not the model's classes alone.
        BadInputError: It holds no images, or can't be read.
    """
    entries = labelled_files(Path(name), labels)
    return FileSet(
        name, tuple(entries[index] for index in Choice.of(len(entries), count, draw.seed, draw.after).indices)
    )


def unlabelled(
    name: str, count: int, recipe: Preprocess, input_name: str, draw: Draw = Draw()
) -> ImageSet | CalibrationInputs:
    """Choose images that need no labels from a folder or an array, or prepared inputs from an array (.npy or .npz).

    Images are uint8 [N, height, width, 3], prepared inputs float32 [N, channels, height, width], of which there may be fewer.

    Args:
        name: What the user typed.
        count: How many are taken.
        recipe: Of the original; what images can't be made into is refused.
        input_name: Of the original's input.
        draw: How they are chosen.

    Raises:
        UsageError: No such set, too few images in it, or an array of another shape or dtype.
        BadInputError: It holds no images, is damaged, holds NaN or infinity, or can't be read.
    """
    found = open_calibration(name, count, draw.seed, recipe, input_name, draw.after)
    if isinstance(found, CalibrationInputs):
        wrong = [index for index in range(len(found)) if not np.isfinite(found.row(index)).all()]
        if wrong:
            raise BadInputError(f"{name}: {found.title(wrong[0])} holds NaN or infinity")
        return found
    check_channels(recipe)
    if len(found) < count:
        raise UsageError(f"{name} holds {len(found)} images; golden inputs are made of {count}")
    return found


def reserve(path: Path) -> None:
    """Give every byte of a mapped file its place: a disk that is full when a page is written ends the process without a word.

    Raises:
        OSError: The disk has no room for it.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


@dataclass(frozen=True)
class GoldenOptions:
    """Which images become golden inputs: the first `count`, as the tensor `input_name`."""

    count: int
    input_name: str
    preprocess: Preprocess


def _golden_inputs(inputs: Inputs, options: GoldenOptions, workspace: Workspace) -> Facts:
    crops = np.load(inputs["images"].path(CROPS), mmap_mode="r")[: options.count]
    save_tensors(workspace.folder / TENSORS, {options.input_name: normalize(crops, options.preprocess)})
    return {"inputs": len(crops)}


@dataclass(frozen=True)
class PreparedOptions:
    """Which prepared inputs become golden inputs, as the tensor `input_name`."""

    images: ImagesOptions
    input_name: str


def _prepared_inputs(_inputs: Inputs, options: PreparedOptions, workspace: Workspace) -> Facts:
    rows = inputs_of(options.images, options.input_name)
    save_tensors(workspace.folder / TENSORS, {options.input_name: rows})
    return {"inputs": len(rows), "set": options.images.images}


def inputs_of(images: ImagesOptions, input_name: str) -> NDArray[np.float32]:
    """Return images, or inputs that were prepared already, as an original takes them: float32 [N, channels, height, width].

    Args:
        images: Which.
        input_name: Of the original's input: an array of an .npz may be called so.

    Raises:
        UsageError: They are not there any more.
        BadInputError: They have changed since, or are damaged.
    """
    if not images.prepared:
        return normalize(prepare_crops(_open(images), images.preprocess), images.preprocess)
    found = unlabelled(images.images, images.count or 1, images.preprocess, input_name, images.draw or Draw())
    _check_unchanged(found, images)
    assert isinstance(found, CalibrationInputs), "planned as such"  # noqa: S101
    return np.stack([found.row(index) for index in range(len(found))])


@dataclass(frozen=True)
class SizedOptions:
    """Golden inputs, and a few of them at other sizes.

    Attributes:
        golden: The golden inputs.
        tried: Other sizes by axis, one at a time.
        at_once: Rows that the original is asked at once.
    """

    golden: GoldenOptions
    tried: Mapping[str, tuple[int, ...]]
    at_once: int


def _sized_inputs(inputs: Inputs, options: SizedOptions, workspace: Workspace) -> Facts:
    golden, original = options.golden, sources.located(inputs["original"].identity)
    facts = _golden_inputs(inputs, golden, workspace)
    crops = np.load(inputs["images"].path(CROPS))[:SIZED_ROWS]
    with sources.open_original(original) as session:
        sets = [
            _sized(Asking(session, original, options.at_once), crops, axis, size)
            for axis, sizes in options.tried.items()
            for size in sizes
        ]
    save_sized(workspace.folder / FURTHER["sizes"], sets)
    return facts


@dataclass(frozen=True)
class Asking:
    """An original, opened, and how many rows it is asked at once."""

    session: Session
    original: Original
    at_once: int


def _sized(asking: Asking, crops: NDArray[np.uint8], axis: str, size: int) -> Sized:
    original = asking.original
    sides = {**original.takes.sizes, axis: size}
    images = stretched(crops, *(sides.get(name, own) for name, own in zip(SIDES, crops.shape[1:3], strict=True)))
    inputs = {original.input_name: normalize(images, original.recipe)}
    return Sized(axis, size, inputs, ask(asking.session, inputs, asking.at_once).arranged())


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


@dataclass(frozen=True)
class OutputsOptions:
    """How golden inputs are run.

    Attributes:
        at_once: Rows at a time: those that graphs are traced at, so that outputs without rows can be compared, and those of
            which one influences the others.
        is_open: The batch stays open.
    """

    at_once: int
    is_open: bool = False


def _original_outputs(inputs: Inputs, options: OutputsOptions, workspace: Workspace) -> Facts:
    original, golden = sources.located(inputs["original"].identity), load_tensors(inputs["golden"].path(TENSORS))
    with sources.open_original(original) as session:
        asked = Asked(original, session, golden, ask(session, golden, options.at_once))
        check_answers(asked)
        notes = notes_on_rows(asked, is_open=options.is_open)
    save_outputs(workspace.folder / TENSORS, asked.answered.arranged())
    return {"notes": notes} if notes else {}


def _hub_outputs(inputs: Inputs, options: OutputsOptions, workspace: Workspace) -> Facts:
    with open_graph(inputs["graph"].path(onnx_files.MODEL)) as session:
        _save_answers(session, inputs["golden"], options.at_once, workspace)
    return {}


def _save_answers(session: Session, golden: Item, at_once: int, workspace: Workspace) -> None:
    """Run golden inputs through a runtime: of a diffusion model one row at a time."""
    size = 1 if golden.has(FURTHER["rollout"]) else at_once
    save_outputs(workspace.folder / TENSORS, ask(session, load_tensors(golden.path(TENSORS)), size).arranged())


@dataclass(frozen=True)
class TwinOptions:
    """How another runtime runs a graph, and how many rows at a time where its batch is open."""

    run: RunConfig
    at_once: int


def _twin_outputs(inputs: Inputs, options: TwinOptions, workspace: Workspace) -> Facts:
    graph = str(inputs["graph"].path(onnx_files.MODEL))
    with get_backend(options.run.backend).open(graph, options.run) as session:
        _save_answers(session, inputs["golden"], options.at_once, workspace)
    return {}


@dataclass(frozen=True)
class AnswersOptions:
    """How crops become inputs of the original."""

    preprocess: Preprocess


def _original_answers(inputs: Inputs, options: AnswersOptions, workspace: Workspace) -> Facts:
    crops = np.load(inputs["images"].path(CROPS), mmap_mode="r")
    labels = np.load(inputs["images"].path(LABELS))
    with sources.open_original(sources.located(inputs["original"].identity)) as session:
        logits = logits_of(session, crops, options.preprocess, workspace.progress)
    answers = drift.Answers.of(logits, labels)
    save_tensors(workspace.folder / ANSWERS, {"top1": answers.top1, "margin": answers.margin, "labels": answers.labels})
    return {"images": len(labels), "top1": float((answers.top1 == labels).mean())}


IMAGES = Stage("images", 2, {}, "images", ("PIL",), _prepare_images)
GOLDEN = Stage("golden", 1, {"images": "images"}, "tensors", (), _golden_inputs)
PREPARED = Stage("golden-prepared", 1, {}, "tensors", (), _prepared_inputs)
HUB_OUTPUTS = Stage(
    "hub-outputs", 4, {"graph": "graph", "golden": "tensors"}, "tensors", ("onnx", "onnxruntime"), _hub_outputs
)


def twin_stage(run: RunConfig) -> Stage[TwinOptions]:
    """Return the stage that asks a runtime what a graph makes of the golden inputs."""
    takes = {"graph": "graph", "golden": "tensors"}
    return Stage("twin-outputs", 3, takes, "tensors", (get_backend(run.backend).module,), _twin_outputs)


def sized_stage(original: Original) -> Stage[SizedOptions]:
    """Return the stage that makes golden inputs at other sizes too, with the original's answers to those."""
    takes = {"images": "images", "original": "original"}
    return Stage("golden-sized", 2, takes, "tensors", ("PIL", *FORMS[original.form].libraries), _sized_inputs)


def outputs_stage(original: Original) -> Stage[OutputsOptions]:
    """Return the stage that asks an original for its outputs of the golden inputs."""
    takes = {"original": "original", "golden": "tensors"}
    return Stage("original-outputs", 4, takes, "tensors", FORMS[original.form].libraries, _original_outputs)


def answers_stage(original: Original) -> Stage[AnswersOptions]:
    """Return the stage that asks an original for its answers to labelled images."""
    takes = {"original": "original", "images": "images"}
    return Stage("original-answers", 3, takes, "answers", FORMS[original.form].libraries, _original_answers)
