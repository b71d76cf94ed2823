"""Which files of the user show which class: a folder per class, or a list as CSV."""

from __future__ import annotations

import csv
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from deploykit import paths
from deploykit.data import images
from deploykit.data.classnames import ClassIndices, ClassNames, classes_by_name_or_index
from deploykit.data.faults import Faults
from deploykit.errors import BadInputError, Hint, UsageError

CSV_SUFFIXES = (".csv", ".tsv")
IMAGE_COLUMNS = ("image", "path", "file", "filename")
LABEL_COLUMNS = ("label", "class")
DELIMITERS = ",;\t"
#: Characters of a header that the delimiter is guessed from.
SNIFFED = 1000
#: What desktops leave in folders unasked, in lower case; hidden files are litter by their dot.
LITTER = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Labelled:
    """An image file and the index of its class."""

    path: Path
    label: int


def labelled_files(path: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the images of a folder or a CSV of the user.

    Raises:
        UsageError: Neither of them, or it doesn't fit the model; see `from_folder` and `from_csv`.
        BadInputError: It holds no images, or can't be read.
    """
    reason = paths.fault(path)
    try:
        if reason == "is a folder":
            return from_folder(path, labels)
        if not reason and path.suffix.lower() in CSV_SUFFIXES:
            return from_csv(path, labels)
    except OSError as error:
        raise BadInputError(f"{error.filename or path} can't be read: {error.strerror}") from error
    what = f"is neither a folder nor a list of images ({', '.join(CSV_SUFFIXES)})"
    raise UsageError(f"{paths.shown(path)} {reason or what}")


def from_folder(root: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the images in the class folders of `root`, in order of class and file name, whatever the folders are called.

    Files in `root` itself that are no images, such as a README, are not looked at.

    Args:
        root: Holds one folder per class; `ClassNames` says how folders may be called.
        labels: The model's classes, by index.

    Raises:
        UsageError: A folder that is no class or the second of a class; in a class folder, a file that is no image or
            another folder; images that lie outside the class folders. All are told at once.
        BadInputError: No images at all.
        OSError: A folder may not be read.
    """
    faults = Faults(str(root))
    classes, folders = ClassNames(labels), list[tuple[int, Path]]()
    for child in children(root):
        if child.is_dir():
            _take_class(child, classes, folders, faults)
        elif is_image(child):
            faults.add(f"{child.name} lies outside the class folders")
        elif child.is_symlink() and not child.exists():
            faults.add(f"{child.name} is a link that leads nowhere")
    found = []
    for label, folder in sorted(folders):
        for path in children(folder):
            wrong = _misplaced(path)
            if wrong:
                faults.add(f"{path.relative_to(root)} {wrong}")
            else:
                found.append(Labelled(path, label))
    suffixes = ", ".join(images.SUFFIXES)
    faults.refuse(
        UsageError, Hint("--data FILE.csv", f"to list images where they lie; class folders hold only {suffixes}")
    )
    if not found:
        raise BadInputError(f"{root} holds no images: expected one folder per class with {suffixes}")
    return tuple(found)


def _take_class(folder: Path, classes: ClassNames, folders: list[tuple[int, Path]], faults: Faults) -> None:
    """Add `folder` with the index of its class."""
    meant = classes.find(folder.name)
    if len(meant) != 1:
        faults.add(lambda: f"folder {classes.complaint(folder.name)}")
        return
    for label, other in folders:
        if label == meant[0]:
            faults.add(f"folders {other.name!r} and {folder.name!r} are the same class")
    folders.append((meant[0], folder))


def _misplaced(path: Path) -> str:
    """Return what is wrong with something in a class folder; "" where it is an image file."""
    if path.is_dir():
        return "is a folder within a class"
    if not is_image(path):
        return "is no image file"
    return unreachable(path)


def children(folder: Path) -> list[Path]:
    """Return what lies in `folder` in order of names, without what is hidden or litter."""
    names = sorted(path.name for path in folder.iterdir())
    return [folder / name for name in names if not name.startswith(".") and name.lower() not in LITTER]


def is_image(path: Path) -> bool:
    """Tell whether a file is called as image files are."""
    return path.suffix.lower() in images.SUFFIXES


def unreachable(path: Path) -> str:
    """Return why `path` is no regular file, which alone is sure to end; "" where it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except ValueError as error:
        return f"can't be read: {error}"
    return "" if stat.S_ISREG(mode) else "is no file"


@dataclass(frozen=True)
class _Row:
    """A line of the list."""

    line: int
    image: str
    label: str


def from_csv(path: Path, labels: tuple[str, ...]) -> tuple[Labelled, ...]:
    """List the images that a CSV names, in its order.

    The first line is a header with one image column and one label column; other columns are not looked at. Paths are relative
    to the CSV's folder. They may be absolute or lead out of it: it is the user's own list, files are only hashed and decoded,
    and a bundle takes no bytes of them.

    Args:
        path: UTF-8 text, its fields parted by commas, semicolons or tabs.
        labels: The model's classes, by index. The list names them as `ClassNames` says, or gives indices where all its labels
            are integers and no class is called by one.

    Raises:
        UsageError: No such column, or a label that is no class.
        BadInputError: No text, no CSV, an incomplete or a repeated line, no such image, or no images at all.
        OSError: The list may not be read.
    """
    rows = _read(path)
    if not rows:
        raise BadInputError(f"{path} lists no images")
    indices = _indices(path, rows, labels)
    files = _files(path, rows, indices)
    return tuple(Labelled(file, indices[row.label]) for file, row in zip(files, rows, strict=True))


def _read(path: Path) -> list[_Row]:
    """Return the lines that say something, blank ones left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _rows(path, stream)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is no UTF-8 text: {error}", Hint("CSV UTF-8", "is what to save it as")) from error


def _rows(path: Path, stream: TextIO) -> list[_Row]:
    reader = csv.reader(stream, delimiter=_delimiter(stream), strict=True)
    try:
        lines = [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except csv.Error as error:
        raise BadInputError(f"{path} line {reader.line_num}: {error}") from error
    if not lines:
        raise BadInputError(f"{path} is empty")
    header = lines[0][1]
    image, label = _columns(path, header)
    faults, rows = Faults(str(path)), []
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            faults.add(f"line {line} has {len(cells)} fields, the header {len(header)}")
        elif not cells[image] or not cells[label]:
            faults.add(f"line {line} names no {'class' if cells[image] else 'image'}")
        else:
            rows.append(_Row(line, cells[image], cells[label]))
    faults.refuse(BadInputError, Hint('"tench, Tinca tinca"', "in quotes is one field"))
    return rows


def _delimiter(stream: TextIO) -> str:
    """Return what parts the fields of the first line that isn't blank, and go back to the start."""
    header = next((line for line in stream if line.strip()), "")
    stream.seek(0)
    try:
        return csv.Sniffer().sniff(header[:SNIFFED], DELIMITERS).delimiter
    except csv.Error:
        return DELIMITERS[0]


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int]:
    """Return the places of the image column and of the label column."""
    places, missing = [], []
    for kind, accepted in (("image", IMAGE_COLUMNS), ("label", LABEL_COLUMNS)):
        found = [place for place, name in enumerate(header) if name.casefold() in accepted]
        if len(found) > 1:
            columns = ", ".join(repr(header[place]) for place in found)
            raise UsageError(f"{path}: its header has {len(found)} {kind} columns, {columns}: rename what is none")
        if not found:
            missing.append(f"no {kind} column ({', '.join(accepted)})")
        places += found
    if missing:
        raise UsageError(f"{path}: its header {', '.join(map(repr, header))} has {' and '.join(missing)}")
    return places[0], places[1]


def _indices(path: Path, rows: Sequence[_Row], labels: tuple[str, ...]) -> dict[str, int]:
    """Return the class that each label in the list means."""
    times = Counter(row.label for row in rows)
    first = {row.label: row.line for row in reversed(rows)}
    classes = classes_by_name_or_index(times, labels)
    faults, indices = Faults(str(path)), dict[str, int]()
    for label in times:
        found = classes.find(label)
        if len(found) == 1:
            indices[label] = found[0]
        else:
            faults.add(partial(_stranger, label, first[label], times[label], classes))
    faults.refuse(UsageError)
    return indices


def _stranger(label: str, line: int, times: int, classes: ClassNames | ClassIndices) -> str:
    more = f" (and in {times - 1} more lines)" if times > 1 else ""
    return f"line {line}: {classes.complaint(label)}{more}"


def _files(path: Path, rows: Sequence[_Row], indices: Mapping[str, int]) -> list[Path]:
    """Return the file of each row."""
    faults, files, seen = Faults(str(path)), [], dict[Path, _Row]()
    for row in rows:
        file = path.parent / row.image
        files.append(file)
        wrong = unreachable(file)
        if wrong:
            faults.add(f"line {row.line}: {row.image} {wrong}")
            continue
        earlier = seen.setdefault(file.resolve(), row)
        if earlier is not row and indices[earlier.label] == indices[row.label]:
            faults.add(f"line {row.line}: {row.image} is in line {earlier.line} already, and would count twice")
        elif earlier is not row:
            faults.add(f"line {row.line}: {row.image} is {row.label!r}, and {earlier.label!r} in line {earlier.line}")
    faults.refuse(BadInputError)
    return files
