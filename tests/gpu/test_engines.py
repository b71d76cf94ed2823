"""Engines on a real GPU: built, run, compared with the original. Skipped where there is none, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploykit
from deploykit.runtime.backends.base import get_backend
from deploykit.verdict import Verdict

TARGETS = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}

pytestmark = pytest.mark.gpu


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """A target whose library and GPU are here."""
    backend = get_backend(TARGETS[request.param])
    if reason := backend.unavailable(backend.default_run()):
        pytest.skip(f"{request.param}: {reason}")
    return str(request.param)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dynamic", [(), ("batch",)], ids=["static", "open"])
def test_an_engine_passes_its_gates(target: str, precision: str, dynamic: tuple[str, ...], tmp_path: Path) -> None:
    options = deploykit.ExportOptions(
        cells=(f"{precision}:{target}",),
        out=str(tmp_path / "bundle"),
        dynamic=dynamic,
        profile=("batch=1,4,8",) if dynamic else (),
        bench=False,
    )
    exported = deploykit.export_model("tiny-convnext", options)
    assert exported.report.verdict is Verdict.PASS
    assert exported.report.not_run == ()
    assert deploykit.verify(exported.bundle.root).verdict is Verdict.PASS


def test_int8_runs_in_8_bits(target: str, tmp_path: Path) -> None:
    options = deploykit.ExportOptions(
        cells=(f"int8:{target}",), out=str(tmp_path / "bundle"), bench=False, repair=False
    )
    exported = deploykit.export_model("tiny-convnext", options)
    assert exported.report.verdict is Verdict.PASS


def test_an_engine_is_timed(target: str, tmp_path: Path) -> None:
    options = deploykit.ExportOptions(
        cells=(f"fp16:{target}",),
        out=str(tmp_path / "bundle"),
        verify=False,
        bench_options=deploykit.BenchOptions(rounds=6, burst_ms=10.0, warmup_ms=30.0),
    )
    exported = deploykit.export_model("tiny-convnext", options)
    assert {timing.candidate for timing in exported.report.timings} >= {f"tiny-convnext.fp16.{target}"}
    assert exported.report.untimed == ()
