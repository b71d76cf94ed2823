"""Export: an original to a bundle with its proof."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploykit import optional, paths
from deploykit.artifact import sha256_of
from deploykit.bundle import Bundle, BundleWriter
from deploykit.calibration.images import RENDERED_CALIBRATION
from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.data.imageset import open_imageset
from deploykit.errors import Hint, MissingComponentError, ResourceError, UsageError
from deploykit.export import plan
from deploykit.export.cache import Cache, Made
from deploykit.export.calibrate import CalibrationRequest, resolve_calibration
from deploykit.export.pipeline import Pipeline, Silent, Watcher
from deploykit.export.probe import Prompts, get_probe
from deploykit.export.ranges import TableOptions
from deploykit.export.request import Cell, ImagesRequest, Request, Sizes
from deploykit.export.stage import Plan
from deploykit.export.target import get_target, target_names
from deploykit.locks import locked
from deploykit.models import sources
from deploykit.models.original import Original
from deploykit.runtime import choice
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.latency import Candidate
from deploykit.verdict import Report
from deploykit.workflow import made_for, moved
from deploykit.workflow.assemble import Story, assemble
from deploykit.workflow.bench import untimed
from deploykit.workflow.classes import named
from deploykit.workflow.disk import check_disk, work_folder
from deploykit.workflow.draft import Draft
from deploykit.workflow.golden_images import golden_images
from deploykit.workflow.making import make
from deploykit.workflow.memory import resolve
from deploykit.workflow.options import CALIB_SIZE, ExportOptions

#: The sizes that a profile names.
_PROFILE = ("MIN", "OPT", "MAX")


@dataclass(frozen=True)
class Exported:
    """The result of an export: the bundle on disk and what was found out about it."""

    bundle: Bundle
    report: Report


@dataclass(frozen=True)
class Preview:
    """What an export is about to do.

    Attributes:
        draft: What is made and measured.
        out: Where the bundle will lie.
        plan: What will be run, if nothing has to be repaired.
        notes: What is not quite as it was asked for.
    """

    draft: Draft
    out: Path
    plan: Plan
    notes: tuple[str, ...] = ()

    @property
    def original(self) -> Original:
        """What is exported."""
        return self.draft.original

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What will be made of it."""
        return self.draft.request.cells

    @property
    def golden_set(self) -> str:
        """What golden inputs are taken from, in a few words."""
        golden, asking = self.draft.request.golden, get_probe(self.original.takes.probe)
        return asking.described(paths.shown(golden.images) if golden else "", self.draft.golden_count)


def prepare(model: str, options: ExportOptions) -> Preview:
    """Check a request whole, before anything runs.

    Raises:
        UsageError: An unknown model, cell or axis, or images that are not the model's.
        MissingComponentError: A library that the plan needs is not installed.
        ResourceError: Too little free disk.
    """
    found = resolve(model, options.source) if options.cache else sources.resolve(model, options.source)
    original = named(found, options.data)
    cells, taken = _cells(options), golden_images(original, options, _calibration(original, options))
    request = Request(
        cells=cells,
        batch=options.batch,
        dynamic=tuple(dict.fromkeys(options.dynamic)),
        golden=taken.golden,
        evaluation=_evaluation(original, options) if options.verify else None,
        calibration=taken.calibration,
        prompts=_prompts(original, options),
        table=_table(options),
        profiles=_profiles(options.profile),
        capabilities=tuple(sorted(set(options.sm))),
        opset=options.opset,
    )
    draft = Draft(original, request, options)
    whole = draft.whole()
    for node in whole.nodes:
        optional.require(*node.stage.libraries)
    out = Path(options.out) if options.out else Path("deploy") / original.id
    check_disk(out, original.parameters, len(request.cells), cached=options.cache)
    return Preview(draft, out, whole, (*_notes(draft), *taken.notes))


def _notes(draft: Draft) -> Iterator[str]:
    """Yield what is not quite as it was asked for, or may be expected."""
    calibration, options = draft.request.calibration, draft.options
    yield from draft.original.notes or ()
    if calibration is not None and calibration.note:
        yield calibration.note
    yield from made_for.notes(draft)
    if draft.request.table is not None and draft.family.int8.strengths and _precisions(options) & plan.SMOOTHED:
        yield "a table has no images to choose SmoothQuant's strength by: it is off"


def _cells(options: ExportOptions) -> tuple[Cell, ...]:
    """Return what is made; of a target that is built elsewhere, on a device of its own, what it is built from.

    Raises:
        UsageError: Nothing that is asked for can be deferred.
        MissingComponentError: The device is not here, and it wasn't asked to defer.
    """
    cells = made_for.cells_for(dict.fromkeys(map(Cell.parse, options.cells)), options.processors)
    known = {name: get_target(name) for name in target_names()}
    deferred = {cell: known[cell.target].deferred for cell in cells if cell.target in known}
    if options.defer:
        if not any(deferred.values()):
            raise UsageError(
                "--defer: every target of this export is built here", Hint("--trt", "is built on its own GPU")
            )
        return tuple(Cell(cell.precision, deferred[cell]) if deferred.get(cell) else cell for cell in cells)
    for target in (known[cell.target] for cell in deferred):
        reason = get_backend(target.builds_on.backend).unavailable(target.builds_on) if target.builds_on else ""
        if reason:
            raise MissingComponentError(
                f"{target.title} engines are built on the GPU that runs them: {reason}",
                Hint("--defer", "writes the typed graph; `deploykit build` makes the engine of it there"),
                Hint("--trt-rtx", "builds an RTX engine on this machine, no GPU needed"),
            )
    return cells


def export_model(
    model: str,
    options: ExportOptions | None = None,
    *,
    watcher: Watcher | None = None,
    on_plan: Callable[[Preview], None] | None = None,
    command: str = "",
    quiet: bool = True,
) -> Exported:
    """Export a model and prove it.

    Args:
        model: Name of the original, such as "tiny-convnext".
        options: What to make of it; the default is fp32 ONNX.
        watcher: Is told how the stages proceed.
        on_plan: Is shown the plan before it runs.
        command: The command line to put on record; made from the options where empty.
        quiet: Keep what the libraries print to themselves.

    Returns:
        The bundle and its report. A failed gate is no exception: look at `report.verdict`.

    Raises:
        UsageError: The request makes no sense, or the folder holds something else.
        MissingComponentError: A library that the plan needs is not installed.
        ResourceError: No disk, or another export is writing there.
        UnsupportedError: No target can express the model. What one of several refuses is in `report.refused`.
    """
    options = options or ExportOptions()
    preview = prepare(model, options)
    if on_plan is not None:
        on_plan(preview)
    with _cache(options) as cache, locked(preview.out):
        writer = BundleWriter(preview.out, preview.original.digest, replace=options.replace)
        done = make(Pipeline(cache, watcher or Silent(), quiet=quiet), preview.draft)
        if options.save_calib_table:
            _save_table(done.results, Path(options.save_calib_table))
        story = Story(
            original=preview.original,
            plan=done.plan,
            cells=done.draft.request.cells,
            axes=done.draft.axes,
            bounds=done.draft.bounds,
            command=command or _command(model, options),
            repairs=done.repairs,
            refused=done.refused,
        )
        bundle = assemble(story, done.results, writer)
    return Exported(bundle, _report(bundle, options))


def _report(bundle: Bundle, options: ExportOptions) -> Report:
    """Return what is on record; what can't run here is told once, by its judgement where there is one."""
    manifest = bundle.manifest
    told = {(judgement.artifact, judgement.run.label) for judgement in manifest.judgements if judgement.not_run}
    asked = [
        Candidate(artifact.name, artifact.main.path, run)
        for artifact in manifest.artifacts
        for run in artifact.runs
        if options.bench and (artifact.name, run.label) not in told
    ]
    jobs = ([(one.name, run, bundle.root / one.main.path) for run in one.runs] for one in manifest.artifacts)
    saturating = [note for ways in jobs for note in moved.saturating(ways)]
    return Report(
        str(bundle.root),
        manifest.judgements,
        manifest.timings,
        untimed=untimed(asked),
        repairs=manifest.repairs or (),
        refused=manifest.refused or (),
        notes=(*manifest.notes, *saturating),
        recommendation=choice.recommend(moved.grounds(manifest)) if options.bench else None,
    )


def _profiles(texts: Iterable[str]) -> dict[str, tuple[Sizes, ...]]:
    """Read profiles: an axis that is named again has a further part."""
    found: dict[str, tuple[Sizes, ...]] = {}
    for name, sizes in map(_profile, texts):
        found[name] = (*found.get(name, ()), sizes)
    return found


def _profile(text: str) -> tuple[str, Sizes]:
    """Read "batch=1,8,32".

    Raises:
        UsageError: Not of that form.
    """
    name, _, numbers = text.partition("=")
    found = numbers.split(",")
    if not name or len(found) != len(_PROFILE) or not all(number.strip().isdecimal() for number in found):
        raise UsageError(f"--profile {text}: write AXIS={','.join(_PROFILE)}, such as batch=1,8,32")
    least, usual, most = (int(number) for number in found)
    return name, (least, usual, most)


def _images(name: str, original: Original, count: int | None) -> ImagesRequest:
    images = open_imageset(name, original.labels, count)
    return ImagesRequest(name, images.digest, count)


def _evaluation(original: Original, options: ExportOptions) -> ImagesRequest | None:
    if options.data is not None and original.task != "logits":
        raise UsageError(f"--data judges class answers; {original.id} answers with {original.takes.output}")
    if options.data is not None:
        return _images(options.data, original, None)
    return _images(original.images, original, options.eval_size) if original.images else None


def _calibration(original: Original, options: ExportOptions) -> CalibrationRequest | None:
    """Return the images to calibrate on; the model's own where it has some and a cell needs them.

    Raises:
        UsageError: Images are given that no cell makes use of.
    """
    precisions = _precisions(options)
    if options.calib and not precisions & plan.MEASURED:
        raise UsageError(
            f"--calib {options.calib}: nothing to calibrate in {', '.join(sorted(precisions))}",
            Hint("--int8", "or --fp16"),
        )
    needed = bool(precisions & plan.CALIBRATED)
    if options.calib_table or original.preprocess is None:
        return None
    name = options.calib or (RENDERED_CALIBRATION if needed and original.images else None)
    if name is None:
        return None
    return resolve_calibration(
        name, options.calib_size, options.calib_seed, original.labels, original.recipe, few=options.calib_few
    )


def _prompts(original: Original, options: ExportOptions) -> Prompts | None:
    """Return what an original that takes no images is calibrated on; None where no cell needs it. Raises what probes do."""
    needed = bool(_precisions(options) & plan.CALIBRATED)
    if original.preprocess is not None or options.calib_table or not needed:
        if options.calib and original.preprocess is None:
            raise UsageError(
                f"--calib {options.calib}: {original.id} takes no images; prompts are for 8 bits", Hint("--int8")
            )
        return None
    asking = get_probe(original.takes.probe)
    return asking.prompts(original, options.calib, options.calib_size, few=options.calib_few)


def _precisions(options: ExportOptions) -> set[str]:
    return {Cell.parse(cell).precision for cell in options.cells}


def _table(options: ExportOptions) -> TableOptions | None:
    """Return the ranges that were measured before.

    Raises:
        UsageError: No such file, images beside it, or no cell that makes use of ranges.
        BadInputError: The file is no table.
    """
    for flag, value in (("--calib-table", options.calib_table), ("--save-calib-table", options.save_calib_table)):
        if value and not _precisions(options) & plan.MEASURED:
            raise UsageError(f"{flag} {value}: no precision here measures activations", Hint("--int8", "or --fp16"))
    if options.save_calib_table:
        paths.check_target(Path(options.save_calib_table))
    if options.calib_table is None:
        return None
    if options.calib:
        raise UsageError(f"--calib {options.calib} and --calib-table {options.calib_table} exclude one another")
    path = Path(options.calib_table)
    if reason := paths.fault(path):
        told = reason.replace("does not exist", "there is no such file")
        raise UsageError(f"--calib-table {path}: {told}", Hint("--save-calib-table FILE", "writes one"))
    RangeTable.load(path)
    return TableOptions(str(path.resolve()), sha256_of(path))


def _save_table(results: Mapping[str, Made], to: Path) -> None:
    """Copy the measured ranges to a file, whole or not at all.

    Raises:
        ResourceError: It can't be written.
    """
    temporary = to.with_name(f".{to.name}.part")
    try:
        shutil.copyfile(results[plan.RANGES].item.path(RANGES), temporary)
        temporary.replace(to)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{to} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def _cache(options: ExportOptions) -> Iterator[Cache]:
    """Yield the user's cache, or one that is gone afterwards."""
    if options.cache:
        yield Cache.default()
        return
    folder = Path(tempfile.mkdtemp(prefix="deploykit-", dir=work_folder(cached=False)))
    try:
        yield Cache(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(model: str, options: ExportOptions) -> str:
    """Return the command line that asks for the same."""
    words = ["deploykit", "export", shlex.quote(model), *(f"--cell {shlex.quote(cell)}" for cell in options.cells)]
    words += [f"--batch {options.batch}"] if options.batch != 1 else []
    words += [f"--dynamic {shlex.quote(axis)}" for axis in options.dynamic]
    words += [f"--profile {shlex.quote(profile)}" for profile in options.profile]
    words += [f"--sm {','.join(map(str, options.sm))}"] if options.sm else []
    words += [f"--for {','.join(options.processors)}"] if options.processors else []
    words += [f"--opset {options.opset}"] if options.opset is not None else []
    words += [f"--data {shlex.quote(options.data)}"] if options.data else []
    words += [f"--calib {shlex.quote(options.calib)}"] if options.calib else []
    words += [f"--calib-size {options.calib_size}"] if options.calib_size != CALIB_SIZE else []
    words += [f"--calib-seed {options.calib_seed}"] if options.calib_seed else []
    words += ["--calib-few"] if options.calib_few else []
    words += [f"--calib-table {shlex.quote(options.calib_table)}"] if options.calib_table else []
    words += ["--no-repair"] if not options.repair else []
    words += [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.source.given.items()]
    words += ["--defer"] if options.defer else []
    words += ["--no-verify"] if not options.verify else []
    words += ["--no-bench"] if not options.bench else []
    return " ".join(words)
