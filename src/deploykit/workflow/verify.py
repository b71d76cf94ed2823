"""Verify: judge a bundle or a bare artifact on this machine, afresh."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploykit import manifest as manifests
from deploykit import paths, texts
from deploykit.artifact import Artifact, RunConfig
from deploykit.bundle import Bundle, load_tensors
from deploykit.data.imageset import open_imageset, prepare_crops, ships
from deploykit.errors import BadInputError, Hint, MissingComponentError, UnsupportedError, UsageError
from deploykit.export import probe
from deploykit.export.request import images_options
from deploykit.models import sources
from deploykit.models.original import Original
from deploykit.runtime import choice, judge, processors
from deploykit.runtime.arithmetic import judge_file
from deploykit.runtime.backends.base import CPU, backend_for, get_backend
from deploykit.runtime.batches import load_outputs
from deploykit.runtime.claims import Claims, precision_fault
from deploykit.runtime.drift import Answers
from deploykit.runtime.golden import Golden
from deploykit.runtime.sites.guest import Guest
from deploykit.verdict import GRADE_OF, Budget, Judgement, Report
from deploykit.workflow import emulated, moved
from deploykit.workflow.classes import named
from deploykit.workflow.devices import runs_on
from deploykit.workflow.golden_images import asked_images
from deploykit.workflow.matching import Interface, matched
from deploykit.workflow.opened import open_bundle, original_of
from deploykit.workflow.options import GOLDEN_COUNT, VerifyOptions
from deploykit.workflow.strictness import beside_family

Progress = Callable[[str, int, int], None]


def verify(target: str | Path, options: VerifyOptions | None = None, progress: Progress | None = None) -> Report:
    """Judge what lies at `target`.

    Args:
        target: A bundle's folder, or an artifact's main file: in its bundle, or one whose original `options.reference` names.
        options: How to judge.
        progress: Called with the name of what is judged, images done and images in all.

    Returns:
        The report. A failed gate is no exception: look at `verdict` and `not_run`.

    Raises:
        UsageError: No such path or site, or a bare artifact without a reference.
        MissingComponentError: A site is not ready.
        BadInputError: A file is damaged or was changed.
        UnsupportedError: A runtime refuses an artifact.
    """
    options = options or VerifyOptions()
    path = Path(target)
    guests = _guests(options)
    if path.is_dir():
        return _verify_bundle(path, options, guests, progress)
    paths.check_file(path)
    if options.reference is None:
        if not (path.parent / manifests.FILE).is_file():
            raise UsageError(
                f"{path} is a bare artifact: nothing says what it should compute",
                Hint("--reference MODEL", "compares it with that original"),
            )
        return _verify_bundle(path.parent, options, guests, progress, of=path)
    return _verify_bare(path, sources.resolve(options.reference, options.source), options, guests, progress)


def _guests(options: VerifyOptions) -> tuple[Guest, ...]:
    """Return the sites to judge on, () for this machine.

    Raises:
        UsageError: There is no such site, or something is asked for that isn't done there.
        MissingComponentError: One is not ready.
    """
    if options.on and (options.data or options.device):
        raise UsageError(
            f"{'data' if options.data else 'device'} is for this machine: on emulated processors golden inputs are judged"
        )
    return emulated.guests_of(options.on)


def _verify_bundle(
    root: Path, options: VerifyOptions, guests: tuple[Guest, ...], progress: Progress | None, of: Path | None = None
) -> Report:
    """Judge a bundle's artifacts, or the one that a file in it belongs to."""
    if options.data is None and (options.reference is not None or options.source.given):
        raise UsageError(
            "a bundle is judged by the outputs of its original that it holds: --reference names who answers for --data"
        )
    if options.golden is not None or options.golden_size != GOLDEN_COUNT:
        asked = f"--golden {options.golden}" if options.golden else f"--golden-size {options.golden_size}"
        raise UsageError(f"{asked} is for a bare file: a bundle holds its own golden inputs")
    if options.precision is not None:
        raise UsageError(f"--precision {options.precision} is for a bare file: a bundle's manifest says what is in it")
    bundle = open_bundle(root)
    manifest = bundle.manifest
    golden = golden_of(bundle)
    evaluation, reason = (None, "") if guests else _bundle_evaluation(bundle, options)
    brief = judge.Brief(golden, manifest.budgets, manifest.axes, evaluation, without_evaluation=reason)
    found: list[Judgement] = []
    saturating: list[str] = []
    for artifact in held(bundle, of):
        path = root / artifact.main.path
        jobs = [(artifact.name, run, path) for run in runs_on(artifact, options.device)]
        grade = _grade(path, jobs)
        fault = precision_fault(artifact.precision, grade, "its manifest")
        claims = Claims("its manifest", manifest.labels, manifest.preprocess, (fault,) if fault else ())
        own = replace(brief, precision=artifact.precision, claims=claims)
        judged = (
            emulated.judgements(jobs, own, guests, options.on_limit_s, progress, made_for=artifact.processors or ())
            if guests
            else _judgements(jobs, own, progress, strict=options.device is None, made_for=artifact.processors or ())
        )
        family, precision = manifest.source.family, artifact.precision
        found += [beside_family(one, manifest.budgets, family, precision, grade) for one in judged]
        saturating += moved.saturating(jobs)
    notes = (*manifest.notes, *moved.notes(manifest, found), *saturating)
    if guests:  # nothing is timed there, so nothing is recommended
        return Report(str(of or root), tuple(found), notes=(*notes, emulated.NOTE))
    advice = choice.recommend(moved.grounds(manifest, judgements=found))
    return Report(str(of or root), tuple(found), notes=notes, recommendation=advice)


def held(bundle: Bundle, file: Path | None) -> tuple[Artifact, ...]:
    """Return the artifacts of a bundle, or the one that a file in it belongs to.

    Raises:
        UsageError: The file belongs to none.
    """
    artifacts = bundle.manifest.artifacts
    if file is None:
        return artifacts
    found = tuple(one for one in artifacts if file.name in {record.path for record in one.files})
    if not found:
        raise UsageError(
            f"{file} is no artifact of the bundle that it lies in",
            Hint("--reference MODEL", "compares it with that original"),
            *(Hint(str(bundle.root / one.main.path), one.name) for one in artifacts),
        )
    return found


def _grade(path: Path, jobs: Iterable[tuple[str, RunConfig, Path]]) -> str:
    """Return the grade that a file's weights are held in, by the first runtime that is here; "" where none can tell."""
    backends = (get_backend(run.backend) for _, run, _ in jobs if not get_backend(run.backend).unavailable(run))
    return next((grade for grade in (backend.held(str(path)) for backend in backends) if grade), "")


def golden_of(bundle: Bundle) -> Golden:
    """Read a bundle's golden inputs, with all that the original is compared by."""
    record = bundle.manifest.golden
    references = {name: load_outputs(bundle.root / found.path) for name, found in record.references.items()}
    further = {role: bundle.root / found.path for role, found in (record.further or {}).items()}
    return probe.golden_at(bundle.root / record.inputs.path, further, references)


def _judgements(
    jobs: list[tuple[str, RunConfig, Path]],
    brief: judge.Brief,
    progress: Progress | None,
    *,
    strict: bool = True,
    made_for: Sequence[str] = (),
) -> Iterator[Judgement]:
    """Judge each; where not `strict`, one that its runtime refuses on the device that was named for all is not run.

    Nor is one that was made for other classes of processors than this one.
    """
    for name, run, path in jobs:

        def tell(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        if run.device == CPU and (away := processors.excluded(made_for, run.backend)):
            yield judge.not_run(name, run, texts.one_line(away))
            continue
        try:
            yield judge_file(name, path, run, brief, tell)
        except UnsupportedError as error:
            if strict:
                raise
            yield judge.not_run(name, run, error.message)


def _bundle_evaluation(bundle: Bundle, options: VerifyOptions) -> tuple[judge.Evaluation | None, str]:
    """Return the labelled images and the original's answers, or why they can't be had.

    A bundle names its images by the path that its maker typed. Nothing is opened there: only the set that ships with the
    package, and what the user names.
    """
    manifest, record = bundle.manifest, bundle.manifest.evaluation
    if options.data is not None:
        named = options.reference is not None or options.source.given
        known = None if named else recorded_evaluation(bundle, options.data)
        if known is None:
            known = _live_evaluation(original_of(manifest, options.reference, options.source), options.data, None)
        return known, ""
    if record is None or manifest.preprocess is None:
        return None, ""
    if not ships(record.images):
        return None, f"it was judged on {texts.one_line(paths.shown(record.images))}: --data PATH says where that is"
    try:
        found = recorded_evaluation(bundle, record.images)
    except (MissingComponentError, UsageError) as error:
        return None, error.message
    return found, "" if found else f"{record.images} is prepared to other pixels here than where the bundle was made"


def recorded_evaluation(bundle: Bundle, images: str) -> judge.Evaluation | None:
    """Prepare images and take the original's answers from the bundle; None where they are not those that it answered.

    Raises:
        UsageError: No such images, or of other classes.
        BadInputError: The images or the answers are damaged.
    """
    record, recipe, labels = bundle.manifest.evaluation, bundle.manifest.preprocess, bundle.manifest.labels
    if record is None or recipe is None:
        return None
    answers = _answers(bundle.root / record.answers.path, record.count)
    chosen = open_imageset(images, labels, record.count)
    if len(chosen) != record.count or list(chosen.labels) != answers.labels.tolist():
        return None
    crops = prepare_crops(chosen, recipe)
    is_same = hashlib.sha256(crops.tobytes()).hexdigest() == record.crops_sha256
    return judge.Evaluation(crops, answers, recipe) if is_same else None


def _answers(path: Path, count: int) -> Answers:
    """Read the original's answers.

    Raises:
        BadInputError: They are not one for each of `count` images.
    """
    found = load_tensors(path)
    if found.keys() != {"top1", "margin", "labels"} or any(array.shape != (count,) for array in found.values()):
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())
        raise BadInputError(f"{path} holds {told or 'nothing'}, not top1, margin and labels of {count} images")
    return Answers(**found)


def _live_evaluation(original: Original, images: str, count: int | None) -> judge.Evaluation:
    """Prepare images and let the original answer them."""
    if original.task != "logits":
        raise UsageError(f"--data judges class answers; {original.id} answers with {original.takes.output}")
    chosen, recipe = open_imageset(images, named(original, images).labels, count), original.recipe
    crops = prepare_crops(chosen, recipe)
    with sources.open_original(original) as session:
        logits = judge.logits_of(session, crops, recipe)
    answers = Answers.of(logits, np.asarray(chosen.labels, np.int64))
    return judge.Evaluation(crops, answers, recipe)


def _verify_bare(
    path: Path, original: Original, options: VerifyOptions, guests: tuple[Guest, ...], progress: Progress | None
) -> Report:
    """Judge a file against an original, both run now."""
    budgets = original.budgets
    _check_precision(options.precision, budgets)
    backend = backend_for(path.name)
    runs = [backend.default_run(precision) for precision in backend.judged]
    runs = [way for run in runs for way in backend.on(run, options.device)] if options.device else runs
    try:
        with backend.open(str(path), runs[0]) as session:
            interface = Interface.of(session)
    except MissingComponentError as error:
        return Report(str(path), tuple(judge.not_run(path.name, run, error.message) for run in runs))
    golden = probe.get_probe(original.takes.probe).golden(original, _asked(original, options, interface.rows))
    golden, notes = matched(golden, original.id, interface)
    images = None if guests else options.data or original.images
    evaluation = _live_evaluation(original, images, None if options.data else options.eval_size) if images else None
    jobs = [(path.name, run, path) for run in runs]
    precision = options.precision or _grade(path, jobs) or "fp32"
    claims = Claims("the original", original.labels, original.preprocess)
    brief = judge.Brief(golden, budgets, interface.axes, evaluation, precision=precision, claims=claims)
    notes = (*notes, *moved.saturating(jobs))
    if guests:
        judged = emulated.judgements(jobs, brief, guests, options.on_limit_s, progress)
        return Report(str(path), tuple(judged), notes=(*notes, emulated.NOTE))
    return Report(str(path), tuple(_judgements(jobs, brief, progress)), notes=notes)


def _check_precision(asked: str | None, budgets: Mapping[str, Budget]) -> None:
    """Raise UsageError where a precision is asked for that has no budget."""
    if asked is not None and GRADE_OF.get(asked, asked) not in budgets:
        known = [next((name for name, grade in GRADE_OF.items() if grade == one), one) for one in budgets]
        raise UsageError(f"--precision {asked}: there are {', '.join(known)}")


def _asked(original: Original, options: VerifyOptions, rows: int) -> probe.Asked:
    """Return what golden inputs a bare artifact is judged by; which of its axes are open, only opening it tells.

    Raises:
        UsageError: Images are given that can't be taken, or the original takes inputs that can't be made of images.
    """
    request = asked_images(original, options.golden, options.golden_size)
    images = None if request is None else images_options(request, original)
    return probe.Asked(options.golden_size, {}, images, rows)
