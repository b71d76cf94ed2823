"""Labelled image sets: files of the user, or the set that the package renders itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit import serde
from deploykit.artifact import Preprocess, sha256_of
from deploykit.data import images, rendered
from deploykit.data.faults import Faults
from deploykit.data.listing import Labelled, labelled_files
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

    @abstractmethod
    def title(self, index: int) -> str:
        """Return what people know image `index` by."""


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

    def title(self, index: int) -> str:
        """Return the name of the set and the index."""
        return f"{self.name} {index}"


class FileSet(ImageSet):
    """Image files of the user.

    Attributes:
        paths: The files, in the set's order.
    """

    def __init__(self, name: str, found: tuple[Labelled, ...]) -> None:
        self.name = name
        self.paths = tuple(entry.path for entry in found)
        self.labels = tuple(entry.label for entry in found)

    @property
    def digest(self) -> str:
        """Hash of every file's bytes and label, in order.

        Raises:
            BadInputError: Files may not be read; all are named.
        """
        faults, hashes = Faults(self.name), []
        for path, label in zip(self.paths, self.labels, strict=True):
            try:
                hashes.append([sha256_of(path), label])
            except OSError as error:
                faults.add(f"{path} can't be read: {error.strerror}")
        faults.refuse(BadInputError)
        return serde.digest(hashes)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index`."""
        return images.decode(self.paths[index])

    def title(self, index: int) -> str:
        """Return the path of image `index`."""
        return str(self.paths[index])


def ships(name: str) -> bool:
    """Tell whether a set is the package's own: opening it leads to no file of somebody's."""
    return name.startswith(f"{RENDERED}:")


def open_imageset(name: str, labels: tuple[str, ...], count: int | None = None) -> ImageSet:
    """Open a labelled set: "rendered:SPLIT", a folder with a folder per class, or a CSV.

    Args:
        name: What the user typed.
        labels: The model's classes, by index.
        count: How many images of a rendered split; files have a number of their own.

    Raises:
        UsageError: No such set, or what it shows is not the model's classes alone.
        BadInputError: It holds no images, or can't be read.
    """
    if not ships(name):
        return FileSet(name, labelled_files(Path(name), labels))
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
    """Crop every image of a set. One that is refused doesn't keep the others from being looked at, so that all are told.

    Args:
        images: The set.
        recipe: What the model was trained for.
        into: uint8 [N, height, width, channels] to write to, such as a memory map; None allocates it.
        progress: Called with images done and images in all.

    Returns:
        uint8 [N, height, width, channels].

    Raises:
        MissingComponentError: Pillow is not installed.
        BadInputError: Images can't be decoded or cropped: how many, and the first by name.
    """
    faults = Faults(images.name)
    channels, height, width = recipe.input_size
    crops = np.empty((len(images), height, width, channels), np.uint8) if into is None else into
    for index in range(len(images)):
        try:
            crops[index] = _crop(images, index, recipe)
        except BadInputError as error:
            faults.add(error.message)
        if progress is not None and index % REPORT_EVERY == 0:
            progress(index, len(images))
    faults.refuse(BadInputError)
    return crops


def _crop(images: ImageSet, index: int, recipe: Preprocess) -> NDArray[np.uint8]:
    image = images.image(index)
    try:
        return crop(image, recipe)
    except BadInputError as error:
        raise BadInputError(f"{images.title(index)}: {error.message}") from error
