"""Read the checkpoint that a user really has, without running a byte of it.

safetensors can hold nothing but tensors. PyTorch's own formats are pickles: they are read by the restricted unpickler
(`weights_only=True`), which builds tensors and plain containers, and calls nothing else. Options and metrics that training
scripts save beside them are stepped over: numpy's own classes crash the process on made-up state. Of options, plain values are
kept: they may say what images the network was trained on.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploykit import paths
from deploykit.arrays import check_archive, unpacked_limit
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.models import dtypes, shards
from deploykit.models.fit import SHOWN, State, check_finite, without_prefixes
from deploykit.optional import require

SAFETENSORS: Final = ".safetensors"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".tar", ".bin", ".ckpt")
#: How an archive begins.
ARCHIVE: Final = b"PK\x03\x04"
#: Where training scripts keep averaged weights, which are what they evaluate, and where the others, best first.
AVERAGED: Final = ("state_dict_ema", "model_ema", "ema")
KEYS: Final = (*AVERAGED, "state_dict", "model", "module", "net")
#: Where they keep their options.
OPTIONS: Final = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
NAMESPACE: Final = "argparse.Namespace"
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
#: What training scripts save beside tensors: paths, the numbers of a best metric. None of it is read.
IGNORED = (
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
#: What the restricted unpickler raises, by what a damaged file makes it stumble over.
UNREADABLE = (
    *(pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, ArithmeticError, MemoryError, SystemError, struct.error),
)
#: Lines of its messages that say nothing of the file.
ADVICE = re.compile(r"Weights only load failed|Please file an issue|Check the documentation|\t")
#: What wrappers that average count beside the weights.
COUNTERS = ("n_averaged",)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        state: Names without wrappers' prefixes, to tensors on the CPU; their values may be anything, NaN too.
        notes: What of it was taken from where, where that isn't plain.
        options: Of the script that saved it: names to numbers, texts and lists of numbers.
    """

    state: State
    notes: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


def read_checkpoint(path: Path, key: str | None = None) -> State:
    """Read a state dict whose values are finite.

    Args:
        path: .safetensors, a PyTorch checkpoint, or an index of several such files.
        key: Where in a PyTorch checkpoint the weights are; None looks where training scripts keep them.

    Returns:
        Names without wrappers' prefixes, to tensors on the CPU.

    Raises:
        UsageError: No such file, an unknown ending, or no such key.
        BadInputError: Truncated, garbage, holding code, holding no weights, or holding NaN.
    """
    state = read(path, key).state
    check_finite(state, path)
    return state


def read(path: Path, key: str | None = None) -> Checkpoint:
    """Read all that a checkpoint says of a network. Takes and raises what `read_checkpoint` does, NaN apart."""
    require("torch", "safetensors")
    paths.check_file(path)
    if shards.is_index(path):
        return _read_shards(path, key)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: weights are read from {', '.join(SUFFIXES)}")
    if path.suffix == SAFETENSORS:
        if key is not None:
            raise UsageError(f"--checkpoint-key {key}: a safetensors file has no keys, it is one state dict")
        return Checkpoint(_checked(without_prefixes(_read_safetensors(path)), path))
    loaded = _read_pickle(path)
    found, notes = _select(loaded, key, path)
    named = {name: value for name, value in found.items() if name not in COUNTERS}
    return Checkpoint(_checked(without_prefixes(named), path), notes, _options(loaded))


def _read_shards(index: Path, key: str | None) -> Checkpoint:
    """Read the files that an index names; each must hold what the index says, and may hold nothing else.

    Raises:
        BadInputError: One is missing or damaged, or holds other tensors.
    """
    if key is not None:
        raise UsageError(f"--checkpoint-key {key}: {index.name} has no keys, it is one state dict")
    shards.parts_of(index)
    whole: State = {}
    for name, tensors in shards.shards_of(index).items():
        path = index.parent / name
        found = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_pickle(path)
        if not isinstance(found, Mapping) or set(found) != set(tensors):
            raise BadInputError(f"{path} holds other tensors than {index.name} says")
        whole |= _checked(found, path)
    return Checkpoint(without_prefixes(whole))


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    import safetensors
    from safetensors.torch import load_file

    try:
        loaded: Mapping[str, Any] = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise BadInputError(f"{path} is no safetensors file: {str(error).splitlines()[0]}") from error
    return loaded


def _read_pickle(path: Path) -> object:
    import torch

    _check_unpacked(path)
    try:
        stand_ins: list[Any] = [(_Ignored, name) for name in IGNORED] + [(_Namespace, NAMESPACE)]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and sparse tensors: what can't be read is refused
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise _refused(path, error) from error
    return loaded


def _check_unpacked(path: Path) -> None:
    """Refuse an archive that would take far more memory than it has bytes. What is no archive has its tensors as they are.

    Raises:
        BadInputError: It would, or it is damaged.
    """
    with path.open("rb") as stream:
        is_archive = stream.read(len(ARCHIVE)) == ARCHIVE
    if not is_archive:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(path, archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _refused(path, error) from error


class _Ignored:
    """Stands in for a class of `IGNORED`: takes whatever it is built from, and keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Namespace:
    """Stands in for a script's options: keeps them as the data that they are."""

    values: Mapping[object, object] = {}

    def __setstate__(self, state: object) -> None:
        self.values = state if isinstance(state, dict) else {}


def _refused(path: Path, error: Exception) -> BadInputError:
    """Say what the restricted unpickler found, without its advice to read the file unrestricted."""
    hint = Hint("--weights FILE.safetensors", "save the state dict with safetensors.torch.save_file")
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return BadInputError(f"{path} holds more than weights, and nothing of it was run: it asks for {asked[1]}", hint)
    lines = [line for line in str(error).splitlines() if line.strip() and not ADVICE.match(line)]
    told = lines[0].split(". ")[0].strip()[:200] if lines else type(error).__name__
    return BadInputError(f"{path} is no checkpoint that PyTorch reads: {told}", hint)


def _select(loaded: object, key: str | None, path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Find the state dict in what a training script saved; return it with what is to be told."""
    if not isinstance(loaded, Mapping):
        raise BadInputError(f"{path} holds a {type(loaded).__name__}, no state dict")
    if key is not None:
        return _asked(loaded, key, path), ()
    found = {place: state for place in KEYS if (state := _state_at(loaded, place))}
    if not found:
        places = [place for place in KEYS if isinstance(loaded.get(place), Mapping) and loaded[place]]
        return (loaded[places[0]] if places else loaded), ()
    first, *others = found
    odd = [place for place in AVERAGED if loaded.get(place) is not None and place not in found]
    notes = tuple(f"{place} holds no state dict: weights are those of {first}" for place in odd)
    for other in others if first in AVERAGED else ():
        whole, lacking = _completed(found[first], found[other])
        if lacking:
            told = f"{', '.join(lacking[:SHOWN])}{', …' if len(lacking) > SHOWN else ''}"
            return whole, (*notes, f"{first} averages parameters alone; from {other}: {told}")
    return found[first], notes


def _state_at(loaded: Mapping[Any, Any], place: str) -> Mapping[Any, Any] | None:
    """Return the state dict at a key, or, where averages lie, at a key within it, as wrappers save them."""
    value = loaded.get(place)
    wrapped = value if place in AVERAGED and isinstance(value, Mapping) else {}
    inside = [wrapped.get(key) for key in (*KEYS, "shadow")]
    candidates = [each for each in (value, *inside) if isinstance(each, Mapping)]
    return next((each for each in candidates if any(map(_is_tensor, each.values()))), None)


def _completed(averaged: Mapping[Any, Any], whole: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[str]]:
    """Return averages with what they lack of a whole state dict, and the names of that; none where they aren't part of it."""
    averages, all_ = (
        without_prefixes({name: value for name, value in each.items() if name not in COUNTERS})
        for each in (averaged, whole)
    )
    lacking = [str(name) for name in all_ if name not in averages]
    if not averages.keys() <= all_.keys():
        return averaged, []
    return {name: averages.get(name, value) for name, value in all_.items()}, lacking


def _asked(loaded: Mapping[Any, Any], key: str, path: Path) -> Mapping[Any, Any]:
    """Return what is at a key, or below a prefix of names.

    Raises:
        UsageError: Nothing is.
    """
    if isinstance(loaded.get(key), Mapping):
        found: Mapping[Any, Any] = loaded[key]
        return found
    state, _ = _select(loaded, None, path)
    names = without_prefixes(state)
    below = {str(name)[len(key) + 1 :]: value for name, value in names.items() if str(name).startswith(f"{key}.")}
    if not below:
        raise UsageError(f"{path} has no weights at {key!r}; its keys: {', '.join(map(str, loaded))}"[:400])
    return below


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _options(loaded: object) -> dict[str, object]:
    """Return the plain values among the options that a training script saved."""
    found: dict[str, object] = {}
    saved = loaded if isinstance(loaded, Mapping) else {}
    for place in OPTIONS:
        kept = saved.get(place)
        values = kept.values if isinstance(kept, _Namespace) else kept
        if isinstance(values, Mapping):
            found |= {name: value for name, value in values.items() if isinstance(name, str) and _is_option(value)}
    return found


def _is_option(value: object) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 4 and all(isinstance(one, int | float) for one in value)
    return isinstance(value, int | float | str)


def _checked(state: Mapping[Any, Any], path: Path) -> State:
    """Return tensors in types that networks compute with.

    Raises:
        BadInputError: Something else is among them, or they are of a type that isn't read, or repeat a few bytes endlessly.
    """
    strangers = [str(name) for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if strangers or not state:
        what = f"{strangers[0]!r} is no plain tensor" if strangers else "it is empty"
        inside = [str(name) for name, value in state.items() if isinstance(value, Mapping)]
        told = f"says where it is: {', '.join(inside)}"[:100] if inside else "says where it is"
        raise BadInputError(f"{path} holds no state dict: {what}", Hint("--checkpoint-key KEY", told))
    total, most = sum(value.numel() * value.element_size() for value in state.values()), unpacked_limit(path)
    if total > most:
        raise BadInputError(
            f"{path} holds {total:,} bytes of weights; at most {most:,} are read from a file of its size"
        )
    wide = {name: dtypes.widened(value) for name, value in state.items()}
    odd = [f"{name} ({dtypes.name_of(state[name])})" for name, value in wide.items() if value is None]
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise BadInputError(
            f"{path} holds tensors of types that no network's weights have: {', '.join(odd[:SHOWN])}{more}",
            Hint("--weights FILE", "takes weights as they were before they were packed: float32, float16 or bfloat16"),
        )
    return {name: value for name, value in wide.items() if value is not None}


def _is_plain(value: object) -> bool:
    """Tell whether it is a tensor with a value per place: not sparse, not quantized, not without memory."""
    import torch

    if not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta
