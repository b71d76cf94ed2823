"""Fixtures that several suites share: a cache of the test run's own, and one real export."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import deploykit
from tests.support import EVAL_SIZE

# Tests run side by side: threads of torch that wait for one another leave the processor to others, and are as many as ever.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples in every run of CI; new ones on every developer's machine. Never a deadline: that would be a timed test.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")


def pytest_collection_finish() -> None:
    """Let garbage collections leave out what is here before the first test and stays: exports ask for one at each step."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of it. It begins empty; processes side by side share it."""
    before = os.environ.get("DEPLOYKIT_CACHE")
    folder = tmp_path_factory.getbasetemp()
    os.environ["DEPLOYKIT_CACHE"] = str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache")
    yield
    if before is None:
        del os.environ["DEPLOYKIT_CACHE"]
    else:
        os.environ["DEPLOYKIT_CACHE"] = before


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Exported:
    """tiny-convnext as ONNX and OpenVINO IR, judged and timed, as the main job does it. Not to be changed: copy it."""
    options = deploykit.ExportOptions(
        cells=("fp32:ort", "fp32:openvino"),
        out=str(tmp_path_factory.mktemp("bundle") / "tiny-convnext"),
        eval_size=EVAL_SIZE,
        bench_options=deploykit.BenchOptions(rounds=6, burst_ms=10.0, warmup_ms=30.0),
    )
    return deploykit.export_model("tiny-convnext", options)


@pytest.fixture(scope="session")
def bundle(exported: deploykit.Exported) -> Path:
    """The folder of `exported`."""
    return exported.bundle.root
