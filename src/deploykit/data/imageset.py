"""Labelled image sets: a folder per class, or the set that the package renders itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit import serde
from deploykit.artifact import Preprocess, sha256_of
from deploykit.data import images, rendered
from deploykit.data.preprocess import crop
from deploykit.errors import BadInputError, UsageError

RENDERED = "rendered"
#: Pixels of a rendered image where nothing else is asked for.
NATIVE_SIZE = 80
#: Images between two reports of progress.
REPORT_EVERY = 50


class ImageSet(ABC):
    """Images with labels, in a fixed order.

    Attributes:
        name: What the user typed.
        labels: Class index of each image in the model's order.
    """

    name: str
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def digest(self) -> str:
        """Content hash of images, labels and order."""

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 RGB [height, width, 3]."""


class RenderedSet(ImageSet):
    """The first `count` images of a split of the package's own set, rendered `size` pixels wide."""

    def __init__(self, split: str, count: int, size: int) -> None:
        self.name = f"{RENDERED}:{split}"
        self._split = split
        self._size = size
        self.labels = tuple(rendered.label(split, index) for index in range(count))

    @property
    def digest(self) -> str:
        """Hash of what determines the pixels: version, split, count and size."""
        return serde.digest([RENDERED, rendered.VERSION, self._split, len(self), self._size])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Render image `index`."""
        return rendered.render(self._split, index, self._size)[0]


class FolderSet(ImageSet):
    """A folder that holds one folder per class, named as the model names its classes."""

    def __init__(self, root: Path, labels: tuple[str, ...]) -> None:
        if not root.is_dir():
            raise UsageError(f"{root} is no folder of images")
        index_of = {label: index for index, label in enumerate(labels)}
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        strangers = [folder.name for folder in folders if folder.name not in index_of]
        if strangers:
            raise UsageError(
                f"{root}: folder {strangers[0]!r} is no class of this model; its classes: {', '.join(labels)}"
            )
        found = [
            (path, index_of[folder.name])
            for folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in images.SUFFIXES
        ]
        if not found:
            raise BadInputError(
                f"{root} holds no images: expected one folder per class with {', '.join(images.SUFFIXES)}"
            )
        self.name = str(root)
        self.paths = tuple(path for path, _ in found)
        self.labels = tuple(label for _, label in found)

    @property
    def digest(self) -> str:
        """Hash of every file's bytes and label, in order."""
        return serde.digest([[sha256_of(path), label] for path, label in zip(self.paths, self.labels, strict=True)])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index`."""
        return images.decode(self.paths[index])


def open_imageset(name: str, labels: tuple[str, ...], count: int | None = None) -> ImageSet:
    """Open a labelled set: "rendered:SPLIT" or a folder.

    Args:
        name: What the user typed.
        labels: The model's classes, by index.
        count: How many images of a rendered split; a folder has a number of its own.

    Raises:
        UsageError: No such set, or its classes are not the model's.
        BadInputError: The folder holds no images.
    """
    if not name.startswith(f"{RENDERED}:"):
        return FolderSet(Path(name), labels)
    if tuple(labels) != tuple(rendered.CLASSES):
        raise UsageError(f"the rendered set shows {', '.join(rendered.CLASSES)}; this model knows {', '.join(labels)}")
    return rendered_images(name, count)


def rendered_images(name: str, count: int | None, size: int = NATIVE_SIZE) -> RenderedSet:
    """Open "rendered:SPLIT", whatever the model's classes are.

    Raises:
        UsageError: No such split, or no number of images.
    """
    split = name.partition(":")[2]
    if split not in rendered.SPLITS:
        raise UsageError(f"{name!r}: the rendered set has the splits {', '.join(rendered.SPLITS)}")
    if count is None:
        raise UsageError(f"{name!r} is endless: say how many images")
    return RenderedSet(split, count, size)


def prepare_crops(
    images: ImageSet,
    recipe: Preprocess,
    into: NDArray[np.uint8] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Crop every image of a set.

    Args:
        images: The set.
        recipe: What the model was trained for.
        into: uint8 [N, height, width, channels] to write to, such as a memory map; None allocates it.
        progress: Called with images done and images in all.

    Returns:
        uint8 [N, height, width, channels].

    Raises:
        MissingComponentError: Pillow is not installed.
        BadInputError: An image can't be decoded.
    """
    channels, height, width = recipe.input_size
    crops = np.empty((len(images), height, width, channels), np.uint8) if into is None else into
    for index in range(len(images)):
        crops[index] = crop(images.image(index), recipe)
        if progress is not None and index % REPORT_EVERY == 0:
            progress(index, len(images))
    return crops
