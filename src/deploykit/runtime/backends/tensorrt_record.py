"""What lies beside a TensorRT engine: who built it, from what, for which GPUs; and the checks that come before it is opened.

An engine is code: its library trusts it, may crash on one wrong byte, and doesn't tell one reason from another. So nothing is
handed to it that doesn't equal its record, and every reason why it can't run here is looked for first.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploykit import serde
from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import BadInputError, Hint, MissingComponentError, UsageError
from deploykit.runtime.backends.cuda import Gpu
from deploykit.runtime.backends.tensorrt_library import FLAVOURS, MAGIC_AT, Flavour
from deploykit.verdict import Executed

#: Of the schemas of records and orders.
VERSION: Final = 1
#: A record's name is its engine's, with this in place of ".engine".
SUFFIX: Final = ".json"
#: Endings of a graph that an engine is to be built from, and of the order to build it.
GRAPH_ENDINGS: Final = (".trt.onnx", ".trt.order.json")
#: Other files that people take for engines, by their first bytes.
_OTHERS: Final[Mapping[bytes, str]] = {
    b"version https://git-lfs": "a pointer of Git LFS: run `git lfs pull`",
    b"PK\x03\x04": "a zip archive",
    b"\x08": "an ONNX file, it seems",
}


@dataclass(frozen=True)
class EngineRecord:
    """The story of an engine.

    Attributes:
        version: Of this schema.
        flavour: Module of the library that built it.
        built_by: That library's version, all four numbers.
        platform: System and machine that it was built on, as "Linux x86_64".
        capabilities: Compute capabilities that it has code for, as 86 for 8.6.
        precision: What it computes in, such as "fp16".
        inputs: What it takes; the bounds of an axis are those of its optimization profiles, `opt` what the first is tuned for.
        outputs: What it returns.
        size: Of the engine, in bytes.
        sha256: Of its bytes.
        source: Content hash of the ONNX graph that it was built from.
        texts: Labels, preprocessing and precision, as every format embeds them.
        layers: Convolutions and products with what they compute in, where the engine tells.
    """

    version: int
    flavour: str
    built_by: str
    platform: str
    capabilities: tuple[int, ...]
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size: int
    sha256: str
    source: str
    texts: Mapping[str, str]
    layers: tuple[Executed, ...]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts, under the keys that an ONNX file has them under."""
        return {f"deploykit.{key}": text for key, text in self.texts.items()}

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        return _json(self)


@dataclass(frozen=True)
class BuildOrder:
    """All that a machine needs to know to build an engine, beside the graph itself.

    Attributes:
        version: Of this schema.
        flavour: Module of the library that builds.
        precision: What the graph is written in, such as "fp16".
        inputs: What it takes, with the bounds of its axes.
        outputs: What it returns.
        capabilities: Compute capabilities to build for; none for the GPU that is there.
        source: Content hash of the graph.
        texts: Labels, preprocessing and precision, as every format embeds them.
        ranges: Of axes that are tuned for in several parts: the parts, by name.
    """

    version: int
    flavour: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    capabilities: tuple[int, ...]
    source: str
    texts: Mapping[str, str]
    ranges: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        return _json(self)

    @classmethod
    def read(cls, path: Path) -> BuildOrder:
        """Read an order.

        Raises:
            BadInputError: It is missing, damaged or newer than this version reads.
        """
        return serde.from_json(cls, _load(path), str(path))

    def record(self, plan: bytes, built_by: str, capabilities: tuple[int, ...]) -> EngineRecord:
        """Return the record of the engine that was built as ordered."""
        return EngineRecord(
            version=VERSION,
            flavour=self.flavour,
            built_by=built_by,
            platform=here(),
            capabilities=capabilities,
            precision=self.precision,
            inputs=self.inputs,
            outputs=self.outputs,
            size=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            source=self.source,
            texts=self.texts,
            layers=(),
        )


def _json(value: object) -> bytes:
    """Return JSON for people, in one fixed form."""
    return (json.dumps(serde.to_json(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _load(path: Path) -> object:
    """Read the JSON of a record or an order."""
    try:
        value = serde.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is no JSON: {error}") from error
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise BadInputError(
            f"{path} has version {version}; this deploykit reads up to {VERSION}",
            Hint("pip install --upgrade deploykit"),
        )
    return value


def here() -> str:
    """Return this system and machine, as records name them."""
    return f"{platform.system()} {platform.machine()}"


def record_path(engine: Path) -> Path:
    """Return where the record of an engine lies."""
    return engine.with_suffix(SUFFIX)


def record_of(path: Path) -> EngineRecord | None:
    """Return the record of an engine; None of a file that is called like none.

    Raises:
        BadInputError: Engine or record is missing or damaged, or they differ.
        UsageError: It is called like an engine of the other library.
    """
    called = [(suffix, flavour) for flavour in FLAVOURS for suffix in flavour.suffixes if path.name.endswith(suffix)]
    if not called:
        return None
    _, flavour = max(called, key=lambda found: len(found[0]))
    return read_engine(path, flavour)[0]


def read_engine(path: Path, flavour: Flavour) -> tuple[EngineRecord, bytes]:
    """Read an engine that equals its record and belongs to `flavour`.

    Raises:
        BadInputError: One of the two is missing or damaged, or the engine is no such engine.
        UsageError: It is one of the other library's.
    """
    if not path.is_file():
        raise BadInputError(f"{path} is {'no file' if path.exists() else 'missing'}")
    plan = path.read_bytes()
    _check_magic(path, plan, flavour)
    record = _read_record(path)
    if len(plan) != record.size:
        raise BadInputError(f"{path} has {len(plan):,} bytes; its record says {record.size:,}: it was cut or changed")
    found = hashlib.sha256(plan).hexdigest()
    if found != record.sha256:
        raise BadInputError(f"{path} has SHA-256 {found[:12]}…; its record says {record.sha256[:12]}…: it was changed")
    if record.flavour != flavour.module:
        raise BadInputError(f"{record_path(path)} speaks of an engine of {record.flavour}, not of {flavour.module}")
    return record, plan


def _check_magic(path: Path, plan: bytes, flavour: Flavour) -> None:
    magic = plan[MAGIC_AT]
    if magic == flavour.magic:
        return
    for other in FLAVOURS:
        if magic == other.magic:
            raise UsageError(
                f"{path} is an engine of {other.title}, not of {flavour.title}", Hint(f"name it *{other.suffixes[0]}")
            )
    seems = next((f": it is {what}" for start, what in _OTHERS.items() if plan.startswith(start)), "")
    begins = f"begins with {magic!r}" if plan else "is empty"
    raise BadInputError(f"{path} is no engine of {flavour.title}{seems or f': it {begins}'}")


def _read_record(engine: Path) -> EngineRecord:
    path = record_path(engine)
    if not path.is_file():
        raise BadInputError(
            f"{engine} has no record {path.name} beside it: an engine is code, and nothing says that this one may be trusted",
            Hint("copy both files", "an engine and its record belong together"),
        )
    return serde.from_json(EngineRecord, _load(path), str(path))


def check_version(path: Path, record: EngineRecord, flavour: Flavour, version: str) -> None:
    """Compare what built an engine with what is here: engines open in the very same version alone.

    Raises:
        MissingComponentError: They differ.
    """
    if record.built_by != version:
        raise MissingComponentError(
            f"{path} was built by {flavour.title} {record.built_by}, and no other version opens it; {version} is here",
            Hint(flavour.hint.format(record.built_by)),
            Hint("deploykit export", "again, builds one for this version"),
        )
    if not flavour.portable and record.platform != here():
        raise MissingComponentError(f"{path} was built on {record.platform} and runs there alone; this is {here()}")


def check_gpu(path: Path, record: EngineRecord, gpu: Gpu) -> None:
    """Compare what an engine was built for with the GPU that is here.

    Raises:
        MissingComponentError: It has no code for it.
    """
    if gpu.capability not in record.capabilities:
        built = ", ".join(map(str, record.capabilities))
        raise MissingComponentError(
            f"{path} was built for GPUs of SM {built}; {gpu.name} is SM {gpu.capability}",
            Hint(f"--sm {gpu.capability}", "when it is exported"),
        )
