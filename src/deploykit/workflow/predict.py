"""Predict: run images through an artifact that carries its own labels and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploykit import serde
from deploykit.artifact import Preprocess
from deploykit.data import images as decoding
from deploykit.data.preprocess import prepare
from deploykit.errors import BadInputError, UsageError
from deploykit.runtime.backends.base import backend_for
from deploykit.runtime.batches import run_rows


@dataclass(frozen=True)
class Score:
    """A class and its softmax probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first."""

    image: str
    scores: tuple[Score, ...]


def predict(artifact: Path, images: Sequence[Path], top: int = 5) -> tuple[Prediction, ...]:
    """Classify image files.

    Args:
        artifact: Main file of an artifact.
        images: Image files.
        top: How many classes to return of each.

    Raises:
        UsageError: The artifact doesn't exist or carries no labels and preprocessing.
        BadInputError: A file can't be read.
        MissingComponentError: The runtime or Pillow is not installed.
    """
    if not artifact.is_file():
        raise UsageError(f"{artifact} does not exist")
    backend = backend_for(artifact.name)
    with backend.open(str(artifact), backend.default_run()) as session:
        labels, recipe = embedded(artifact, session.metadata)
        rows = prepare((decoding.decode(path) for path in images), recipe)
        logits = run_rows(session, {session.inputs[0].name: rows})[session.outputs[0].name]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shifted / shifted.sum(axis=1, keepdims=True)
    return tuple(
        Prediction(str(path), tuple(Score(labels[i], float(row[i])) for i in np.argsort(-row)[:top]))
        for path, row in zip(images, shares, strict=True)
    )


def embedded(artifact: Path, metadata: Mapping[str, str]) -> tuple[tuple[str, ...], Preprocess]:
    """Read labels and preprocessing from an artifact's own metadata.

    Raises:
        UsageError: It carries none.
        BadInputError: They are damaged.
    """
    try:
        labels = json.loads(metadata["deploykit.labels"])
        recipe = json.loads(metadata["deploykit.preprocess"])
    except KeyError as error:
        raise UsageError(f"{artifact} carries no {error}: it takes no images, or was not made by deploykit") from error
    except ValueError as error:
        raise BadInputError(f"{artifact}: its embedded metadata is no JSON: {error}") from error
    return serde.from_json(tuple[str, ...], labels, "labels"), serde.from_json(Preprocess, recipe, "preprocess")
