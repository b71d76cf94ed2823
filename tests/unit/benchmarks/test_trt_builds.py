"""Builds beside their limits: what a process tells of one, and which limit a row misses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import trt_builds
from benchmarks.trt_builds import MOST_BYTES, MOST_SECONDS, Build, Kind, Row
from tests.unit.export.engines.test_tensorrt_build import image, network

from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.runtime.backends.tensorrt_record import VERSION, BuildOrder
from deploykit.verdict import Executed

ORDER = BuildOrder(VERSION, RTX.module, "fp16", (image(),), (), (86, 89), "0" * 64, {})
BUILD = Build(2.0, 0.1, 40_000_000, 200_000_000, 10_000_000, "a")
LAYERS = (Executed("a", "Conv", "int8", 3), Executed("b", "Conv", "f16", 1))


def row(*builds: Build) -> Row:
    return Row("net", Kind("int8"), ORDER, builds, LAYERS)


def test_a_row_within_its_limits_tells_them() -> None:
    cells = [cell.strip() for cell in row(BUILD, replace(BUILD, seconds=3.0)).text.strip("|").split("|")]
    assert dict(zip(trt_builds.COLUMNS, cells, strict=True)) == {
        "network": "net",
        "engine": "int8, batch 1",
        "SM": "86, 89",
        "build, s": "2.50 (2.00 to 3.00)",
        "parser, s": "0.10",
        "engine, MB": "10.0",
        "peak, MB": "200",
        "limit, MB": "370",
        "same bytes": "yes",
        "int8, %": "75.0",
        "limits": "kept",
    }


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"seconds": MOST_SECONDS + 0.5}, ("10.5 s",)),
        ({"peak": BUILD.bare + MOST_BYTES + 3 * BUILD.size + 1_000_000}, ("371 MB",)),
        ({"peak": BUILD.bare + MOST_BYTES + 3 * BUILD.size}, ()),
    ],
)
def test_every_limit_can_be_missed(change: dict[str, Any], missed: tuple[str, ...]) -> None:
    assert row(replace(BUILD, **change)).missed == missed


def test_other_bytes_and_the_worst_memory_of_any_build_count() -> None:
    assert row(BUILD, replace(BUILD, sha256="b")).missed == ("other bytes",)
    assert row(BUILD, replace(BUILD, peak=900_000_000), BUILD).missed == ("900 MB",)


@pytest.mark.skipif(COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here")
def test_a_process_tells_what_one_build_took(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_bytes(ORDER.to_bytes())
    program = str(Path(trt_builds.__file__).with_name("trt_build_process.py"))
    words = [sys.executable, program, str(network(tmp_path)), str(tmp_path / "order.json"), str(tmp_path / "engine")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["refused"] == 0
    assert told["build_s"] > 0.0
    assert 10_000_000 < told["bare"] < told["peak"] < 1_000_000_000
    assert (tmp_path / "engine").read_bytes().startswith(RTX.magic)
