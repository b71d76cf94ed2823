"""Programs of torch.export in .pt2 files, opened without running a byte that they bring.

PyTorch's own reader is for files that one trusts: it unpickles without restriction where the archive says so, finds members by
names of any case, and evaluates texts as Python. So an archive is read by us: of exactly the members that a plain program has,
their bytes checked, another archive is written, and that one is what PyTorch reads. Nothing pickled is in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit import paths
from deploykit.artifact import MAX_SIZE, Axis, TensorSpec
from deploykit.errors import BadInputError, Hint, ResourceError, UnsupportedError
from deploykit.models import pt2_program
from deploykit.optional import require

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

_FORMAT, _VERSION, _ORDER = "archive_format", "archive_version", "byteorder"
_CONTAINER: Final = ".data/version"
_PROGRAM, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
#: Lists of tensors, and how the file of one of them is called.
_TENSORS: Final[Mapping[str, str]] = {
    "data/weights/model_weights_config.json": r"weight_\d+",
    "data/constants/model_constants_config.json": r"tensor_\d+",
}
#: Members that may be there and aren't needed: sample inputs, which are pickled, and texts that the caller of a program added.
_UNUSED: Final = re.compile(
    rf"{re.escape(_SAMPLES)}|extra/[^/]+|\.data/(serialization_id|version)|\.format_version|\.storage_alignment"
)
#: The format, its version, the order of bytes: members of one value.
_FIXED: Final[Mapping[str, bytes]] = {_FORMAT: b"pt2", _VERSION: b"0", _ORDER: b"little"}
#: Of the older layouts, in which weights are pickled.
_OLDER: Final = re.compile(r"serialized_\w+\.(json|pt)|version|data/(weights|constants)/[^/]+\.pt")
#: Most bytes of the program's JSON and of a list of tensors.
_MOST_TEXT: Final = 1 << 28
#: Values that a tensor may have beyond those that its file holds, by repeating them.
_MOST_REPEATED: Final = 1 << 24
_ROOT: Final = "program"


@dataclass(frozen=True)
class Program:
    """What a program takes, answers with and holds."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int


def load(path: Path) -> nn.Module:
    """Return a program as a module.

    Raises:
        BadInputError: Damaged, or more than a plain program of tensors; nothing of it was run.
    """
    return _read(path).module(check_guards=False)


def describe(path: Path) -> Program:
    """Return the interface of a program.

    Raises:
        BadInputError: As `load` does.
    """
    program = _read(path)
    ranges = {str(symbol): (int(bounds.lower), bounds.upper) for symbol, bounds in program.range_constraints.items()}
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    sides = (signature.user_inputs, signature.user_outputs)
    inputs, outputs = (tuple(_spec(path, str(name), nodes.get(str(name)), ranges) for name in side) for side in sides)
    return Program(inputs, outputs, sum(parameter.numel() for parameter in program.parameters()))


def _read(path: Path) -> ExportedProgram:
    require("torch")
    import torch

    if reason := paths.fault(path):
        raise BadInputError(f"{paths.shown(path)} {reason}")
    with tempfile.TemporaryDirectory(prefix="deploykit-pt2-") as folder:
        copy = Path(folder) / "program.pt2"
        _write_clean(path, copy)
        try:
            with _quiet():
                return torch.export.load(copy)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInputError(f"{path} is no program that this PyTorch reads: {line[:200]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from printing the traceback of what it tells by an exception as well."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _spec(path: Path, name: str, value: object, ranges: dict[str, tuple[int, Any]]) -> TensorSpec:
    import torch

    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"{path}: {name!r} is no tensor")
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(_dim(dim, ranges) for dim in value.shape))


def _dim(dim: int | torch.SymInt, ranges: dict[str, tuple[int, Any]]) -> int | Axis:
    if isinstance(dim, int):
        return dim
    lower, upper = ranges.get(str(dim), (1, MAX_SIZE))
    least = max(1, lower)
    return Axis(str(dim), least, least, min(int(upper), MAX_SIZE) if upper.is_finite else MAX_SIZE)


def _write_clean(path: Path, copy: Path) -> None:
    """Write an archive of what was checked, and of nothing else.

    Raises:
        BadInputError: No archive, or it asks for something that a plain program does not need.
        ResourceError: The copy can't be written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            texts = _texts(path, archive, members)
            tensors = [name for name in members if re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+", name)]
            with _writing(copy), zipfile.ZipFile(copy, "w") as clean:
                for name, data in {**_FIXED, **texts, _SAMPLES: b"", _CONTAINER: b"3\n"}.items():
                    clean.writestr(f"{_ROOT}/{name}", data)
                for name in tensors:
                    with (
                        archive.open(members[name]) as source,
                        clean.open(f"{_ROOT}/{name}", "w", force_zip64=True) as target,
                    ):
                        shutil.copyfileobj(source, target, 1 << 20)
    except (BadInputError, ResourceError):
        raise
    except pt2_program.UnsafeProgramError as error:
        raise _unsafe(path, str(error)) from error
    except Exception as error:  # a damaged archive leads its parsers to any error there is
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path} is no intact .pt2 archive: {line[:200]}") from error


@contextlib.contextmanager
def _writing(copy: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{copy} can't be written: {error.strerror or error}") from error


def _unsafe(path: Path, what: str) -> BadInputError:
    return BadInputError(f"{path} holds more than a program of tensors, and nothing of it was run: {what}")


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their names within the one folder of the archive."""
    infos = archive.infolist()
    if not infos or infos[0].header_offset:  # of a file that was cut, an archive within may be all that is found
        raise BadInputError(f"{path} is no intact .pt2 archive: no member is at its start")
    root = infos[0].filename.partition("/")[0]
    found: dict[str, zipfile.ZipInfo] = {}
    folded: set[str] = set()
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if _OLDER.fullmatch(name or folder):
            raise BadInputError(
                f"{path} is of an older layout, whose weights are pickled: it holds {info.filename!r}",
                Hint("torch.export.save(program, FILE)", "of a current PyTorch writes the layout that is read"),
            )
        listed = name in _FIXED or name == _PROGRAM or name in _TENSORS or _UNUSED.fullmatch(name)
        if folder != root or not (listed or re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+", name)):
            raise _unsafe(path, f"it holds {info.filename[:80]!r}")
        if info.filename.casefold() in folded:
            raise _unsafe(path, f"it holds {info.filename[:80]!r} twice, or in capitals and small letters")
        if info.compress_type != zipfile.ZIP_STORED:
            raise BadInputError(f"{path}: {info.filename[:80]!r} is compressed, which torch.export.save never does")
        folded.add(info.filename.casefold())
        found[name] = info
    return found


def _texts(path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, bytes]:
    """Return the members that are JSON, checked and written anew."""
    for name in (_FORMAT, _VERSION, _PROGRAM, *_TENSORS):
        if name not in members:
            raise BadInputError(f"{path} is no intact .pt2 archive: it holds no {name}")
    for name in _FIXED.keys() & members.keys():
        data = _text(path, archive, members[name]).strip()
        if data != _FIXED[name]:
            raise BadInputError(f"{path}: {name} is {data[:20]!r}, and {_FIXED[name]!r} is read")
    program = pt2_program.clean(json.loads(_text(path, archive, members[_PROGRAM])))
    texts = {_PROGRAM: program}
    for name, pattern in _TENSORS.items():
        folder = name.rpartition("/")[0]
        sizes = {
            member.rpartition("/")[2]: info.file_size
            for member, info in members.items()
            if member.startswith(f"{folder}/")
        }
        config = json.loads(_text(path, archive, members[name]))
        texts[name] = {
            "config": {key: _payload(path, key, one, pattern, sizes) for key, one in config["config"].items()}
        }
    return {name: json.dumps(value).encode() for name, value in texts.items()}


def _text(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MOST_TEXT:
        raise BadInputError(f"{path}: {info.filename[:80]!r} has {info.file_size:,} bytes of text")
    return archive.read(info)


def _payload(
    path: Path, name: str, payload: Mapping[str, Any], pattern: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return one entry of a list of tensors: never a pickled one, nor one of far more values than its file holds."""
    file, meta = str(payload["path_name"]), payload["tensor_meta"]
    if payload["use_pickle"] is not False or not re.fullmatch(pattern, file):
        raise _unsafe(path, f"{name!r} is pickled")
    if file not in sizes:
        raise BadInputError(f"{path} is no intact .pt2 archive: it holds no {file}")
    pt2_program.clean({"name": name, "meta": meta})
    count = math.prod(int(size["as_int"]) for size in meta["sizes"])
    if count > max(sizes[file], _MOST_REPEATED):
        raise BadInputError(f"{path}: {name!r} claims {count:,} values; its file holds {sizes[file]:,} bytes")
    return {"path_name": file, "is_param": payload["is_param"] is True, "use_pickle": False, "tensor_meta": meta}
