"""Recorded trajectories: what diffusers' scheduler makes of an original, and the recurrence that stands for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deploykit.errors import InternalError
from deploykit.export import probe, probe_lcm
from deploykit.export.probe_lcm import Recorded, TrajectoryOptions, record
from deploykit.models import lcm, sources
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Session
from deploykit.runtime.batches import run_rows

diffusers = pytest.importorskip("diffusers")

OPTIONS = TrajectoryOptions(16, {"height": (8,), "sequence": (1, 11)})
ROWS = 4


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """The network that ships, in PyTorch."""
    with sources.open_original(sources.resolve("tiny-lcm-unet")) as opened:
        yield opened


@pytest.fixture(scope="module")
def recorded(session: Session) -> Recorded:
    return record(session, sources.resolve("tiny-lcm-unet").takes, OPTIONS, lambda _done, _total: None)


def test_a_scheduler_that_steps_otherwise_is_our_bug_and_no_verdict(recorded: Recorded) -> None:
    answers = np.split(recorded.answers["out_sample"], lcm.STEPS)
    probe_lcm._check(recorded.rollout, recorded.inputs, answers)
    wrong = recorded.rollout.coefficients.copy()
    wrong[1, 1] *= 1 + 1e-3
    other = type(recorded.rollout)("sample", wrong, recorded.rollout.noise, recorded.rollout.latents)
    with pytest.raises(InternalError, match="LCMScheduler of this version does another step"):
        probe_lcm._check(other, recorded.inputs, answers)


def test_rows_are_ordered_by_step_and_hold_what_the_scheduler_asked(recorded: Recorded) -> None:
    assert {name: len(array) for name, array in recorded.inputs.items()} == dict.fromkeys(recorded.inputs, 16)
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    assert recorded.inputs["timestep"].dtype == np.int64
    assert list(recorded.inputs["timestep"]) == np.repeat(scheduler.timesteps.numpy(), ROWS).tolist()
    for name in ("encoder_hidden_states", "timestep_cond"):
        steps = np.split(recorded.inputs[name], lcm.STEPS)
        assert all(np.array_equal(one, steps[0]) for one in steps)
        assert not any(np.array_equal(steps[0][0], row) for row in steps[0][1:]), "each trajectory has its own"


def test_diffusers_pipeline_goes_the_same_way(session: Session, recorded: Recorded) -> None:
    """The loop of LatentConsistencyModelPipeline, with its own guidance embedding."""
    pipeline = diffusers.LatentConsistencyModelPipeline
    embed = pipeline.get_guidance_scale_embedding
    scales = torch.tensor([lcm.GUIDANCE[row] for row in range(ROWS)]) - 1
    guidance = embed(None, scales, embedding_dim=256)
    torch.testing.assert_close(
        torch.from_numpy(recorded.inputs["timestep_cond"][:ROWS]), guidance, rtol=1e-4, atol=2e-3
    )
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    generator = torch.Generator().manual_seed(lcm.SEED)
    latents = torch.from_numpy(recorded.inputs["sample"][:ROWS])
    feeds = {name: array[:ROWS] for name, array in recorded.inputs.items()}
    for time in scheduler.timesteps:
        asked = {**feeds, "sample": latents.numpy(), "timestep": np.full(ROWS, int(time), np.int64)}
        answer = torch.from_numpy(session.infer(asked)["out_sample"])
        latents, denoised = scheduler.step(answer, time, latents, generator=generator, return_dict=False)
    assert drift.psnr_db(denoised.numpy(), recorded.rollout.latents) > 100.0


def test_the_recurrence_gives_the_originals_own_latents(session: Session, recorded: Recorded) -> None:
    latents = recorded.rollout.play(lambda feeds: run_rows(session, feeds, 2)["out_sample"], recorded.inputs)
    assert drift.psnr_db(recorded.rollout.latents, latents) > 100.0
    assert latents.dtype == np.float32


def test_other_sizes_have_the_originals_answers(session: Session, recorded: Recorded) -> None:
    assert [(one.axis, one.size) for one in recorded.sized] == [("height", 8), ("sequence", 1), ("sequence", 11)]
    for one in recorded.sized:
        spec = next(spec for spec in session.inputs if any(axis.name == one.axis for axis in spec.axes))
        assert one.size in one.inputs[spec.name].shape
        assert drift.sqnr_db(one.outputs["out_sample"], session.infer(one.inputs)["out_sample"]) > 100.0


def test_the_probe_is_found_by_the_interface() -> None:
    original = sources.resolve("tiny-lcm-unet")
    (node,) = probe.get_probe(original.takes.probe).nodes(original, probe.Asked(16, {"batch": ()}, None))
    assert (node.id, node.stage.makes, node.options) == (probe.GOLDEN, "tensors", TrajectoryOptions(16, {}))


def test_prompts_and_noise_are_the_same_everywhere_and_normal() -> None:
    values = lcm.noise(0, (3, 64, 64))
    assert abs(float(values.mean())) < 0.03
    assert float(values.std()) == pytest.approx(1.0, abs=0.03)
    assert [f"{value:.5f}" for value in values.reshape(-1)[:3]] == FIRST
    long, short = lcm.prompt(3, 9, 8), lcm.prompt(3, 9, 8)
    np.testing.assert_array_equal(long, short)
    assert not np.array_equal(lcm.prompt(4, 9, 8), long)


#: Of trajectory 0: they may never change, or bundles that were made before could not be made again.
FIRST = ["-0.33187", "0.00565", "-0.63268"]


def test_guidance_is_as_in_the_paper() -> None:
    found: NDArray[np.float32] = lcm.guidance_embedding([1.0, 8.0], 6)
    np.testing.assert_allclose(found[0], [0, 0, 0, 1, 1, 1], atol=1e-6)
    angles = 7000.0 * np.asarray([1.0, 1e-2, 1e-4])
    np.testing.assert_allclose(found[1], [*np.sin(angles), *np.cos(angles)], atol=1e-3)
