"""What fewer bits bring, from a manifest alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from rich.console import Console
from tests.support import RUN, manifest, record, timing

from deploykit.artifact import Artifact
from deploykit.manifest import Manifest
from deploykit.runtime.report import gains
from deploykit.verdict import Ratio, Timing

METRICS = {"accuracy_drop": 0.0025, "int8_share": 0.9}
LEFT = [{"node": "a", "module": "stem", "reason": "why"}, {"node": "b", "module": "head", "reason": "why"}]


def timed(name: str, speedup: float) -> Timing:
    run = dataclasses.replace(RUN, threads=2)
    return dataclasses.replace(timing(), candidate=name, run=run, speedup=Ratio(speedup, speedup, speedup, 10))


def with_int8(speedup: float | None, *, baseline: bool = True, metrics: Mapping[str, float] = METRICS) -> Manifest:
    """A manifest with an int8 artifact of 2 bytes beside a float32 one of 8, whose speed-up over the original is 2."""
    plain = manifest()
    full = dataclasses.replace(plain.artifacts[0], files=(record("net.fp32.onnx", b"12345678"),))
    int8 = dataclasses.replace(
        full, name="net.int8.ort", precision="int8", files=(record("net.int8.onnx", b"12"),), parent="9" * 64
    )
    judged = dataclasses.replace(plain.judgements[0], artifact=int8.name, metrics=metrics)
    stage = dataclasses.replace(plain.stages[0], output="9" * 64, facts={"left": LEFT})
    artifacts: tuple[Artifact, ...] = (full, int8) if baseline else (int8,)
    timings = () if speedup is None else (timed(full.name, 2.0), timed(int8.name, speedup))
    return dataclasses.replace(
        plain, artifacts=artifacts, judgements=(judged,), stages=(stage,), timings=timings if baseline else timings[1:]
    )


def test_a_bundle_of_float32_has_nothing_to_tell() -> None:
    assert gains.gains(manifest()) == ()
    assert gains.table(manifest()) is None
    assert list(gains.notes(manifest())) == []


def test_size_speed_accuracy_share_and_what_was_left() -> None:
    (gain,) = gains.gains(with_int8(3.0))
    assert (gain.size_ratio, gain.speed_ratio, gain.accuracy_change) == (0.25, 1.5, -0.0025)
    assert (gain.int8_share, gain.left, gain.is_worth_it) == (0.9, {"why": 2}, True)


@pytest.mark.parametrize(("speedup", "worth"), [(2.19, False), (2.21, True)])
def test_what_hardly_gains_speed_is_called_not_worth_it(speedup: float, worth: bool) -> None:
    notes = [line for line in gains.notes(with_int8(speedup)) if line.startswith("not worth it here")]
    assert bool(notes) is not worth
    assert all(f"{speedup / 2:.2f}× the speed of fp32.ort, 0.0 kB smaller" in line for line in notes)


def test_without_timings_or_a_float32_artifact_speed_is_unknown_and_nothing_is_claimed() -> None:
    for told in (with_int8(None), with_int8(3.0, baseline=False)):
        (gain,) = gains.gains(told)
        assert gain.speed_ratio is None
        assert gain.is_worth_it is None
    assert gains.gains(with_int8(None, baseline=False))[0].size_ratio == 2 / (4 * 1234)


def test_without_labelled_images_no_accuracy_is_claimed() -> None:
    (gain,) = gains.gains(with_int8(3.0, metrics={}))
    assert gain.accuracy_change is None
    assert gain.int8_share is None


def test_the_table_fits_a_narrow_terminal() -> None:
    console = Console(width=80, record=True)
    made = gains.table(with_int8(3.0))
    assert made is not None
    console.print(made)
    text = console.export_text()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    for word in ("int8.ort", "(0.25×)", "1.50× fp32", "-0.25 pp", "90 %", "2 layers"):
        assert word in text
