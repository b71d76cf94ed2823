"""What fewer bits bring and cost: smaller files, speed, accuracy, and the layers that stay in float, with reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deploykit.artifact import Artifact
from deploykit.manifest import Manifest
from deploykit.runtime.report.terminal import megabytes, short_names
from deploykit.verdict import Judgement, Timing

#: Bytes of a float32 weight.
FLOAT32: Final = 4
FULL: Final = "fp32"
#: A precision that is faster by less than this isn't worth its loss of accuracy for speed's sake.
WORTH: Final = 1.1


@dataclass(frozen=True)
class Gain:
    """What one artifact of fewer bits brings, compared in its recommended run.

    Attributes:
        artifact: It.
        baseline: The float32 artifact of the same target; None where none was made.
        size_ratio: Its bytes over those of the baseline, or of the float32 weights.
        speed_ratio: Speed over the baseline's, both paired with the original's; None where they were not timed together, or
            unsurely.
        accuracy_change: Top-1 of it less that of the original, 0..1; None without labelled images.
        int8_share: Share of the multiply-adds that ran in 8 bits; None where nothing asks for it.
        left: Layers that stay in the higher precision, by reason.
    """

    artifact: Artifact
    baseline: Artifact | None
    size_ratio: float
    speed_ratio: float | None
    accuracy_change: float | None
    int8_share: float | None
    left: Mapping[str, int]

    @property
    def is_worth_it(self) -> bool | None:
        """Whether it is faster by enough; None where that is not known."""
        return None if self.speed_ratio is None else self.speed_ratio >= WORTH


def gains(manifest: Manifest) -> tuple[Gain, ...]:
    """Return what each artifact of fewer bits brings."""
    full = {artifact.target: artifact for artifact in manifest.artifacts if artifact.precision == FULL}
    weights = FLOAT32 * manifest.source.parameters
    return tuple(
        _gain(manifest, artifact, full.get(artifact.target), weights)
        for artifact in manifest.artifacts
        if artifact.precision != FULL
    )


def _gain(manifest: Manifest, artifact: Artifact, baseline: Artifact | None, weights: int) -> Gain:
    judgement = _recommended(manifest, artifact)
    metrics = {} if judgement is None else judgement.metrics
    drop = metrics.get("accuracy_drop")
    return Gain(
        artifact=artifact,
        baseline=baseline,
        size_ratio=artifact.bytes / (weights if baseline is None else baseline.bytes),
        speed_ratio=None if baseline is None else _speed_ratio(manifest, artifact, baseline),
        accuracy_change=None if drop is None else -drop,
        int8_share=metrics.get("int8_share"),
        left=Counter(entry["reason"] for entry in _left(manifest, artifact)),
    )


def _recommended(manifest: Manifest, artifact: Artifact) -> Judgement | None:
    found = (j for j in manifest.judgements if j.artifact == artifact.name and j.run == artifact.runs[0])
    return next(found, None)


def _speed_ratio(manifest: Manifest, artifact: Artifact, baseline: Artifact) -> float | None:
    ours, theirs = _timing(manifest, artifact), _timing(manifest, baseline)
    if ours is None or theirs is None or ours.speedup is None or theirs.speedup is None:
        return None
    if ours.speedup.doubts or theirs.speedup.doubts:
        return None
    return ours.speedup.median / theirs.speedup.median


def _timing(manifest: Manifest, artifact: Artifact) -> Timing | None:
    wanted = artifact.runs[0]
    found = (
        t for t in manifest.timings if t.candidate == artifact.name and replace(t.run, threads=wanted.threads) == wanted
    )
    return next(found, None)


def _left(manifest: Manifest, artifact: Artifact) -> list[Mapping[str, Any]]:
    """Return what the stage that made the artifact's graph left as it was."""
    facts = next((stage.facts for stage in manifest.stages if stage.output == artifact.parent), {})
    return list(facts.get("left", ()))


def table(manifest: Manifest) -> Table | None:
    """Return one row per artifact of fewer bits, narrow enough for 80 columns; None where there is none."""
    found = gains(manifest)
    if not found:
        return None
    _, names = short_names([artifact.name for artifact in manifest.artifacts])
    grid = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, title="fewer bits", title_justify="left", title_style="")
    for title in ("artifact", "size", "speed", "top-1", "8 bits", "left in float"):
        grid.add_column(title, justify="left" if title in {"artifact", "left in float"} else "right", no_wrap=True)
    for gain in found:
        speed = "" if gain.speed_ratio is None else f"{gain.speed_ratio:.2f}× fp32"
        change = "" if gain.accuracy_change is None else f"{round(100 * gain.accuracy_change, 2) + 0.0:+.2f} pp"
        share = "" if gain.int8_share is None else f"{100 * gain.int8_share:.0f} %"
        count = sum(gain.left.values())
        size = f"{megabytes(gain.artifact.bytes)} ({gain.size_ratio:.2f}×)"
        grid.add_row(names[gain.artifact.name], size, speed, change, share, f"{count} layers" if count else "")
    return grid


def notes(manifest: Manifest) -> Iterator[str]:
    """Yield why layers were left in float, and which precision doesn't pay on this machine."""
    _, names = short_names([artifact.name for artifact in manifest.artifacts])
    for gain in gains(manifest):
        name = names[gain.artifact.name]
        for reason, count in gain.left.items():
            yield f"left in float  {name}: {count} × {reason}"
    for gain in gains(manifest):
        if gain.is_worth_it is False and gain.baseline is not None:
            name, saved = names[gain.artifact.name], gain.baseline.bytes - gain.artifact.bytes
            yield (
                f"not worth it here  {name}: {gain.speed_ratio:.2f}× the speed of {names[gain.baseline.name]}, "
                f"{megabytes(abs(saved))} {'smaller' if saved > 0 else 'larger'}"
            )
