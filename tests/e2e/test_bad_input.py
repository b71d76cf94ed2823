"""Input that can't be used, on the real command line: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.e2e.support import run

SMALL = "mobilenetv3_small_050"
PREFIX = "error: "


class Evil:
    """Creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    module: torch.nn.Module = timm.create_model(SMALL, num_classes=7)
    return module.state_dict()


def refused(code: int, *words: str) -> str:
    """Run an export that must end with `code` and one line that says why; return that line."""
    outcome = run("export", *words)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith(PREFIX)]
    return line.removeprefix(PREFIX)


def test_a_name_that_is_nearly_one() -> None:
    line = refused(2, "convnext_tinny")
    assert "'convnext_tinny' is no model" in line
    assert "convnext_tiny" in line.partition("Near: ")[2]


@pytest.mark.parametrize("words", [("file:gone.onnx",), (SMALL, "--weights", "gone.pth"), ("hf:./gone",)])
def test_a_path_that_is_not_there(words: tuple[str, ...]) -> None:
    assert "gone" in refused(2, *words)


def test_weights_that_are_damaged(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    data = whole.read_bytes()
    nan = dict(state) | {"classifier.bias": torch.full((7,), float("nan"))}
    other = {name: value for name, value in state.items() if "classifier" not in name}
    cases = {
        "truncated.safetensors": data[: len(data) // 2],
        "garbage.safetensors": os.urandom(4096),
        "garbage.pth": os.urandom(4096),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(7, SMALL, "--weights", str(tmp_path / name))
    save_file(nan, tmp_path / "nan.safetensors")
    assert "classifier.bias holds NaN" in refused(7, SMALL, "--weights", str(tmp_path / "nan.safetensors"))
    save_file(other, tmp_path / "other.safetensors")
    told = refused(7, SMALL, "--num-classes", "7", "--weights", str(tmp_path / "other.safetensors"))
    assert "2 missing (first: classifier." in told
    assert "other shape" in refused(7, SMALL, "--num-classes", "9", "--weights", str(whole))


def test_a_pickle_that_brings_code_along_does_not_run_it(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": state, "callback": Evil(mark)}, tmp_path / "evil.pth")
    told = refused(7, SMALL, "--weights", str(tmp_path / "evil.pth"))
    assert "holds more than weights, and nothing of it was run" in told
    assert not mark.exists()


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    refused(2, f"hf:{tmp_path}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 30 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_runs(small_disk: Path, tmp_path: Path) -> None:
    words = ("export", "mobilenetv3_large_100", "--random-weights", "--no-bench", "--out", str(tmp_path / "b"))
    outcome = run(*words, env={"DEPLOYKIT_CACHE": str(small_disk)})
    assert outcome.code == 5
    assert "0.03 GB free; this export may need 0.11 GB" in outcome.err
    assert not (tmp_path / "b").exists()


def test_a_cache_that_fills_up_midway(small_disk: Path, tmp_path: Path) -> None:
    words = ("export", "tiny-convnext", "--no-bench", "--out", str(tmp_path / "b"))
    outcome = run(*words, env={"DEPLOYKIT_CACHE": str(small_disk)})
    assert outcome.code == 5, outcome.err
    assert "can't be written: No space left on device" in outcome.err
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_fills_its_disk_leaves_the_one_that_was_there(small_disk: Path) -> None:
    out = str(small_disk / "b")
    first = run("export", "tiny-convnext", "--no-bench", "--no-verify", "--out", out)
    assert first.code == 0, first.err
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - 8_500_000))
    more = ("--ort", "--openvino", "--no-bench", "--no-verify", "--dynamic", "batch", "--out", out)
    outcome = run("export", "tiny-convnext", *more)
    assert outcome.code == 5, outcome.err
    assert run("verify", out).code == 0
