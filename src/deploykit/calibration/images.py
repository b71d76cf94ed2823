"""Calibration images: which of a folder, an array or the rendered set are taken. They need no labels."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit import paths, serde
from deploykit.arrays import SUFFIX, Header, check_archive
from deploykit.artifact import Preprocess, sha256_of
from deploykit.data import images, rendered
from deploykit.data.faults import Faults
from deploykit.data.imageset import NATIVE_SIZE, RENDERED, ImageSet
from deploykit.data.listing import children, is_image, unreachable
from deploykit.errors import BadInputError, DeploykitError, Hint, ResourceError, UsageError

#: The rendered images to calibrate on; the other splits are what models were trained with and are judged on.
RENDERED_CALIBRATION: Final = f"{RENDERED}:calib"
#: Indices of it that are chosen from: those below are left to golden inputs.
RENDERED_POOL: Final = range(1000, 11000)
ARRAY_SUFFIXES: Final = (".npy", ".npz")
#: The array that is taken from an .npz with several, unless one is called as the input is.
ARRAY_NAME: Final = "images"
#: Bytes of an array in an .npz, which is held in memory whole; an .npy of any size is mapped.
MAX_BYTES: Final = 1 << 32


@dataclass(frozen=True)
class Choice:
    """Which images of a set are taken.

    Attributes:
        seed: What the choice was drawn from.
        available: Images that there were to choose from.
        indices: The chosen ones, ascending.
    """

    seed: int
    available: int
    indices: tuple[int, ...]

    @classmethod
    def of(cls, available: int, count: int, seed: int, after: int = 0) -> Choice:
        """Choose `count` of `available` images without replacement, or all of them where there are no more.

        Every image draws 64 raw bits of PCG64, whose stream numpy promises to keep, and those with the smallest are taken:
        the same on every machine, and a smaller choice is part of a larger one. Those that come `after` others of the
        same seed share no image with a choice of so many.

        Raises:
            UsageError: `count` is below 1, or `seed` below 0.
        """
        if count < 1:
            raise UsageError(f"--calib-size {count}: at least one image must be chosen")
        if seed < 0:
            raise UsageError(f"--calib-seed {seed}: a seed is 0 or more")
        keys = np.asarray(np.random.PCG64(seed).random_raw(available), np.uint64)
        first = np.sort(np.argsort(keys, kind="stable")[after : after + count])
        return cls(seed, available, tuple(first.tolist()))


class CalibrationImages(ImageSet):
    """Chosen images, which show no labels."""

    def __init__(self, name: str, choice: Choice) -> None:
        self.name = name
        self.choice = choice
        self.labels = ()

    def __len__(self) -> int:
        return len(self.choice.indices)


class ChosenFiles(CalibrationImages):
    """Image files of the user."""

    def __init__(self, name: str, paths: tuple[Path, ...], choice: Choice) -> None:
        super().__init__(name, choice)
        self.paths = tuple(paths[index] for index in choice.indices)

    @property
    def digest(self) -> str:
        """Hash of every chosen file's bytes, in order, and the seed.

        Raises:
            BadInputError: Files may not be read; all are named.
        """
        faults, hashes = Faults(self.name), []
        for index, path in enumerate(self.paths):
            try:
                hashes.append(sha256_of(path))
            except OSError as error:
                faults.add(f"{self.title(index)} can't be read: {error.strerror}")
        faults.refuse(BadInputError)
        return serde.digest(["files", self.choice.seed, hashes])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index`."""
        return images.decode(self.paths[index])

    def title(self, index: int) -> str:
        """Return the path of image `index` within the folder."""
        return str(self.paths[index].relative_to(self.name))


class ChosenRendered(CalibrationImages):
    """Images of the package's own set, rendered."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(RENDERED_CALIBRATION, choice)

    @property
    def digest(self) -> str:
        """Hash of what determines the pixels: version, size, indices; and the seed."""
        which = [RENDERED_POOL[index] for index in self.choice.indices]
        return serde.digest([RENDERED_CALIBRATION, rendered.VERSION, NATIVE_SIZE, self.choice.seed, which])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Render image `index`."""
        split = RENDERED_CALIBRATION.partition(":")[2]
        return rendered.render(split, RENDERED_POOL[self.choice.indices[index]], NATIVE_SIZE)[0]

    def title(self, index: int) -> str:
        """Return the name of the set and the index in it."""
        return f"{self.name} {RENDERED_POOL[self.choice.indices[index]]}"


class ChosenRows(CalibrationImages):
    """Images of an array, uint8 RGB [N, height, width, 3]."""

    def __init__(self, name: str, array: NDArray[np.uint8], choice: Choice) -> None:
        super().__init__(name, choice)
        self._array = array

    @property
    def digest(self) -> str:
        """Hash of the chosen images, in order, and the seed."""
        return _rows_digest(self._array, self.choice)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`."""
        return np.array(self._array[self.choice.indices[index]])

    def title(self, index: int) -> str:
        """Return the index of the image in the array."""
        return f"image {self.choice.indices[index]}"


class CalibrationInputs:
    """Chosen inputs that were prepared already: float32 [N, channels, height, width].

    Attributes:
        name: What the user typed.
        choice: Which of the array's rows are taken.
    """

    def __init__(self, name: str, array: NDArray[np.float32], choice: Choice) -> None:
        self.name = name
        self.choice = choice
        self._array = array

    def __len__(self) -> int:
        return len(self.choice.indices)

    @property
    def digest(self) -> str:
        """Hash of the chosen inputs, in order, and the seed."""
        return _rows_digest(self._array, self.choice)

    def row(self, index: int) -> NDArray[np.float32]:
        """Return input `index`, float32 [channels, height, width]."""
        return np.array(self._array[self.choice.indices[index]])

    def title(self, index: int) -> str:
        """Return the index of the input in the array."""
        return f"image {self.choice.indices[index]}"


CalibrationSet = CalibrationImages | CalibrationInputs


def _rows_digest(array: NDArray[Any], choice: Choice) -> str:
    hashes = [hashlib.sha256(array[index].tobytes()).hexdigest() for index in choice.indices]
    return serde.digest(["rows", str(array.dtype), list(array.shape[1:]), choice.seed, hashes])


def open_calibration(
    name: str, count: int, seed: int, recipe: Preprocess, input_name: str = ARRAY_NAME, after: int = 0
) -> CalibrationSet:
    """Open a calibration set and choose `count` of its images.

    Args:
        name: What the user typed: a folder, an array of images (uint8 [N, height, width, 3]) or of prepared inputs (float32
            [N, channels, height, width]) as .npy or .npz, or "rendered:calib".
        count: How many images are taken; where there are fewer, all are.
        seed: What the choice is drawn from.
        recipe: Its input size is what prepared inputs must have.
        input_name: Of the model's input: an array of an .npz may be called so.
        after: How many of the same seed are left out: what a choice of so many takes.

    Raises:
        UsageError: No such set, files in it that are no images, or an array of another shape or dtype.
        BadInputError: It holds no images, is damaged, or can't be read.
        ResourceError: There is no memory for an array.
    """
    if name.startswith(f"{RENDERED}:"):
        return _open_rendered(name, Choice.of(len(RENDERED_POOL), count, seed, after))
    path = Path(name)
    reason = paths.fault(path)
    try:
        if reason == "is a folder":
            files = image_files(path)
            return ChosenFiles(name, files, Choice.of(len(files), count, seed, after))
        if not reason and path.suffix.lower() in ARRAY_SUFFIXES:
            array = load_array(path, recipe.input_size, input_name)
            choice = Choice.of(len(array), count, seed, after)
            return (
                ChosenRows(name, array, choice) if array.dtype == np.uint8 else CalibrationInputs(name, array, choice)
            )
    except OSError as error:
        raise BadInputError(f"{error.filename or path} can't be read: {error.strerror}") from error
    wanted = f"neither a folder of images nor an array ({', '.join(ARRAY_SUFFIXES)})"
    raise UsageError(f"{paths.shown(name)!r} {reason or f'is {wanted}'}")


def _open_rendered(name: str, choice: Choice) -> ChosenRendered:
    if name != RENDERED_CALIBRATION:
        raise UsageError(
            f"{name!r} is not for calibration",
            Hint(f"--calib {RENDERED_CALIBRATION}", "is the split that models are neither trained nor judged on"),
        )
    return ChosenRendered(choice)


def image_files(root: Path) -> tuple[Path, ...]:
    """List the images in `root` and all folders in it, in order of their paths.

    What is hidden or litter is left out; links are followed.

    Raises:
        UsageError: Files that are no images, or links that lead nowhere or in a circle. All are told at once.
        BadInputError: No images at all.
        OSError: A folder may not be read.
    """
    faults, found = Faults(str(root)), list[Path]()
    pending = [(root, frozenset({root.resolve()}))]
    while pending:
        folder, above = pending.pop()
        for path in children(folder):
            if not path.is_dir():
                wrong = unreachable(path) if is_image(path) else "is no image file"
                found += [] if wrong else [path]
            else:
                place = path.resolve()
                wrong = "is a link to a folder that it lies in" if place in above else ""
                pending += [] if wrong else [(path, above | {place})]
            if wrong:
                faults.add(f"{path.relative_to(root)} {wrong}")
    suffixes = ", ".join(images.SUFFIXES)
    faults.refuse(UsageError, Hint("--calib DIR", f"a folder that holds only {suffixes}"))
    if not found:
        raise BadInputError(f"{root} holds no images: expected {suffixes} in it or in folders in it")
    return tuple(sorted(found, key=lambda path: path.relative_to(root).parts))


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _check(header: Header, what: str, input_size: tuple[int, ...], size: int) -> None:
    """Refuse an array that holds neither images nor inputs, or that is not of `size` bytes with its header."""
    dtype, shape = header.dtype, header.shape
    told = f"{what} is {dtype} {list(shape)}"
    wanted = f"uint8 [N, height, width, 3] or, prepared, float32 [N, {', '.join(map(str, input_size))}]"
    if dtype == np.uint8:
        fits = len(shape) == 4 and shape[3] == 3 and min(shape[1:]) > 0
    else:
        fits = dtype == np.float32 and shape[1:] == tuple(input_size)
    if not fits:
        raise UsageError(f"{told}; calibration takes {wanted}", *_hints(header))
    if header.nbytes != size - header.offset:
        raise BadInputError(f"{told}, which is {header.nbytes:,} bytes of values; it holds {size - header.offset:,}")
    if shape[0] == 0:
        raise BadInputError(f"{what} holds no images")


def _hints(header: Header) -> tuple[Hint, ...]:
    if header.dtype == np.uint8 and header.shape[1:2] == (3,):
        return (Hint("array.transpose(0, 2, 3, 1)", "puts the channels last"),)
    if header.dtype == np.float64:
        return (Hint("array.astype(np.float32)", "is what inputs are"),)
    return ()


def load_array(path: Path, input_size: tuple[int, ...], name: str = ARRAY_NAME) -> NDArray[Any]:
    """Open an .npy, mapped, or the one array of an .npz, or the one with a name or "images". Nothing is ever unpickled.

    Args:
        path: The file.
        input_size: (channels, height, width) of the model's input.
        name: Of the array in an .npz with several.

    Returns:
        uint8 [N, height, width, 3] or float32 [N, channels, height, width], at least one row.

    Raises:
        UsageError: Another shape or dtype, or several arrays of which none is called "images".
        BadInputError: Damaged, empty, or too large.
        ResourceError: There is no memory for it.
        OSError: It may not be read.
    """
    is_archive = path.suffix.lower() == ARRAY_SUFFIXES[1]
    with _translated(path):
        return _load_archived(path, input_size, name) if is_archive else _map(path, input_size)


def _map(path: Path, input_size: tuple[int, ...]) -> NDArray[Any]:
    with path.open("rb") as stream:
        header = Header.read(stream)
    _check(header, str(path), input_size, path.stat().st_size)
    order: Any = "F" if header.is_fortran else "C"
    return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def _load_archived(path: Path, input_size: tuple[int, ...], name: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        check_archive(path, archive)
        info = _member(path, archive, name)
        with archive.open(info) as stream:
            header = Header.read(stream)
        _check(header, f"{path}: {info.filename}", input_size, info.file_size)
        if header.nbytes > MAX_BYTES:
            told = f"{path}: {info.filename} is {header.nbytes:,} bytes; at most {MAX_BYTES:,} are unpacked into memory"
            raise BadInputError(told, Hint("np.save", "writes an .npy, which may be of any size"))
        data = archive.read(info)  # checks the checksum, which numpy's own reading of a part does not
    return header.array(data)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Return the array that is meant."""
    infos = archive.infolist()
    names = (f"{name}{SUFFIX}", f"{ARRAY_NAME}{SUFFIX}")
    named = sorted((info for info in infos if info.filename in names), key=lambda info: names.index(info.filename))[:1]
    meant = infos if len(infos) == 1 else named
    if len(meant) != 1 or not meant[0].filename.endswith(SUFFIX):
        found = ", ".join(info.filename.removesuffix(SUFFIX) for info in infos[:10]) or "none"
        wanted = " or ".join(map(repr, dict.fromkeys((name, ARRAY_NAME))))
        raise UsageError(f"{path} has {len(infos)} arrays ({found}); one is taken, or the one called {wanted}")
    return meant[0]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (DeploykitError, OSError):
        raise
    except MemoryError as error:
        raise ResourceError(f"{path}: not enough memory to hold it") from error
    except Exception as error:  # a damaged file leads the parsers of numpy and of archives to any error there is
        raise BadInputError(f"{path} is no whole array: {str(error) or type(error).__name__}") from error
