"""The nouns that describe a deployable file: TensorSpec, RunConfig, Preprocess, Artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

from deploykit import paths, serde, texts
from deploykit.errors import BadInputError

HASH_BLOCK = 1 << 20
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """A named dimension that may vary between calls.

    Attributes:
        name: Such as "batch".
        min: Smallest size.
        opt: The size to tune for.
        max: Largest size.
        step: Sizes are `min + k * step`.
    """

    name: str
    min: int
    opt: int
    max: int
    step: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.min <= self.opt <= self.max and self.step >= 1):
            raise ValueError(f"axis {self.name!r} needs 1 <= min <= opt <= max and step >= 1, found {self}")

    @classmethod
    def unbounded(cls, name: str) -> Axis:
        """An axis of which a file only says that it varies."""
        return cls(name, 1, 1, MAX_SIZE)

    def accepts(self, size: int) -> bool:
        """Tell whether `size` is one of the sizes of this axis."""
        return self.min <= size <= self.max and (size - self.min) % self.step == 0


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, numpy dtype name and shape, in which a dynamic dimension is an `Axis`."""

    name: str
    dtype: str
    shape: tuple[int | Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dynamic axes, in order."""
        return tuple(dim for dim in self.shape if isinstance(dim, Axis))

    def mismatch(self, dtype: str, shape: tuple[int, ...]) -> str | None:
        """Return why an array of `dtype` and `shape` doesn't fit, or None where it does."""
        if dtype != self.dtype:
            return f"{self.name!r} takes {self.dtype}, not {dtype}"
        fits = len(shape) == len(self.shape) and all(
            dim.accepts(size) if isinstance(dim, Axis) else dim == size
            for dim, size in zip(self.shape, shape, strict=True)
        )
        return None if fits else f"{self.name!r} takes shape {self.text}, not {list(shape)}"

    @property
    def text(self) -> str:
        """The shape as people read it: `[batch 1..8, 3, 64, 64]`."""
        dims = (f"{dim.name} {dim.min}..{dim.max}" if isinstance(dim, Axis) else str(dim) for dim in self.shape)
        return f"[{', '.join(dims)}]"


@dataclass(frozen=True)
class FileRecord:
    """A file as it must be: path relative to its root (posix), size in bytes, SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        unsafe = not parts or self.path.startswith("/") or ".." in parts or ":" in self.path
        if unsafe or any(map(texts.name_fault, parts)):
            raise BadInputError(f"unsafe path {self.path!r}: files must lie inside their folder")

    @classmethod
    def of(cls, root: Path, relative: str) -> FileRecord:
        """Measure `root / relative`."""
        path = root / relative
        return cls(relative, path.stat().st_size, sha256_of(path))

    def check(self, root: Path) -> Path:
        """Return the file's path after comparing size and hash.

        Raises:
            BadInputError: Missing, outside `root`, or not the bytes that were recorded.
        """
        path = root / self.path
        if reason := paths.missing(path):
            raise BadInputError(f"{paths.shown(path)} {reason}")
        if not path.resolve().is_relative_to(root.resolve()):
            raise BadInputError(f"{path} leads outside {root}")
        size = path.stat().st_size
        if size != self.bytes:
            raise BadInputError(f"{path} has {size} bytes; its manifest says {self.bytes}")
        found = sha256_of(path)
        if found != self.sha256:
            raise BadInputError(f"{path} has SHA-256 {found[:12]}…; its manifest says {self.sha256[:12]}…")
        return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            state.update(block)
    return state.hexdigest()


#: The arithmetic of what stands in a graph.
EXACT: Final = "exact"


@dataclass(frozen=True)
class RunConfig:
    """How an artifact is run. A verdict belongs to an artifact and a RunConfig.

    Attributes:
        backend: Name of a registered backend, such as "openvino".
        device: "cpu", "cuda:0", ...
        precision: "f32", "bf16", "f16" for what the runtime must compute in, or "auto" for its own choice.
        threads: Threads per inference; None leaves it to the runtime.
        hints: Further settings in the runtime's own words.
        arithmetic: Of products in 8 bits: None leaves it to the runtime's kernels, whose answers may depend on the processor;
            "exact" is what stands in the graph.
    """

    backend: str
    device: str = "cpu"
    precision: str = "auto"
    threads: int | None = None
    hints: Mapping[str, str] = field(default_factory=dict)
    arithmetic: str | None = field(default=None, metadata=serde.LATER)

    def on(self, device: str) -> RunConfig:
        """Return it on another device; "cuda" is "cuda:0"."""
        return replace(self, device=f"{device}:0" if device == "cuda" else device)

    @property
    def label(self) -> str:
        """Short text for tables: "openvino cpu f32"."""
        extras = [f"{self.arithmetic} arithmetic"] if self.arithmetic is not None else []
        extras += [f"{self.threads} threads"] if self.threads is not None else []
        extras += [f"{key}={value}" for key, value in sorted(self.hints.items())]
        return " ".join([self.backend, self.device, self.precision, *extras])


@dataclass(frozen=True)
class Preprocess:
    """From a decoded RGB image to the input tensor, as timm resolves it for testing.

    Attributes:
        input_size: (channels, height, width).
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", in Pillow's antialiased sense.
        crop_pct: Share of the resized image that the crop keeps.
        crop_mode: "center" resizes the shorter side, "border" the longer one, "squash" both.
        mean: Per channel, of values in 0..1.
        std: Per channel, of values in 0..1.
    """

    input_size: tuple[int, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width that images are resized to before the crop, as the crop mode has it."""
        return int(self.input_size[1] / self.crop_pct), int(self.input_size[2] / self.crop_pct)


@dataclass(frozen=True)
class Artifact:
    """One deployable thing. Its first file is what the stock runtime opens, as that runtime expects it.

    Attributes:
        name: Unique within a bundle: "tiny-convnext.fp32.openvino".
        format: "onnx" or "openvino".
        precision: Of the weights and activations in the graph: "fp32".
        target: Name of a registered target.
        inputs: What it takes.
        outputs: What it returns.
        files: Main file first.
        parent: Content hash of the graph it was made from.
        runs: The ways it is judged to run, the recommended one first.
        processors: Classes of processors that it was made for, of `deploykit.runtime.processors`; None for all.
    """

    name: str
    format: str
    precision: str
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileRecord, ...]
    parent: str
    runs: tuple[RunConfig, ...]
    processors: tuple[str, ...] | None = field(default=None, metadata=serde.LATER)

    def __post_init__(self) -> None:
        for name in (self.name, self.format, self.precision, self.target, *(self.processors or ())):
            if reason := texts.name_fault(name):
                raise BadInputError(f"{texts.one_line(name)[:80]!r} is no name: {reason}")

    @property
    def main(self) -> FileRecord:
        """The file that a runtime is given."""
        return self.files[0]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.files)

    @property
    def digest(self) -> str:
        """Content hash of the files, whatever they are called."""
        return serde.digest([record.sha256 for record in self.files])
