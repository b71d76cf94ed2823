"""Predict: run images through an artifact that carries its own labels and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit import paths, serde
from deploykit.artifact import Preprocess
from deploykit.calibration.images import image_files
from deploykit.data import images as decoding
from deploykit.data.preprocess import prepare
from deploykit.errors import BadInputError, Hint, ResourceError, UsageError, of_os_error
from deploykit.runtime.backends.base import Session, get_backend
from deploykit.runtime.batches import run_rows
from deploykit.workflow.shipped import Chosen

#: Images that are prepared at a time.
CHUNK: Final = 32


@dataclass(frozen=True)
class Score:
    """A class and its softmax probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Near:
    """An image and the cosine between its features and those that were asked for, -1..1."""

    image: str
    cosine: float


@dataclass(frozen=True)
class Prediction:
    """What an artifact sees in one image.

    Attributes:
        image: Its file.
        scores: The most probable classes, best first; none of an artifact that answers with features.
        embedding: float32 [F], the features; None of one that answers with classes.
        nearest: Images of the folder that was named, nearest first.
    """

    image: str
    scores: tuple[Score, ...] = ()
    embedding: NDArray[np.float32] | None = None
    nearest: tuple[Near, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON values: the features where no nearest images were asked for."""
        found: dict[str, Any] = {"image": self.image}
        if self.embedding is None:
            return {**found, "scores": serde.to_values(self.scores)}
        return {
            **found,
            **({"nearest": serde.to_values(self.nearest)} if self.nearest else {"embedding": self.embedding.tolist()}),
        }


@dataclass(frozen=True)
class _Seer:
    """An open session and what its artifact says of itself."""

    artifact: Path
    session: Session
    labels: tuple[str, ...]
    recipe: Preprocess

    def answers(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Return its first output for each image, flat: float32 [N, F]."""
        found = np.concatenate([self._chunk(chunk) for chunk in _chunks(images, CHUNK)])
        bad = [str(path) for path, row in zip(images, found, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise BadInputError(f"{self.artifact} answers with NaN or infinity to {', '.join(bad[:3])}")
        return found

    def _chunk(self, images: Sequence[Path]) -> NDArray[np.float32]:
        rows = prepare((decoding.decode(path) for path in images), self.recipe)
        answers = run_rows(self.session, {self.session.inputs[0].name: rows})[self.session.outputs[0].name]
        if len(answers) != len(images) or answers.dtype == object:
            raise UsageError(f"{self.artifact} doesn't answer to each image by itself: {self.session.outputs[0].text}")
        return np.asarray(answers, np.float32).reshape(len(images), -1)


def predict(
    chosen: Chosen, images: Sequence[Path], top: int = 5, nearest: Path | None = None
) -> tuple[Prediction, ...]:
    """Run image files, or all those in a folder, through an artifact.

    Args:
        chosen: The artifact and how to run it.
        images: Image files and folders of them.
        top: How many classes, or nearest images, to return of each.
        nearest: Folder of images among which to look for the nearest, by the cosine of the features.

    Raises:
        UsageError: The artifact carries no preprocessing, or answers with classes where features are asked for.
        BadInputError: A file can't be read.
        MissingComponentError: The runtime or Pillow is not installed.
    """
    files = tuple(each for path in images for each in (image_files(path) if path.is_dir() else (path,)))
    if not files:
        raise UsageError(f"no image in {', '.join(map(str, images))}")
    with get_backend(chosen.run.backend).open(str(chosen.path), chosen.run) as session:
        labels, recipe = embedded(chosen.path, session.metadata)
        seer = _Seer(chosen.path, session, labels, recipe)
        if not labels:
            return _features(seer, files, top, nearest)
        if nearest is not None:
            raise UsageError(
                f"--nearest {nearest}: {chosen.path} answers with classes, not features",
                Hint("deploykit export … --embedding", "makes an artifact that answers with features"),
            )
        return _classes(seer, files, top)


def _classes(seer: _Seer, files: Sequence[Path], top: int) -> tuple[Prediction, ...]:
    logits = seer.answers(files)
    if logits.shape[1] != len(seer.labels):
        raise BadInputError(
            f"{seer.artifact} answers with {logits.shape[1]} numbers and carries {len(seer.labels)} class names"
        )
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    return tuple(
        Prediction(str(path), tuple(Score(seer.labels[i], float(row[i])) for i in np.argsort(-row)[:top]))
        for path, row in zip(files, shares, strict=True)
    )


def _features(seer: _Seer, files: Sequence[Path], top: int, nearest: Path | None) -> tuple[Prediction, ...]:
    features = seer.answers(files)
    if nearest is None:
        return tuple(Prediction(str(path), embedding=row) for path, row in zip(files, features, strict=True))
    known = image_files(nearest) if nearest.is_dir() else ()
    if not known:
        raise UsageError(f"--nearest {nearest}: no image in it" if nearest.is_dir() else f"{nearest} is no folder")
    cosines = _unit(features) @ _unit(seer.answers(known)).T
    return tuple(
        Prediction(
            str(path),
            embedding=features[row],
            nearest=tuple(Near(str(known[i]), float(cosines[row, i])) for i in np.argsort(-cosines[row])[:top]),
        )
        for row, path in enumerate(files)
    )


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1; those of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0.0, lengths, 1.0), np.float32)


def _chunks(items: Sequence[Path], size: int) -> Iterator[tuple[Path, ...]]:
    rest = iter(items)
    while chunk := tuple(islice(rest, size)):
        yield chunk


def _as_npy(path: Path, predictions: Sequence[Prediction]) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.stack([each.embedding for each in predictions if each.embedding is not None]))


def _as_json(path: Path, predictions: Sequence[Prediction]) -> None:
    rows = [
        {"image": each.image, "embedding": each.embedding.tolist()}
        for each in predictions
        if each.embedding is not None
    ]
    path.write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")


#: What features are written as, by the ending of the file.
WRITERS = {".npy": _as_npy, ".json": _as_json}


def check_out(path: Path) -> None:
    """Refuse a file that features can't be written to.

    Raises:
        UsageError: Of another ending.
        ResourceError: No file can lie there.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"--out {path}: features are written as {' or '.join(WRITERS)}")
    paths.check_target(path)


def write(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write the features of images: .npy float32 [N, F] in their order, .json with their names.

    Raises:
        UsageError: The artifact answers with classes.
        ResourceError: The file can't be written.
    """
    if any(each.embedding is None for each in predictions):
        raise UsageError(f"--out {path}: the artifact answers with classes, not features", Hint("--json"))
    try:
        WRITERS[path.suffix](path, predictions)
    except OSError as error:
        raise ResourceError(f"{path} can't be written: {of_os_error(error).message}") from error


def embedded(artifact: Path, metadata: Mapping[str, str]) -> tuple[tuple[str, ...], Preprocess]:
    """Read labels and preprocessing from an artifact's own metadata.

    Returns:
        Class names by index, none where it answers with features; and how images become inputs.

    Raises:
        UsageError: It carries none.
        BadInputError: They are damaged.
    """
    try:
        labels = serde.parse(metadata["deploykit.labels"])
        recipe = serde.parse(metadata["deploykit.preprocess"])
    except KeyError as error:
        raise UsageError(f"{artifact} carries no {error}: it takes no images, or was not made by deploykit") from error
    except ValueError as error:
        raise BadInputError(f"{artifact}: its embedded metadata is no JSON: {error}") from error
    return serde.from_json(tuple[str, ...], labels, "labels"), serde.from_json(Preprocess, recipe, "preprocess")
