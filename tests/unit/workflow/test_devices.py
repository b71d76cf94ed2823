"""Where artifacts run, and what becomes of those that can't run where a user wants all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support import manifest

from deploykit.artifact import RunConfig
from deploykit.workflow.devices import runs_on

RUNS = (
    RunConfig("onnxruntime", precision="f32"),
    RunConfig("emulator", precision="f16"),
    RunConfig("onnxruntime", device="cuda:0", precision="f32"),
)


def test_without_a_device_everything_runs_where_it_says() -> None:
    artifact = replace(manifest().artifacts[0], runs=RUNS)
    assert runs_on(artifact, None) == RUNS


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_device_takes_all_but_what_stands_in_and_each_once(device: str) -> None:
    artifact = replace(manifest().artifacts[0], runs=RUNS)
    assert runs_on(artifact, device) == (RunConfig("onnxruntime", device="cuda:0", precision="f32"),)
