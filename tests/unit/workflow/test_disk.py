"""Room is looked for where files will really be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from deploykit.errors import ResourceError, UsageError
from deploykit.workflow.disk import by_disk, check_disk, work_folder

#: More weights than any disk holds.
HUGE = 10**18


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("out", "cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def test_without_the_cache_it_is_the_folder_for_temporary_files_that_counts(places: Path) -> None:
    assert work_folder(cached=True) == places / "cache"
    assert work_folder(cached=False) == places / "temporary"
    for cached, hint in ((True, "DEPLOYKIT_CACHE=DIR"), (False, "TMPDIR=DIR")):
        with pytest.raises(ResourceError, match="GB free; this export may need") as caught:
            check_disk(places / "out", HUGE, 1, cached=cached)
        assert hint in {one.action for one in caught.value.hints}
    check_disk(places / "out", 1, 1, cached=True)


def test_what_one_disk_has_to_hold_is_summed_up(places: Path) -> None:
    found = by_disk({places / "cache": 5, places / "out" / "not" / "yet": 2})
    assert found == {places / "cache": 7}


def test_a_shared_memory_disk_is_another(places: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == places.stat().st_dev:
        pytest.skip("no second disk here")
    assert by_disk({places / "cache": 5, other: 2}) == {places / "cache": 5, other: 2}


def test_a_file_in_the_way_is_a_wrong_name(places: Path) -> None:
    (places / "file").touch()
    for out in (places / "file", places / "file" / "below"):
        with pytest.raises(UsageError, match="can't be a folder"):
            check_disk(out, 1, 1, cached=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_is_read_only_is_told_before_anything_runs(places: Path) -> None:
    (places / "out").chmod(0o555)
    with pytest.raises(ResourceError, match=r"out can't be written, to make .*bundle in it"):
        check_disk(places / "out" / "bundle", 1, 1, cached=True)
