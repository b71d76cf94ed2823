"""Trajectories to calibrate on: prompts that can't be, and what the graph is given on its way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info
from tests.unit.export.cast_support import Array, hub, item, node

from deploykit.bundle import load_tensors, save_tensors
from deploykit.errors import BadInputError, DeploykitError, UsageError
from deploykit.export import calibrate_lcm
from deploykit.export.calibrate_lcm import FIRST, TRAJECTORIES, WalkOptions, resolve_prompts
from deploykit.export.probe import Prompts
from deploykit.export.stage import TENSORS, Facts, Item, Workspace
from deploykit.models import lcm, sources
from deploykit.runtime.rollout import FURTHER, Rollout

pytest.importorskip("diffusers")

ORIGINAL = sources.resolve("tiny-lcm-unet")
RNG = np.random.default_rng(2)


def prompts(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


SAME, BROKEN = prompts(9, 4, 32), prompts(9, 4, 32)
SAME[3], BROKEN[2, 1, 1] = SAME[7], np.nan


@pytest.mark.parametrize(
    ("states", "error", "told"),
    [
        (prompts(9, 4, 31), UsageError, r"holds float32 \[9, 4, 31\]; prompts are float32 \[prompts, tokens, 32\]"),
        (prompts(9, 32), UsageError, r"holds float32 \[9, 32\]"),
        (prompts(9, 4, 32).astype(np.float64), UsageError, "holds float64"),
        (prompts(7, 4, 32), UsageError, "holds 7 prompts; activations are measured on at least 8"),
        (SAME, BadInputError, "holds the same prompt twice"),
        (BROKEN, BadInputError, "holds NaN or infinity"),
        (b"", BadInputError, r"is no \.npy file"),
        (b"\x93NUMPY\x01\x00", BadInputError, r"is no \.npy file"),
        (None, UsageError, "there is no such file"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    states: Array | bytes | None, error: type[DeploykitError], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.npy"
    if isinstance(states, bytes):
        path.write_bytes(states)
    elif states is not None:
        np.save(path, states)
    with pytest.raises(error, match=told):
        resolve_prompts(ORIGINAL, str(path), 75, seeded=True, few=False)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInputError, match=r"is no \.npy file"):
        resolve_prompts(ORIGINAL, str(path), 75, seeded=True, few=False)


def test_seeded_prompts_are_for_models_that_know_them() -> None:
    assert resolve_prompts(ORIGINAL, None, 75, seeded=True, few=False) == Prompts("", "", TRAJECTORIES)
    with pytest.raises(UsageError, match="8 bits of tiny-lcm-unet need prompts"):
        resolve_prompts(ORIGINAL, None, 75, seeded=False, few=False)


def test_no_more_prompts_are_taken_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "prompts.npy"
    np.save(path, prompts(20, 6, 32))
    assert resolve_prompts(ORIGINAL, str(path), 12, seeded=False, few=False).count == 12
    assert resolve_prompts(ORIGINAL, str(path), 2, seeded=False, few=True).count == 2


# The walk: a graph that answers with half of its sample


def halving(folder: Path) -> Item:
    """A graph that takes what a UNet does."""
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    given = [make_tensor_value_info(each.name, kinds[each.dtype], each.shape) for each in ORIGINAL.takes.inputs]
    answer = make_tensor_value_info("out_sample", TensorProto.FLOAT, ORIGINAL.takes.answer)
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    graph = make_graph([node("Mul", "sample,half", "out_sample")], "g", given, [answer], [half])
    return hub(make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10), folder)


def walked(folder: Path, given: Prompts) -> tuple[dict[str, Array], Facts]:
    graph, shape = halving(folder / "graph"), (3, 16, 16)
    golden, made = folder / "golden", folder / "made"
    golden.mkdir()
    made.mkdir()
    save_tensors(golden / TENSORS, {lcm.TIMESTEP: np.array([999, 999, 259, 259])})
    coefficients = np.array([[2.0, 1.0, 0.5], [1.0, 1.0, 0.0]])
    nothing = np.zeros((2, 2, *shape), np.float32)
    Rollout("sample", coefficients, nothing, nothing[0]).save(golden / FURTHER["rollout"])
    inputs, options = {"graph": graph, "golden": item("tensors", golden)}, WalkOptions(given, ORIGINAL.takes)
    facts = calibrate_lcm.STAGE.run(inputs, options, Workspace(made, lambda _done, _total: None))
    return load_tensors(made / TENSORS), facts


def test_the_graph_walks_from_noise_that_no_golden_input_has(tmp_path: Path) -> None:
    taken, facts = walked(tmp_path, Prompts("", "", 2))
    assert facts == {"inputs": 4, "trajectories": 2, "prompts": "seeded"}
    assert list(taken[lcm.TIMESTEP]) == [999, 999, 259, 259]
    noise = np.stack([lcm.noise(FIRST + row, (3, 16, 16)) for row in range(2)])
    assert np.array_equal(taken[lcm.SAMPLE][:2], noise)
    fresh = lcm.noise(FIRST + 2, (2, 3, 16, 16))
    np.testing.assert_allclose(taken[lcm.SAMPLE][2:], 2.5 * noise + 0.5 * fresh, rtol=1e-6, atol=1e-6)
    assert np.array_equal(taken[lcm.STATES][0], lcm.prompt(FIRST, 4, 32))
    assert np.array_equal(taken[lcm.STATES][:2], taken[lcm.STATES][2:])


def test_prompts_of_a_file_are_walked_with_unless_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.npy"
    np.save(path, prompts(8, 4, 32))
    given = resolve_prompts(ORIGINAL, str(path), 75, seeded=False, few=False)
    taken, facts = walked(tmp_path / "first", given)
    assert (facts["trajectories"], facts["prompts"]) == (8, given.sha256)
    assert np.array_equal(taken[lcm.STATES][:8], np.load(path))
    np.save(path, prompts(8, 4, 32))
    with pytest.raises(BadInputError, match="has changed since this began"):
        walked(tmp_path / "second", given)
