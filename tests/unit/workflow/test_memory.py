"""What was resolved is remembered as long as it is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from deploykit.errors import UsageError
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.workflow import memory

NAME = "mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what is really resolved; keep answers in a folder of the test's own."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    resolve = sources.resolve

    def counted(source: str, options: SourceOptions | None = None) -> Original:
        told.append(source)
        return resolve(source, options)

    monkeypatch.setattr("deploykit.models.sources.resolve", counted)
    return told


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model(NAME, num_classes=3).state_dict(), path)
    return path


def test_a_second_time_nothing_is_resolved(calls: list[str]) -> None:
    options = SourceOptions(random_weights=True, image_size=64)
    assert memory.resolve(NAME, options) == memory.resolve(NAME, options) == sources.resolve(NAME, options)
    assert memory.resolve(NAME, SourceOptions(random_weights=True)) != memory.resolve(NAME, options)
    assert calls == [NAME] * 3  # the second one is this test's own


def test_changed_weights_are_resolved_again(calls: list[str], weights: Path) -> None:
    options = SourceOptions(weights=str(weights))
    before = memory.resolve(NAME, options)
    save_file({name: value + 1 for name, value in timm.create_model(NAME, num_classes=4).state_dict().items()}, weights)
    after = memory.resolve(NAME, options)
    assert (len(before.labels), len(after.labels), len(calls)) == (3, 4, 2)


def test_changed_labels_are_read_again(calls: list[str], weights: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    options = SourceOptions(weights=str(weights), labels=str(labels))
    with pytest.raises(UsageError, match="does not exist"):
        memory.resolve(NAME, options)
    for names in ("a b c", "x y z"):
        labels.write_text(names.replace(" ", "\n"))
        assert memory.resolve(NAME, options).labels == tuple(names.split())
    assert len(calls) == 3


def test_a_damaged_entry_is_made_anew(calls: list[str], tmp_path: Path) -> None:
    options = SourceOptions(random_weights=True)
    original = memory.resolve(NAME, options)
    for path in (tmp_path / "cache" / memory.FOLDER).iterdir():
        path.write_bytes(b'{"id": 3}')
    assert memory.resolve(NAME, options) == original
    assert len(calls) == 2


def test_code_is_never_remembered(calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_memory.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    options = SourceOptions(image_size=32)
    assert memory.resolve("py:mine_of_memory:net", options) == memory.resolve("py:mine_of_memory:net", options)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_failure(calls: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    options = SourceOptions(random_weights=True)
    assert memory.resolve(NAME, options) == memory.resolve(NAME, options)
    assert len(calls) == 2
