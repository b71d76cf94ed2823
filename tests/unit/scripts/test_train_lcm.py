"""What a consistency model is trained on is what the scheduler will ask of it, and what ships is what the recipe builds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from deploykit.models import lcm
from deploykit.models.source_lcm import SHIPPED

diffusers = pytest.importorskip("diffusers")

from scripts import train_lcm  # noqa: E402 - it needs diffusers

SAMPLE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("step", range(lcm.STEPS))
def test_a_consistency_model_says_what_the_scheduler_makes_of_it(step: int) -> None:
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    time = scheduler.timesteps[step]
    said = scheduler.step(NOISE, time, SAMPLE, return_dict=False)[1]
    torch.testing.assert_close(train_lcm.consistent(SAMPLE, NOISE, time.expand(2)), said)


def test_noise_that_was_added_is_taken_away_again() -> None:
    times = torch.tensor([19, 999])
    found = train_lcm.clean(train_lcm.noised(SAMPLE, NOISE, times), NOISE, times)
    torch.testing.assert_close(found, SAMPLE, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(train_lcm.noised(SAMPLE, NOISE, torch.tensor([-1, -1])), SAMPLE)


def test_a_student_is_taught_the_steps_that_the_scheduler_takes() -> None:
    grid = set(range(train_lcm.SKIPPED - 1, len(train_lcm.KEPT), train_lcm.SKIPPED))
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    assert set(scheduler.timesteps.tolist()) <= grid
    low, high = train_lcm.Recipe().guidance
    assert all(low <= scale <= high for scale in lcm.GUIDANCE), "golden inputs ask for guidance that was taught"


def test_every_class_has_a_prompt_of_its_own_and_none_is_empty() -> None:
    found = train_lcm.prompts(train_lcm.Recipe())
    assert found.shape == (train_lcm.CLASSES + 1, 4, 32)
    assert not found[-1].any()
    assert len({row.numpy().tobytes() for row in found}) == len(found)
    np.testing.assert_array_equal(found[3].numpy(), lcm.prompt(3, 4, 32))


def test_what_ships_is_what_the_recipe_builds() -> None:
    folder, recipe = SHIPPED[train_lcm.NAME], train_lcm.Recipe()
    assert json.loads((folder / "unet/config.json").read_text()) == recipe.config
    assert json.loads((folder / "tokenizer/tokenizer_config.json").read_text()) == {"model_max_length": recipe.length}
