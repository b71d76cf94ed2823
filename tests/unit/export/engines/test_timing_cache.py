"""What a library measured is kept for one version, one GPU and one driver, and given back as it was or not at all."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.errors import MissingComponentError
from deploykit.export.engines.timing_cache import TimingCache, timing_cache
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.tensorrt_library import NATIVE, RTX


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "new" / "one")
    assert cache.read() == b""
    for kept in (b"measured", b"", b"measured anew"):
        cache.write(kept)
        assert cache.read() == kept
    assert [path.name for path in cache.path.parent.iterdir()] == ["one"]


@pytest.mark.parametrize(
    "change", [lambda whole: whole[:-1], lambda whole: b"x" + whole[1:], lambda _: b"", lambda whole: whole + b"x"]
)
def test_what_was_changed_is_not_given_to_a_library(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    cache = TimingCache(tmp_path / "one")
    cache.write(b"measured")
    cache.path.write_bytes(change(cache.path.read_bytes()))
    assert cache.read() == b""


def test_another_gpu_version_or_driver_has_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: ctypes.CDLL
) -> None:
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
    names = []
    for version, device in (("10.3.0.26", "cuda:0"), ("11.4.0.106", "cuda:0"), ("11.4.0.106", "cuda:1")):
        found = timing_cache(NATIVE, version, device)
        assert found is not None
        assert found.path.parent == tmp_path / "timings"
        names.append(found.path.name)
    assert names == [
        "tensorrt-10.3.0.26-Fake-3090-SM-86-driver-13010",
        "tensorrt-11.4.0.106-Fake-3090-SM-86-driver-13010",
        "tensorrt-11.4.0.106-Fake-4090-SM-89-driver-13010",
    ]


def test_a_library_that_measures_nothing_has_none() -> None:
    assert timing_cache(RTX, "1.7.1.116", "cuda:0") is None


def test_without_a_gpu_there_is_nothing_to_measure_on() -> None:
    if not cuda.lacking(cuda.FIRST):
        pytest.skip("there is a GPU")
    with pytest.raises(MissingComponentError):
        timing_cache(NATIVE, "11.4.0.106", "cuda:0")


def test_where_no_cache_folder_is_known_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, driver: ctypes.CDLL) -> None:
    monkeypatch.delenv("DEPLOYKIT_CACHE", raising=False)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert timing_cache(NATIVE, "11.4.0.106", "cuda:0") is None
