"""Trajectories as reference inputs: what an LCM's UNet is given on the way from noise to latents, and what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit import optional
from deploykit.bundle import save_tensors
from deploykit.errors import InternalError
from deploykit.export import calibrate_lcm
from deploykit.export.probe import CALIBRATION, GOLDEN, ORIGINAL, Asked, Probe, Prompts
from deploykit.export.reference import OutputsOptions
from deploykit.export.stage import TENSORS, Facts, Inputs, Node, Stage, Workspace
from deploykit.models import lcm, sources
from deploykit.models.interface import Interface
from deploykit.models.original import FORMS, Original
from deploykit.models.source_lcm import SHIPPED
from deploykit.runtime import drift, golden
from deploykit.runtime.backends.base import Session, Tensor
from deploykit.runtime.batches import run_rows
from deploykit.runtime.golden import Golden
from deploykit.runtime.rollout import FURTHER, Rollout, Sized, save_sized

if TYPE_CHECKING:
    from diffusers import LCMScheduler

#: Largest relative difference between the scheduler's latents and the recurrence that stands for it.
TOLERANCE: Final = 1e-5
#: Rows at each other size: the first and the last step of a trajectory.
SIZED_ROWS: Final = 2
#: The original's answers to the golden inputs.
RECORDED: Final = "recorded.npz"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrajectoryOptions:
    """Which trajectories.

    Attributes:
        count: Golden inputs in all, `lcm.STEPS` for each trajectory.
        tried: Sizes of open axes to have inputs of beside the usual ones, by axis.
    """

    count: int
    tried: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recorded:
    """What was recorded of an original.

    Attributes:
        inputs: Golden inputs, those of the first step first.
        answers: The original's, by the name of its output.
        rollout: How answers became inputs.
        sized: Inputs of other sizes, with the original's answers.
    """

    inputs: dict[str, Tensor]
    answers: dict[str, Tensor]
    rollout: Rollout
    sized: tuple[Sized, ...]


def record(session: Session, takes: Interface, options: TrajectoryOptions, progress: Progress) -> Recorded:
    """Let diffusers' scheduler drive an original through four steps from seeded noise, and take down all that it is given.

    Args:
        session: The original.
        takes: What it takes.
        options: How many trajectories, and what other sizes.
        progress: Called with steps done and steps in all.

    Raises:
        InternalError: The scheduler does something else than the recurrence that is recorded for it.
    """
    optional.require("torch", "diffusers")
    import torch
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    scheduler.set_timesteps(lcm.STEPS)
    times = [int(time) for time in scheduler.timesteps]
    rows = max(1, options.count // lcm.STEPS)
    start = lcm.inputs_of(takes, {}, [times[0]] * rows)
    drawing, again = (torch.Generator().manual_seed(lcm.SEED) for _ in range(2))
    sample, given, answers, fresh = torch.from_numpy(start[lcm.SAMPLE]), [], [], []
    coefficients = _coefficients(scheduler, times)
    for step, time in enumerate(times):
        given.append({**start, lcm.SAMPLE: sample.numpy().copy(), lcm.TIMESTEP: np.full(rows, time, np.int64)})
        answers.append(run_rows(session, given[-1], SIZED_ROWS)[takes.output])
        is_last = step == len(times) - 1
        fresh.append(torch.zeros_like(sample) if is_last else torch.randn(sample.shape, generator=again))
        sample = scheduler.step(torch.from_numpy(answers[-1]), time, sample, generator=drawing, return_dict=False)[0]
        progress(step + 1, len(times))
    noise = np.stack([one.numpy() for one in fresh])
    rollout = Rollout(lcm.SAMPLE, coefficients, noise, sample.numpy().copy())
    inputs: dict[str, Tensor] = {name: np.concatenate([one[name] for one in given]) for name in start}
    _check(rollout, inputs, answers)
    sized = tuple(_sized(session, takes, axis, size, times) for axis, sizes in options.tried.items() for size in sizes)
    return Recorded(inputs, {takes.output: np.concatenate(answers)}, rollout, sized)


def _coefficients(scheduler: LCMScheduler, times: Sequence[int]) -> NDArray[np.float64]:
    """Return what each step multiplies sample, noise prediction and fresh noise by, float64 [steps, 3].

    The boundary conditions of a consistency model weigh the sample and the image that the prediction implies; what they
    make is noised to the level of the next step (arXiv:2310.04378, algorithm 3).
    """
    found = []
    for step, time in enumerate(times):
        kept = float(scheduler.alphas_cumprod[time])
        after = float(scheduler.alphas_cumprod[times[step + 1]]) if step + 1 < len(times) else 1.0
        skip, out = (float(part) for part in scheduler.get_scalings_for_boundary_condition_discrete(time))
        signal, noise = after**0.5, (1.0 - after) ** 0.5
        of_sample, of_answer = skip + out / kept**0.5, -out * ((1.0 - kept) / kept) ** 0.5
        found.append((signal * of_sample, signal * of_answer, noise))
    return np.asarray(found, np.float64)


def _check(rollout: Rollout, inputs: Mapping[str, Tensor], answers: Sequence[Tensor]) -> None:
    """Compare the recurrence with what the scheduler made of the same answers.

    Raises:
        InternalError: They differ.
    """
    told = iter(answers)
    replayed = rollout.play(lambda _feeds: next(told), inputs)
    error = drift.relative_max(rollout.latents, replayed)
    if not error <= TOLERANCE:
        raise InternalError(
            f"diffusers' LCMScheduler of this version does another step than is recorded for it: its latents differ by "
            f"{error:.1e} (relative max; at most {TOLERANCE:.0e})"
        )


def _sized(session: Session, takes: Interface, axis: str, size: int, times: Sequence[int]) -> Sized:
    inputs = lcm.inputs_of(takes, {axis: size}, [times[0], times[-1]][:SIZED_ROWS])
    return Sized(axis, size, inputs, run_rows(session, inputs, SIZED_ROWS))


def _run(inputs: Inputs, options: TrajectoryOptions, workspace: Workspace) -> Facts:
    original = sources.located(inputs["original"].identity)
    with sources.open_original(original) as session:
        found = record(session, original.takes, options, workspace.progress)
    _save(found, workspace.folder)
    count = len(found.inputs[lcm.SAMPLE])
    return {"inputs": count}


def _save(found: Recorded, folder: Path) -> None:
    save_tensors(folder / TENSORS, found.inputs)
    save_tensors(folder / RECORDED, found.answers)
    found.rollout.save(folder / FURTHER["rollout"])
    if found.sized:
        save_sized(folder / FURTHER["sizes"], found.sized)


def _outputs(inputs: Inputs, _options: OutputsOptions, workspace: Workspace) -> Facts:
    shutil.copyfile(inputs["golden"].path(RECORDED), workspace.folder / TENSORS)
    return {}


class LcmProbe(Probe):
    """Four steps from noise, teacher-forced."""

    name = "lcm"

    def nodes(self, original: Original, asked: Asked) -> tuple[Node, ...]:
        """Return the node that records trajectories."""
        stage: Stage[Any] = Stage(
            "trajectories", 2, {"original": "original"}, "tensors", FORMS[original.form].libraries, _run
        )
        return (Node(GOLDEN, stage, _options(asked), {"original": ORIGINAL}),)

    def described(self, images: str, count: int) -> str:  # noqa: ARG002 - there are none
        """Return how many trajectories they are of."""
        return f"{count // lcm.STEPS} trajectories of {lcm.STEPS} LCM steps"

    def prompts(self, original: Original, file: str | None, most: int, *, few: bool) -> Prompts:
        """Return the prompts of trajectories to calibrate on: a file's, or seeded ones where the model knows no others."""
        seeded = original.options.random_weights or original.name in SHIPPED
        return calibrate_lcm.resolve_prompts(original, file, most // lcm.STEPS, seeded=seeded, few=few)

    def walked(self, original: Original, prompts: Prompts, graph: str) -> Node:
        """Return the node that walks trajectories with a graph and takes down what it is given."""
        options = calibrate_lcm.WalkOptions(prompts, original.takes)
        return Node(CALIBRATION, calibrate_lcm.STAGE, options, {"graph": graph, "golden": GOLDEN})

    def outputs(self, original: Original) -> Stage[OutputsOptions]:  # noqa: ARG002 - the trajectories know
        """Return the stage that takes over what was recorded on the way: asking 860 M parameters again takes minutes."""
        return Stage("recorded-outputs", 1, {"original": "original", "golden": "tensors"}, "tensors", (), _outputs)

    def golden(self, original: Original, asked: Asked) -> Golden:
        """Record trajectories."""
        with sources.open_original(original) as session:
            found = record(session, original.takes, _options(asked), lambda _done, _total: None)
        return Golden(found.inputs, {golden.ORIGINAL: found.answers}, found.sized, found.rollout)


def _options(asked: Asked) -> TrajectoryOptions:
    return TrajectoryOptions(asked.count, {axis: sizes for axis, sizes in asked.tried.items() if sizes})


PROBE = LcmProbe()
