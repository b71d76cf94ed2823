"""What a source text is meant for: a model by name, or a file or folder that is there or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploykit.errors import UsageError
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.workflow import memory


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("best.pt", "best.pt does not exist"),
        ("model.onnx", "model.onnx does not exist"),
        ("runs/last.pth.tar", "runs/last.pth.tar does not exist"),
        ("Engine.PLAN", "Engine.PLAN does not exist"),
        ("./nowhere", "nowhere does not exist"),
        ("google/vit-base", "google/vit-base does not exist"),
        ("~/model", "~/model does not exist"),
        ("empty/", "empty is a folder in which no model lies: it has neither config.json nor unet/config.json"),
        ("pipe.onnx", "pipe.onnx is no regular file"),
        ("loop.onnx", "loop.onnx can't be read: Too many levels of symbolic links"),
        (f"{'n' * 300}.onnx", "nnn.*…nnn.*onnx can't be read: File name too long"),
        ("weights.pt", "weights.pt is no model that stands by itself"),
        ("\udcff.onnx", r"\\udcff\.onnx does not exist"),
    ],
)
def test_what_is_meant_as_a_file_and_is_none_is_told_so(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.onnx")
    Path("empty").mkdir()
    Path("loop.onnx").symlink_to("loop.onnx")
    Path("weights.pt").write_bytes(b"x")
    with pytest.raises(UsageError, match=rf"^{told}") as caught:
        sources.resolve(text)
    caught.value.message.encode()


def test_a_name_with_a_tag_is_no_file() -> None:
    with pytest.raises(UsageError, match=r"'resnet18\.nonsense' has no such tag"):
        sources.resolve("resnet18.nonsense", SourceOptions(random_weights=True))
    with pytest.raises(UsageError, match="'resnet81' is no model that I know"):
        sources.resolve("resnet81")


@pytest.mark.parametrize("scheme", ["hf", "lcm", "file"])
@pytest.mark.parametrize("name", ["pipe", "loop", "n" * 300, "\udcff"])
def test_schemes_refuse_what_is_no_file_and_no_folder_at_once(
    scheme: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    with pytest.raises(UsageError) as caught:
        sources.resolve(f"{scheme}:./{name}")
    caught.value.message.encode()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("option", ["weights", "labels"])
@pytest.mark.parametrize("name", ["pipe.pth", "loop.pth", f"{'n' * 300}.pth", "folder.pth", "gone.pth"])
def test_files_that_options_name_are_refused_at_once(option: str, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    (tmp_path / "folder.pth").mkdir()
    given = {option: str(tmp_path / name)} | ({"random_weights": True} if option == "labels" else {})
    with pytest.raises(UsageError, match=rf"\(given as --{option}\)"):
        memory.resolve("resnet18", SourceOptions(**given))  # type: ignore[arg-type]
