"""Memory, streams and GPUs through the driver's own functions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import MissingComponentError, ResourceError, UnsupportedError
from deploykit.runtime.backends import cuda


def test_no_driver_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libabsent.so.1")
    with pytest.raises(MissingComponentError, match=r"no NVIDIA driver here: libabsent\.so\.1"):
        cuda.driver()
    with pytest.raises(MissingComponentError, match="no NVIDIA driver here"):
        cuda.gpu_at("cuda:0")


def test_a_driver_without_a_gpu_is_told_by_its_own_name_of_the_error(
    fake_driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_INIT", "100")
    with pytest.raises(MissingComponentError, match=r"finds no GPU here: CUDA_ERROR_NO_DEVICE \(100\)"):
        cuda.Driver(str(fake_driver))


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:", "npu:7", "cuda:-1"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(MissingComponentError, match="no CUDA device"):
        cuda.gpu_at(device)


def test_gpus_are_found_with_what_they_are(driver: ctypes.CDLL) -> None:
    assert cuda.driver().version == 13010
    assert cuda.gpu_at("cuda:0") == (0, cuda.Gpu("Fake 3090", 86, 24 << 30))
    assert cuda.gpu_at("cuda:1") == (1, cuda.Gpu("Fake 4090", 89, 24 << 30))
    assert cuda.gpu_at("cuda") == cuda.gpu_at("cuda:0")
    with pytest.raises(MissingComponentError, match=r"no device 'cuda:2' here; GPUs: 2"):
        cuda.gpu_at("cuda:2")


def test_what_goes_up_comes_down_and_all_is_given_back(driver: ctypes.CDLL) -> None:
    lane = cuda.Lane(cuda.driver(), 1)
    sent = np.arange(12, dtype=np.float32).reshape(3, 4)
    address = lane.block("x", sent.nbytes)
    assert lane.block("x", 8) == address, "a smaller need takes what is there"
    lane.upload(sent, address)
    back = lane.download(address, (3, 4), "float32")
    assert driver.fakePending() == 2
    lane.wait()
    assert driver.fakePending() == 0
    np.testing.assert_array_equal(back, sent)
    lane.block("x", 4096)
    assert driver.fakeHeld() == 3, "one block, one stream, one context"
    lane.close()
    assert driver.fakeHeld() == 0


def test_an_empty_tensor_has_an_address_too(driver: ctypes.CDLL) -> None:
    lane = cuda.Lane(cuda.driver(), 0)
    assert lane.block("nothing", 0) > 0
    lane.close()


def test_too_little_memory_is_a_lack_and_nothing_leaks(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_FREE", "1000")
    lane = cuda.Lane(cuda.driver(), 0)
    assert lane.free_memory() == 1000
    lane.block("x", 900)
    with pytest.raises(ResourceError, match="too little free memory"):
        lane.block("x", 2000)
    lane.close()
    assert driver.fakeHeld() == 0


def test_a_failure_on_the_gpu_is_told_when_it_is_waited_for(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_SYNC", "700")
    lane = cuda.Lane(cuda.driver(), 0)
    with pytest.raises(UnsupportedError, match=r"cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS \(700\)"):
        lane.wait()
    lane.close()


def test_time_is_measured_between_marks_and_the_marks_are_given_back(driver: ctypes.CDLL) -> None:
    lane = cuda.Lane(cuda.driver(), 0)
    with lane.marks(3) as marks:
        for index in range(3):
            marks.set(index)
        assert (marks.milliseconds(0, 1), marks.milliseconds(0, 2)) == (1.0, 2.0)
        assert driver.fakeHeld() == 5, "three marks, a stream, a context"
    assert driver.fakeHeld() == 2
    lane.close()


def test_a_graph_is_captured_launched_and_given_back(driver: ctypes.CDLL) -> None:
    lane = cuda.Lane(cuda.driver(), 0)
    before, queued = driver.fakeLaunched(), []
    graph = lane.capture(lambda: queued.append("once"))
    assert queued == ["once"]
    graph.launch()
    graph.launch()
    assert driver.fakeLaunched() - before == 2
    lane.wait()
    graph.close()
    lane.close()
    assert driver.fakeHeld() == 0


def test_what_fails_while_it_is_captured_is_told_and_the_stream_is_free_again(driver: ctypes.CDLL) -> None:
    lane = cuda.Lane(cuda.driver(), 0)

    def refuse() -> None:
        raise UnsupportedError("no")

    with pytest.raises(UnsupportedError, match="no"):
        lane.capture(refuse)
    lane.capture(lambda: None).close()
    lane.close()
    assert driver.fakeHeld() == 0


def test_what_cannot_be_captured_is_refused(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUDA_CAPTURE", "700")
    lane = cuda.Lane(cuda.driver(), 0)
    with pytest.raises(UnsupportedError, match="refuses cuStreamEndCapture"):
        lane.capture(lambda: None)
    lane.close()
    assert driver.fakeHeld() == 0


def test_a_device_has_a_place_or_a_reason(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.place("cuda:1") == "Fake 4090 SM 89 driver 13010"
    assert cuda.bus_id(1) == "0000:07:00.0"
    assert cuda.lacking("cuda:0") == ""
    assert "no device 'cuda:5'" in cuda.lacking("cuda:5")
