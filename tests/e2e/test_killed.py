"""`kill -9` at any moment: the manifest that is there is true, and the next run works."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import deploykit
from tests.e2e.support import fresh, run

MOMENTS = 20


def _words(out: Path, batch: int) -> list[str]:
    options = ["--ort", "--openvino", "--no-bench", "--eval-size", "32", "--batch", str(batch)]
    return ["export", "tiny-convnext", *options, "--out", str(out)]


def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for batch in (1, 2):  # both warm, so that the moments fall among the commits
        assert run(*_words(tmp_path / f"warm{batch}", batch)).code in {0, 6}
    started = time.perf_counter()
    assert fresh(*_words(out, 1)).code in {0, 6}
    whole = time.perf_counter() - started
    rng = random.Random(20)
    killed = 0
    for moment in range(MOMENTS):
        words = [sys.executable, "-m", "deploykit", *_words(out, 1 + moment % 2)]
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(whole * rng.uniform(0.3, 1.0))
            whole = time.perf_counter() - started  # the machine has less to do than before
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        deploykit.Bundle.open(out).check()
    assert killed >= MOMENTS // 2, "most runs were over before they were killed"
    assert run(*_words(out, 2)).code in {0, 6}
    bundle = deploykit.Bundle.open(out)
    bundle.check()
    described = {record.path for record in bundle.manifest.files} | {"manifest.json", ".deploykit-journal.json"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} <= described


def test_killed_during_the_first_export_leaves_a_folder_that_the_next_one_takes(tmp_path: Path) -> None:
    out, cache = tmp_path / "bundle", {"DEPLOYKIT_CACHE": str(tmp_path / "cold")}
    rng = random.Random(4)
    import os

    for _ in range(3):
        words = [sys.executable, "-m", "deploykit", *_words(out, 1)]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **cache}
        )
        time.sleep(rng.uniform(0.5, 6.0))
        process.kill()
        process.wait()
        if (out / "manifest.json").exists():
            deploykit.Bundle.open(out).check()
    assert run(*_words(out, 1), env=cache).code in {0, 6}
    deploykit.Bundle.open(out).check()
