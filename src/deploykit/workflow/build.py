"""Build: the engines that an export deferred, from the graphs and orders in its bundle. TensorRT and numpy are enough."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit import optional
from deploykit.artifact import Artifact, RunConfig
from deploykit.bundle import Bundle, BundleWriter, Placement
from deploykit.errors import Hint, UsageError
from deploykit.export.engines.tensorrt_build import endings_of, options_of, trtexec
from deploykit.export.engines.tensorrt_process import build_ordered
from deploykit.locks import locked
from deploykit.manifest import StageRecord
from deploykit.runtime.backends.tensorrt_library import FLAVOURS, Flavour
from deploykit.runtime.backends.tensorrt_record import GRAPH_ENDINGS, BuildOrder
from deploykit.workflow.opened import open_bundle, read_bundle

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Deferred:
    """A graph in a bundle and the order to build an engine of it."""

    artifact: Artifact
    graph: Path
    order: BuildOrder
    flavour: Flavour

    @property
    def stem(self) -> str:
        """Of the engine's files, as the order's own, without a hash that the bundle may have added."""
        return self.artifact.name.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Of the artifact that is built."""
        return f"{self.stem}{endings_of(self.flavour)[0].removesuffix('.engine')}"


def commands(bundle: str | Path) -> tuple[str, ...]:
    """Return the lines of TensorRT's own tool that build what `build` does.

    Raises:
        UsageError: No such folder, or nothing was deferred in it.
        BadInputError: A file is damaged or was changed.
    """
    opened = open_bundle(Path(bundle))
    return tuple(
        trtexec(str(one.graph), str(opened.root / f"{one.stem}{endings_of(one.flavour)[0]}"), options_of(one.order))
        for one in _deferred(opened)
    )


def build(bundle: str | Path, progress: Progress | None = None) -> tuple[Artifact, ...]:
    """Build the deferred engines of a bundle and add them to it; engines that were built before are renewed.

    Args:
        bundle: The bundle's folder.
        progress: Called with the name of what is built, steps done and steps known so far.

    Returns:
        The new artifacts.

    Raises:
        UsageError: No such folder, or nothing was deferred in it.
        BadInputError: A file is damaged or was changed.
        MissingComponentError: TensorRT or its GPU is not here.
        ResourceError: Another process writes to the bundle.
        UnsupportedError: An engine can't be built.
    """
    read_bundle(Path(bundle))
    with locked(Path(bundle)):
        return _build_all(open_bundle(Path(bundle)), progress)


def _build_all(opened: Bundle, progress: Progress | None) -> tuple[Artifact, ...]:
    asked = tuple(_deferred(opened))
    writer = BundleWriter(opened.root, opened.manifest.source.digest, replace=False)
    workspace = Path(tempfile.mkdtemp(prefix="deploykit-build-"))
    try:
        made = [_build(one, workspace, writer, progress) for one in asked]
        placements = tuple(placement for _, _, placed in made for placement in placed)
        artifacts, stages = tuple(artifact for artifact, _, _ in made), tuple(stage for _, stage, _ in made)
        names = {artifact.name for artifact in artifacts}
        manifest = opened.manifest
        changed = dataclasses.replace(
            manifest,
            artifacts=(*(one for one in manifest.artifacts if one.name not in names), *artifacts),
            stages=(*(one for one in manifest.stages if one.node not in names), *stages),
            judgements=tuple(one for one in manifest.judgements if one.artifact not in names),
            timings=tuple(one for one in manifest.timings if one.candidate not in names),
        )
        writer.commit(placements, changed.sealed())
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return artifacts


def _deferred(bundle: Bundle) -> Iterator[_Deferred]:
    """Yield what was deferred in a bundle. Raises UsageError where nothing was."""
    suffix = GRAPH_ENDINGS[1]
    found = False
    for artifact in bundle.manifest.artifacts:
        orders = [record for record in artifact.files if record.path.endswith(suffix)]
        if orders:
            found = True
            order = BuildOrder.read(bundle.root / orders[0].path)
            flavour = next((one for one in FLAVOURS if one.module == order.flavour), None)
            if flavour is None:
                raise UsageError(
                    f"{orders[0].path} asks for {order.flavour!r}, which is no library that builds engines"
                )
            yield _Deferred(artifact, bundle.root / artifact.main.path, order, flavour)
    if not found:
        raise UsageError(f"nothing was deferred in {bundle.root}", Hint("deploykit export MODEL --trt --defer"))


def _build(
    asked: _Deferred, workspace: Path, writer: BundleWriter, progress: Progress | None
) -> tuple[Artifact, StageRecord, tuple[Placement, ...]]:
    started = time.perf_counter()

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(asked.name, done, total)

    plan, record = build_ordered(asked.graph, asked.order, asked.flavour, options_of(asked.order), tell)
    files = {}
    for ending, data in zip(endings_of(asked.flavour), (plan, record.to_bytes()), strict=True):
        files[ending] = workspace / f"{asked.stem}{ending}"
        files[ending].write_bytes(data)
    placed = writer.place(asked.stem, files)
    artifact = Artifact(
        name=asked.name,
        format=asked.flavour.module,
        precision=asked.order.precision,
        target=asked.name.rpartition(".")[2],
        inputs=asked.order.inputs,
        outputs=asked.order.outputs,
        files=tuple(placement.record for placement in placed),
        parent=asked.order.source,
        runs=(RunConfig(asked.flavour.module, device="cuda:0"),),
    )
    stage = StageRecord(
        node=asked.name,
        stage="build",
        version=1,
        options={"order": asked.artifact.name},
        inputs={"graph": asked.artifact.digest},
        output=artifact.digest,
        libraries=optional.installed((asked.flavour.module,)),
        facts={"built_by": record.built_by, "capabilities": list(record.capabilities), "source": record.source},
        seconds=round(time.perf_counter() - started, 3),
        cached=False,
    )
    return artifact, stage, placed
