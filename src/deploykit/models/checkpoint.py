"""Read the checkpoint that a user really has, without running a byte of it.

safetensors can hold nothing but tensors. PyTorch's own formats are pickles: they are read by the restricted unpickler
(`weights_only=True`), which builds tensors and plain containers, and calls nothing else. Options and metrics that training
scripts save beside them are stepped over: numpy's own classes crash the process on made-up state.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit import paths
from deploykit.arrays import check_archive, unpacked_limit
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.optional import require

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt")
#: How an archive begins.
ARCHIVE: Final = b"PK\x03\x04"
#: Where training scripts keep the weights, best first: averaged weights are what they evaluate.
KEYS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
#: What training scripts save beside tensors: options, paths, the numbers of a best metric. None of it is read.
IGNORED = (
    "argparse.Namespace",
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
#: What wrappers put before every name.
PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")


def read_checkpoint(path: Path, key: str | None = None) -> State:
    """Read a state dict.

    Args:
        path: .safetensors, or a PyTorch checkpoint.
        key: Where in a PyTorch checkpoint the weights are; None looks where training scripts keep them.

    Returns:
        Names without wrappers' prefixes, to tensors on the CPU.

    Raises:
        UsageError: No such file, an unknown ending, or no such key.
        BadInputError: Truncated, garbage, holding code, holding no weights, or holding NaN.
    """
    require("torch", "safetensors")
    paths.check_file(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: weights are read from {', '.join(SUFFIXES)}")
    if path.suffix == ".safetensors":
        if key is not None:
            raise UsageError(f"--checkpoint-key {key}: a safetensors file has no keys, it is one state dict")
        state: Mapping[str, Any] = _read_safetensors(path)
    else:
        found = _select(_read_pickle(path), key, path)
        state = {name: value for name, value in found.items() if name not in COUNTERS}
    return _checked(_without_prefixes(state), path)


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
        stand_ins: list[Any] = [(_Ignored, name) for name in IGNORED]
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


def _refused(path: Path, error: Exception) -> BadInputError:
    """Say what the restricted unpickler found, without its advice to read the file unrestricted."""
    hint = Hint("--weights FILE.safetensors", "save the state dict with safetensors.torch.save_file")
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return BadInputError(f"{path} holds more than weights, and nothing of it was run: it asks for {asked[1]}", hint)
    lines = [line for line in str(error).splitlines() if line.strip() and not ADVICE.match(line)]
    told = lines[0].split(". ")[0].strip()[:200] if lines else type(error).__name__
    return BadInputError(f"{path} is no checkpoint that PyTorch reads: {told}", hint)


def _select(loaded: object, key: str | None, path: Path) -> Mapping[str, Any]:
    """Find the state dict in what a training script saved."""
    if not isinstance(loaded, Mapping):
        raise BadInputError(f"{path} holds a {type(loaded).__name__}, no state dict")
    if key is not None:
        if not isinstance(loaded.get(key), Mapping):
            raise UsageError(f"{path} has no weights at {key!r}; its keys: {', '.join(map(str, loaded))}"[:400])
        found: Mapping[str, Any] = loaded[key]
        return found
    for known in KEYS:
        if isinstance(loaded.get(known), Mapping) and loaded[known]:
            return loaded[known]  # type: ignore[no-any-return]
    return loaded


def _without_prefixes(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Remove what wrappers put before all names, one after another."""
    names = dict(state)
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if names and all(str(name).startswith(prefix) for name in names):
                names = {str(name).removeprefix(prefix): value for name, value in names.items()}
                changed = True
    return names


def _checked(state: Mapping[Any, Any], path: Path) -> State:
    import torch

    strangers = [str(name) for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if strangers or not state:
        what = f"{strangers[0]!r} is no plain tensor" if strangers else "it is empty"
        raise BadInputError(f"{path} holds no state dict: {what}", Hint("--checkpoint-key KEY", "says where it is"))
    total, most = sum(value.numel() * value.element_size() for value in state.values()), unpacked_limit(path)
    if total > most:
        raise BadInputError(
            f"{path} holds {total:,} bytes of weights; at most {most:,} are read from a file of its size"
        )
    for name, value in state.items():
        if (value.is_floating_point() or value.is_complex()) and not bool(torch.isfinite(value).all()):
            raise BadInputError(f"{path}: {name} holds NaN or infinity")
    return dict(state)


def _is_plain(value: object) -> bool:
    """Tell whether it is a tensor with a value per place: not sparse, not quantized, not without memory."""
    import torch

    if not isinstance(value, torch.Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


#: What to do about weights of another architecture.
FIT: Final = Hint("--num-classes N, --model-arg K=V", "builds the network that was trained")


def load_into(module: torch.nn.Module, state: State, path: Path, *, hint: Hint = FIT, assign: bool = False) -> None:
    """Load a state dict that must fit exactly.

    Args:
        module: Built for it.
        state: As `read_checkpoint` returns it.
        path: That it comes from.
        hint: What to do where it doesn't fit.
        assign: Let the network have these very tensors, for one that was built without memory.

    Raises:
        BadInputError: Names or shapes differ; the message names the first of each kind.
    """
    own = module.state_dict()
    wrapped = dict(zip(_without_prefixes(own), own, strict=True))  # a network may have a root of such a name itself
    state = {wrapped.get(name, name): value for name, value in state.items()}
    missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or surplus or shapes:
        told = [
            f"{len(entries)} {what} (first: {entries[0]})"
            for what, entries in (("missing", missing), ("unknown", surplus), ("of another shape", shapes))
            if entries
        ]
        raise BadInputError(
            f"{path} doesn't fit {type(module).__name__}: {'; '.join(told)}",
            hint,
        )
    module.load_state_dict(state, strict=True, assign=assign)
