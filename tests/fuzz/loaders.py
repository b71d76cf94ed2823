"""Every place where a file from elsewhere is read, with sound files to begin from.

What is read is used a little too: a file that a loader takes and that breaks the first one to look at it was not checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fuzz import seeds
from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import Files
from tests.fuzz.structured import edit_json
from tests.support import RECIPE

LABELS: Final = ("cat", "dög", "fish", "bird", "dog")


@dataclass(frozen=True)
class Loader:
    """Something that reads files.

    Attributes:
        name: Of what it reads.
        seeds: Return sound files.
        load: Reads the file at a path, which the others of its set lie beside.
        mutate: Changes one file of a set: chance, name, content.
        light: It needs no library that may crash, so that tests may run it in their own process.
    """

    name: str
    seeds: Callable[[], Sequence[Files]]
    load: Callable[[Path], object]
    mutate: Callable[[Random, str, bytes], bytes] = mutate
    light: bool = False

    def damaged(self, random: Random) -> Files:
        """Return files of which one is damaged, mostly the main one."""
        files = dict(random.choice(sets_of(self)))
        main, *others = files
        name = random.choice(others) if others and random.random() < 0.3 else main
        return {**files, name: self.mutate(random, name, files[name])}


@cache
def sets_of(loader: Loader) -> Sequence[Files]:
    """Return a loader's sound files, made once."""
    return loader.seeds()


# ---- manifests -------------------------------------------------------------------------------------------------------


def resealed(random: Random, name: str, data: bytes) -> bytes:
    """Change a manifest and seal it anew, as whoever means harm does; other files as any."""
    from deploykit import serde
    from deploykit.errors import BadInputError
    from deploykit.manifest import Manifest

    if name != "manifest.json" or random.random() < 0.3:
        return mutate(random, name, data)
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2))):
        value = edit_json(random, value)
    try:
        return serde.from_json(Manifest, value).sealed().to_bytes()
    except (BadInputError, RecursionError, UnicodeError, AttributeError):
        return json.dumps(value, indent=2, sort_keys=True).encode()


def _bundle(path: Path) -> None:
    from deploykit.bundle import Bundle
    from deploykit.cli.inspect import inspect
    from deploykit.errors import BadInputError

    opened = Bundle.open(path.parent)
    with contextlib.suppress(BadInputError):
        opened.check()
    with contextlib.redirect_stdout(io.StringIO()):
        for code, as_json in ((False, False), (True, False), (False, True)):
            inspect(path.parent, code=code, as_json=as_json)


# ---- weights ---------------------------------------------------------------------------------------------------------


def _checkpoint(path: Path) -> None:
    from torch import nn

    from deploykit.models.checkpoint import read_checkpoint
    from deploykit.models.fit import load_into

    network = nn.Module()
    network.conv = nn.Linear(3, 2)
    load_into(network, read_checkpoint(path), path)


def _lora(path: Path) -> None:
    from torch import nn

    from deploykit.models import lora

    network, network.mid = nn.Module(), nn.Module()
    network.mid.to_q = nn.Linear(3, 4)
    lora.check(network, path)
    lora.fuse(network, path)


# ---- models ----------------------------------------------------------------------------------------------------------


def _resolved(path: Path) -> Any:
    from deploykit.models import sources
    from deploykit.models.original import SourceOptions

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sources.resolve(f"file:{path}", SourceOptions(image_size=None))


def _program(path: Path) -> None:
    from deploykit.models import sources

    original = _resolved(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources.open_module(original)


def _adopted(path: Path) -> None:
    from deploykit.export import adopt, plan
    from deploykit.export.stage import Workspace

    original = _resolved(path)
    folder = path.parent / "adopted"
    folder.mkdir()
    rows = original.fixed_batch or 1
    workspace = Workspace(folder, lambda _done, _total: None)
    adopt.STAGE.run({"original": plan.original_item(original)}, adopt.AdoptOptions(rows, ()), workspace)


def _opened(backend: str) -> Callable[[Path], None]:
    def load(path: Path) -> None:
        from deploykit.artifact import RunConfig
        from deploykit.runtime.backends.base import get_backend

        with get_backend(backend).open(str(path), RunConfig(backend, precision="f32", threads=1)) as session:
            json.dumps([spec.text for spec in (*session.inputs, *session.outputs)])

    return load


def _products(backend: str) -> Callable[[Path], None]:
    def load(path: Path) -> None:
        from deploykit.runtime.pairs import note

        note("net", (backend,), str(path))

    return load


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _tensors(path: Path) -> None:
    from deploykit.bundle import load_tensors

    load_tensors(path)


def _golden(path: Path) -> None:
    from deploykit.bundle import load_tensors
    from deploykit.export.probe import golden_at
    from deploykit.runtime.rollout import FURTHER

    further = {role: path.parent / name for role, name in FURTHER.items()}
    golden_at(path, further, {"original": load_tensors(path.parent / "original.npz")})


def _ranges(path: Path) -> None:
    from deploykit.calibration.ranges import RangeTable

    for entry in RangeTable.load(path).tensors.values():
        entry.quantiles(0.001)
        _ = entry.channel_absmax.max(initial=0.0), entry.absmax + entry.limit, entry.centers * entry.histogram


def _calibration(path: Path) -> None:
    from deploykit.calibration.images import CalibrationImages, open_calibration

    found = open_calibration(str(path), 2, 0, RECIPE)
    _ = found.digest
    for index in range(len(found)):
        _ = found.image(index) if isinstance(found, CalibrationImages) else found.row(index)


@cache
def _takes_prompts() -> Any:
    from deploykit.models import lcm, sources
    from deploykit.models.interface import Input, Interface

    states = Input(lcm.STATES, "float32", ("batch", "sequence", 32))
    takes = Interface((states,), "noise", (), {"sequence": 7}, "lcm")
    return dataclasses.replace(sources.resolve("tiny-convnext"), preprocess=None, interface=takes)


def _prompt_sets() -> Sequence[Files]:
    from deploykit.models import lcm

    return seeds.prompts(_takes_prompts().takes.at({})[lcm.STATES][-1])


def _prompts(path: Path) -> None:
    from deploykit.export.calibrate_lcm import resolve_prompts

    resolve_prompts(_takes_prompts(), str(path), 8, seeded=False, few=True)


# ---- pictures and texts ----------------------------------------------------------------------------------------------


def _picture(path: Path) -> None:
    from deploykit.data.images import decode
    from deploykit.data.preprocess import crop

    crop(decode(path), RECIPE)


def _listing(path: Path) -> None:
    from deploykit.data.imageset import open_imageset

    found = open_imageset(str(path), LABELS)
    _ = found.digest
    for index in range(min(2, len(found))):
        found.image(index)


def _labels(path: Path) -> None:
    from deploykit.models.head import labels_of
    from deploykit.models.original import SourceOptions

    labels_of(SourceOptions(labels=str(path)), 3)


# ---- what processes and machines hand to one another -----------------------------------------------------------------


def _frame(path: Path) -> None:
    from deploykit.runtime.frames import exception_of, receive

    with path.open("rb") as stream, contextlib.suppress(EOFError):  # the other side is gone
        while True:
            header, _ = receive(stream)
            if "failure" in header:
                exception_of(header["failure"], "net.onnx")


def _timings(path: Path) -> None:
    from deploykit.export.engines.timing_cache import TimingCache

    TimingCache(path).read()


def _order(path: Path) -> None:
    from deploykit.runtime.backends.tensorrt_record import BuildOrder

    order = BuildOrder.read(path)
    json.dumps([spec.text for spec in order.inputs])
    order.record(b"", "1.2.3.4", order.capabilities).to_bytes()


def _engine(path: Path) -> None:
    from deploykit.runtime.backends.tensorrt_record import record_of

    record_of(path)


def _sidecar(path: Path) -> None:
    from deploykit.bundle import JOURNAL, BundleWriter
    from deploykit.export import provenance
    from deploykit.export.cache import Cache
    from deploykit.models import sources

    if path.name == "modules.json":
        provenance.read(path)
    elif path.name == "entry.json":
        folder = path.parent / "items" / "ke" / "key"
        folder.mkdir(parents=True)
        path.replace(folder / path.name)
        Cache(path.parent).find("key")
    elif path.name == "journal.json":
        path.replace(path.parent / JOURNAL)
        BundleWriter(path.parent, "d" * 64, replace=False)
    else:
        text = path.read_bytes().decode("utf-8", "replace")
        if text.startswith("{"):
            sources.located(text)


LOADERS: Final[tuple[Loader, ...]] = (
    Loader("manifest", seeds.bundle, _bundle, resealed),
    Loader("checkpoint", seeds.checkpoints, _checkpoint),
    Loader("safetensors", seeds.safetensors, _checkpoint),
    Loader("lora", seeds.loras, _lora),
    Loader("pt2", seeds.programs, _program),
    Loader("tensors", seeds.tensors, _tensors, light=True),
    Loader("golden", seeds.golden, _golden, light=True),
    Loader("ranges", seeds.tables, _ranges, light=True),
    Loader("calibration", seeds.calibrations, _calibration, light=True),
    Loader("prompts", _prompt_sets, _prompts),
    Loader("adopt", seeds.graphs, _adopted),
    Loader("onnxruntime", seeds.graphs, _opened("onnxruntime")),
    Loader("openvino", seeds.graphs, _opened("openvino")),
    Loader("openvino-ir", seeds.representations, _opened("openvino")),
    Loader("products", seeds.rounded, _products("onnxruntime"), light=True),
    Loader("products-ir", seeds.rounded_representations, _products("openvino")),
    Loader("image", seeds.pictures, _picture),
    Loader("listing", seeds.listings, _listing, light=True),
    Loader("labels", seeds.class_names, _labels, light=True),
    Loader("frames", seeds.exchanges, _frame, light=True),
    Loader("timing-cache", seeds.timings, _timings, light=True),
    Loader("build-order", seeds.orders, _order, light=True),
    Loader("engine-record", seeds.engines, _engine, light=True),
    Loader("sidecars", seeds.sidecars, _sidecar),
)


def get_loader(name: str, among: Sequence[Loader] = LOADERS) -> Loader:
    """Return the loader called `name`."""
    found = {loader.name: loader for loader in among}
    if name not in found:
        raise SystemExit(f"no loader {name!r}; there are: {', '.join(found)}")
    return found[name]
