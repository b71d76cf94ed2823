from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploykit import paths
from deploykit.errors import ResourceError


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("nowhere/file", "no such folder"),
        ("file/below", "no such folder"),
        ("pipe", "nobody reads this pipe"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null byte"),
    ],
)
def test_what_no_file_can_be_written_to_is_refused_at_once(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResourceError, match=reason):
        paths.check_target(tmp_path / name)


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    paths.check_target(tmp_path / "file")
    paths.check_target(tmp_path / "new")
    paths.check_target(Path(os.devnull))
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "new").exists()
