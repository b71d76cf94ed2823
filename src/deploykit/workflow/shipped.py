"""Shipped: which of several artifacts to run, by what its bundle has on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploykit import manifest as manifests
from deploykit import paths
from deploykit.artifact import RunConfig
from deploykit.bundle import Bundle
from deploykit.errors import Hint, MissingComponentError, UsageError
from deploykit.manifest import Manifest
from deploykit.recommendation import Recommendation
from deploykit.runtime import choice
from deploykit.runtime.backends.base import backend_for, backend_names, get_backend
from deploykit.runtime.choice import Grounds, Option
from deploykit.verdict import Judgement
from deploykit.workflow import moved
from deploykit.workflow.opened import check_artifact, read_bundle


@dataclass(frozen=True)
class Chosen:
    """A file and how to run it.

    Attributes:
        path: Its main file.
        run: How.
        reason: Why this one, in a few words; "" where there was no choice.
    """

    path: Path
    run: RunConfig
    reason: str = ""


def chosen(target: Path) -> Chosen:
    """Return what to run of a file, a bundle or a folder.

    Of a bundle that is the fastest artifact of those that passed, by its own record, as far as this machine can run it.

    Raises:
        UsageError: Nothing is there, or nothing says which of several files.
        BadInputError: The bundle or its file is damaged.
        MissingComponentError: No runtime of those that passed is here.
    """
    if not target.is_dir():
        paths.check_file(target)
        return Chosen(target, backend_for(target.name).default_run())
    if (target / manifests.FILE).is_file():
        return _of_bundle(read_bundle(target))
    return _of_folder(target)


def _of_bundle(bundle: Bundle) -> Chosen:
    manifest = bundle.manifest
    artifacts = {artifact.name: artifact for artifact in manifest.artifacts}
    grounds = moved.grounds(manifest)
    passed = choice.passed(grounds)
    if not passed:
        raise UsageError(
            f"no artifact of {bundle.root} has passed: {_verdicts(manifest)}",
            *(Hint(str(bundle.root / artifact.main.path), artifact.name) for artifact in manifest.artifacts),
        )
    here = choice.passed(grounds, lambda run: not get_backend(run.backend).unavailable(run))
    if not here:
        reasons = dict.fromkeys(get_backend(option.run.backend).unavailable(option.run) for option in passed)
        raise MissingComponentError(
            f"no artifact of {bundle.root} that passed can run here: {'; '.join(reasons)}", Hint("deploykit doctor")
        )
    artifact = artifacts[here[0].artifact]
    check_artifact(bundle.root, artifact)
    words = [choice.reason_of([here[0], *(option for option in passed if option != here[0])])]
    words += [elsewhere] if (elsewhere := _elsewhere(grounds, here[0])) else []
    others = [one.name for one in manifest.artifacts if one != artifact]
    words += [f"beside it: {', '.join(others)}"] if others else []
    return Chosen(bundle.root / artifact.main.path, here[0].run, "; ".join(words))


def _elsewhere(grounds: Grounds, option: Option) -> str:
    """Return that a choice rests on what was found on another class of processors, "" where it doesn't."""
    timed_on = grounds.timed_on if option.timing is not None else ""
    found = Recommendation(None, None, grounds.processor, grounds.judged_on, timed_on, "", ()).elsewhere
    return f"{found}: `deploykit verify` and `deploykit bench` tell here" if found else ""


def _verdicts(manifest: Manifest) -> str:
    def told(one: Judgement) -> str:
        return f"{one.artifact} ({one.run.label}) {one.verdict.value.replace('_', ' ')}"

    judged = {one.artifact for one in manifest.judgements}
    unjudged = [f"{artifact.name} not judged" for artifact in manifest.artifacts if artifact.name not in judged]
    return ", ".join([*map(told, manifest.judgements), *unjudged])


def _of_folder(folder: Path) -> Chosen:
    """Return the only artifact in a folder that is no bundle."""
    suffixes = tuple({suffix for name in backend_names() for suffix in get_backend(name).suffixes})
    inside = sorted(folder.iterdir())
    found = [path for path in inside if path.name.endswith(suffixes) and not paths.fault(path)]
    if len(found) == 1:
        return Chosen(found[0], backend_for(found[0].name).default_run(), "the only artifact there")
    if found:
        raise UsageError(
            f"{folder} is no bundle and holds {len(found)} artifacts: nothing says which to run",
            *(Hint(str(path)) for path in found),
        )
    bundles = [path for path in inside if (path / manifests.FILE).is_file()]
    raise UsageError(
        f"{folder} holds no artifact" + (", but bundles" if bundles else f": no {manifests.FILE}, no model"),
        *(Hint(str(path), "is a bundle") for path in bundles),
    )
