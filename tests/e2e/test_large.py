"""A network of more weights than a protobuf can hold: one file beside the graph, and no second copy in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import deploykit
from tests.e2e.support import run

GIANT = ("vit_giant_patch14_dinov2", "--image-size", "70", "--random-weights", "--ort", "--no-bench")
#: Of its fp32 weights.
MOST = 1.6
FREE_DISK = 30e9


def anonymous(pid: int) -> int:
    """Return the bytes of a process that no file stands behind."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_of(words: list[str], env: dict[str, str]) -> tuple[int, int]:
    """Run a process; return its exit code and the most anonymous memory that its tree held at once."""
    process = subprocess.Popen([sys.executable, "-m", "deploykit", *words], env={**os.environ, **env})
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            tree = [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            break
        peak = max(peak, sum(anonymous(pid) for pid in tree))
        time.sleep(0.05)
    return process.wait(), peak


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads anonymous memory from /proc")
def test_a_giant_lies_in_two_files_and_is_held_once(tmp_path: Path) -> None:
    if psutil.disk_usage(str(tmp_path)).free < FREE_DISK:
        pytest.skip(f"needs {FREE_DISK / 1e9:.0f} GB of free disk")
    out = tmp_path / "giant"
    code, peak = peak_of(["export", *GIANT, "--out", str(out)], {"DEPLOYKIT_CACHE": str(tmp_path / "cache")})
    assert code == 0
    manifest = deploykit.Bundle.open(out).manifest
    (artifact,) = manifest.artifacts
    weights = 4 * manifest.source.parameters
    assert weights > 2**32
    main, data = artifact.files
    assert main.bytes < 10e6
    assert data.bytes == pytest.approx(weights, rel=0.02)
    assert data.path == f"vit_giant_patch14_dinov2.fp32.{data.sha256[:8]}.data"
    assert [judgement.verdict for judgement in manifest.judgements] == [deploykit.Verdict.PASS]
    assert peak <= MOST * weights, f"{peak / weights:.2f} of the weights"
    verified = run("verify", str(out))
    assert verified.code == 0, verified.out + verified.err
