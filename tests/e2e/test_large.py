"""A network of more weights than a protobuf can hold: one file beside the graph, and no second copy in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from benchmarks.watched import watched

import deploykit
from tests.e2e.support import run

GIANT = ("vit_giant_patch14_dinov2", "--image-size", "70", "--random-weights", "--ort", "--no-bench")
#: Of its fp32 weights.
MOST = 1.6
FREE_DISK = 30e9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads anonymous memory from /proc")
def test_a_giant_lies_in_two_files_and_is_held_once(tmp_path: Path) -> None:
    if psutil.disk_usage(str(tmp_path)).free < FREE_DISK:
        pytest.skip(f"needs {FREE_DISK / 1e9:.0f} GB of free disk")
    out = tmp_path / "giant"
    ran = watched([sys.executable, "-m", "deploykit", "export", *GIANT, "--out", str(out)], tmp_path / "cache")
    assert ran.code == 0
    manifest = deploykit.Bundle.open(out).manifest
    (artifact,) = manifest.artifacts
    weights = 4 * manifest.source.parameters
    assert weights > 2**32
    main, data = artifact.files
    assert main.bytes < 10e6
    assert data.bytes == pytest.approx(weights, rel=0.02)
    assert data.path == f"vit_giant_patch14_dinov2.fp32.{data.sha256[:8]}.data"
    assert [judgement.verdict for judgement in manifest.judgements] == [deploykit.Verdict.PASS]
    assert ran.peak <= MOST * weights, f"{ran.peak / weights:.2f} of the weights"
    verified = run("verify", str(out))
    assert verified.code == 0, verified.out + verified.err
