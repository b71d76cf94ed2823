"""Calibration of a diffusion model: what its UNet is given along further trajectories, which the exported graph walks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deploykit.arrays import Header
from deploykit.artifact import sha256_of
from deploykit.bundle import load_tensors, save_tensors
from deploykit.errors import BadInputError, Hint, UsageError
from deploykit.export import onnx_files
from deploykit.export.own_run import open_graph
from deploykit.export.probe import Prompts
from deploykit.export.stage import TENSORS, Facts, Inputs, Stage, Workspace
from deploykit.models import lcm
from deploykit.models.interface import Interface
from deploykit.models.original import Original
from deploykit.runtime.backends.base import Tensor, Tensors
from deploykit.runtime.batches import run_rows
from deploykit.runtime.rollout import FURTHER, Rollout

#: Trajectories from seeded prompts, and the fewest that a file may hold.
TRAJECTORIES: Final = 8
#: Numbers of prompts and noise begin here: those of golden inputs, which artifacts are judged by, come before.
FIRST: Final = 1000
HINT: Final = Hint(
    "--calib PROMPTS.npy", "float32 [prompts, tokens, width], as the model's own text encoder gives them"
)


@dataclass(frozen=True)
class WalkOptions:
    """Which trajectories: prompts, and what the model takes."""

    prompts: Prompts
    takes: Interface


def resolve_prompts(original: Original, file: str | None, most: int, *, seeded: bool, few: bool) -> Prompts:
    """Return the prompts to calibrate on.

    Args:
        original: What they are for.
        file: .npy, float32 [prompts, tokens, width]; None takes seeded ones.
        most: How many of them to take.
        seeded: Seeded prompts are what the model knows, or it knows nothing.
        few: Fewer than `TRAJECTORIES` are enough.

    Raises:
        UsageError: None are given to a model that needs real ones, too few, or of another width.
        BadInputError: The file is damaged, or prompts are equal or not finite.
    """
    if file is None:
        if not seeded:
            raise UsageError(
                f"8 bits of {original.id} need prompts: activations are measured along real trajectories", HINT
            )
        return Prompts("", "", TRAJECTORIES)
    states = _read(Path(file), original.takes)
    count = min(len(states), most)
    if count < TRAJECTORIES and not few:
        raise UsageError(
            f"{file} holds {count} prompts; activations are measured on at least {TRAJECTORIES}",
            Hint("--calib-few", "takes them all the same"),
        )
    return Prompts(str(Path(file).resolve()), sha256_of(Path(file)), count)


def _read(path: Path, takes: Interface) -> NDArray[np.float32]:
    """Read prompt embeddings. Raises what `resolve_prompts` does."""
    if not path.is_file():
        raise UsageError(f"--calib {path}: there is no such file", HINT)
    data, width = path.read_bytes(), takes.at({})[lcm.STATES][-1]
    try:
        header = Header.read(io.BytesIO(data))
        fits = header.dtype == np.float32 and len(header.shape) == 3 and header.shape[-1] == width
        told = f"{header.dtype} {list(header.shape)}"
        states: NDArray[np.float32] = header.array(data)
    except Exception as error:  # a damaged header leads numpy's parser to any error there is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path} is no .npy file: {reason}", HINT) from error
    if not fits or 0 in header.shape:
        raise UsageError(f"{path} holds {told}; prompts are float32 [prompts, tokens, {width}]", HINT)
    if not np.isfinite(states).all():
        raise BadInputError(f"{path} holds NaN or infinity")
    if len(np.unique(states.reshape(len(states), -1), axis=0)) < len(states):
        raise BadInputError(f"{path} holds the same prompt twice")
    return states


def _walk(inputs: Inputs, options: WalkOptions, workspace: Workspace) -> Facts:
    golden, count = inputs["golden"], options.prompts.count
    known = Rollout.load(golden.path(FURTHER["rollout"]))
    times = [int(load_tensors(golden.path(TENSORS))[lcm.TIMESTEP][known.rows(step)][0]) for step in range(known.steps)]
    first = {**lcm.inputs_of(options.takes, {}, [times[0]] * count, first=FIRST), **_prompts(options)}
    rows = {name: np.concatenate([array] * known.steps) for name, array in first.items()}
    rows[lcm.TIMESTEP] = np.repeat(np.asarray(times, np.int64), count)
    shape = first[lcm.SAMPLE].shape
    fresh = np.stack([lcm.noise(FIRST + count + step, shape) for step in range(known.steps)])
    taken: list[Tensors] = []
    with open_graph(inputs["graph"].path(onnx_files.MODEL)) as session:

        def ask(feeds: Tensors) -> Tensor:
            taken.append(feeds)
            workspace.progress(len(taken), known.steps)
            return run_rows(session, feeds, 1)[options.takes.output]

        Rollout(known.carried, known.coefficients, fresh, np.empty(shape, np.float32)).play(ask, rows)
    save_tensors(workspace.folder / TENSORS, {name: np.concatenate([feeds[name] for feeds in taken]) for name in rows})
    return {"inputs": count * known.steps, "trajectories": count, "prompts": options.prompts.sha256 or "seeded"}


def _prompts(options: WalkOptions) -> Mapping[str, Tensor]:
    """Return the prompts of the file, where there is one.

    Raises:
        BadInputError: It has changed since it was resolved.
    """
    prompts = options.prompts
    if not prompts.path:
        return {}
    path = Path(prompts.path)
    if not path.is_file() or sha256_of(path) != prompts.sha256:
        raise BadInputError(f"{path} has changed since this began: start again when it is complete")
    return {lcm.STATES: _read(path, options.takes)[: prompts.count]}


STAGE = Stage(
    name="calibration-trajectories",
    version=1,
    takes={"graph": "graph", "golden": "tensors"},
    makes="tensors",
    libraries=("onnxruntime",),
    run=_walk,
)
