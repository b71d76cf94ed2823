"""The UNet of 860 M parameters: what it takes to make it, and what is left when that is broken off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from benchmarks.lcm_sd15 import MODEL, OPEN
from benchmarks.watched import watched

import deploykit

pytest.importorskip("diffusers")

#: Of the fp32 weights.
MOST = 1.5
FREE_DISK = 40e9
ALONE = ("export", MODEL, "--random-weights", "--ort", "--no-verify", "--no-bench")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads anonymous memory from /proc"),
    pytest.mark.skipif(psutil.disk_usage(tempfile.gettempdir()).free < FREE_DISK, reason="needs 40 GB of free disk"),
]


def test_both_precisions_are_made_without_a_second_copy_of_the_weights(tmp_path: Path) -> None:
    for precision, share in (("--fp32", 1.0), ("--fp16", 0.5)):
        out = tmp_path / precision.strip("-")
        words = [sys.executable, "-m", "deploykit", *ALONE, precision, *OPEN, "--out", str(out)]
        ran = watched(words, tmp_path / "cache")
        assert ran.code == 0
        manifest = deploykit.Bundle.open(out).manifest
        weights = 4 * manifest.source.parameters
        assert ran.peak <= MOST * weights, f"{precision}: {ran.peak / weights:.2f} of the weights"
        (artifact,) = manifest.artifacts
        assert sum(record.bytes for record in artifact.files) == pytest.approx(share * weights, rel=0.02)


def test_ctrl_c_in_the_middle_of_saving_leaves_nothing_behind(tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    words = [sys.executable, "-m", "deploykit", *ALONE, "--fp32", "--out", str(out)]
    process = subprocess.Popen(
        words, env={**os.environ, "DEPLOYKIT_CACHE": str(cache)}, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not _is_half_written(cache):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert not (out / "manifest.json").exists()
    assert list(cache.rglob("*.data")) == [], "what was half written is gone; what was finished before stays"


def _is_half_written(cache: Path) -> bool:
    for path in cache.rglob("*.data"):
        try:
            if 1e9 < path.stat().st_size < 3e9:
                return True
        except FileNotFoundError:  # renamed meanwhile
            continue
    return False
