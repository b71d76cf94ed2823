"""CUDA's driver, spoken to directly: which GPUs are here, and memory and a stream on one of them.

Whoever runs a TensorRT engine has the driver's library; it needs neither PyTorch nor a package of bindings beside it. The
context is the device's primary one, which CUDA's runtime, and with it TensorRT, uses too.

Source: CUDA Driver API, docs.nvidia.com/cuda/cuda-driver-api. Functions of two versions are named as they are exported.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import Hint, MissingComponentError, ResourceError, UnsupportedError

#: The driver's library, where systems look for it.
LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
#: The device that is meant where none is named.
FIRST: Final = "cuda:0"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: never waits for the default stream
_OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY
_TIMED_EVENT: Final = 0  # CU_EVENT_DEFAULT
_THREAD_LOCAL: Final = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do isn't captured
_NAME_BYTES: Final = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As its maker calls it.
        capability: Compute capability as one number: 86 is 8.6.
        memory: Bytes in all.
    """

    name: str
    capability: int
    memory: int


class Driver:
    """The loaded driver.

    Args:
        name: Of its library.

    Raises:
        MissingComponentError: There is none, or it finds no GPU.
    """

    def __init__(self, name: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise MissingComponentError(f"no NVIDIA driver here: {name} is not installed") from error
        status = int(self._library.cuInit(0))
        if status:
            raise MissingComponentError(f"the NVIDIA driver finds no GPU here: {self._error(status)}")
        version, count = ctypes.c_int(), ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.call("cuDeviceGetCount", ctypes.byref(count))
        #: Of CUDA, as 1000 * major + 10 * minor.
        self.version: int = version.value
        self.gpus: tuple[Gpu, ...] = tuple(self._gpu(index) for index in range(count.value))

    def call(self, function: str, *arguments: Any) -> None:  # noqa: ANN401 - ctypes' own values
        """Call a function of the driver.

        Raises:
            ResourceError: There is not enough memory on the GPU.
            UnsupportedError: It failed otherwise.
        """
        status = int(getattr(self._library, function)(*arguments))
        if status == _OUT_OF_MEMORY:
            raise ResourceError(f"the GPU has too little free memory ({function})")
        if status:
            raise UnsupportedError(f"the NVIDIA driver refuses {function}: {self._error(status)}")

    def _error(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(status, ctypes.byref(text))
        return f"{(text.value or b'unknown').decode()} ({status})"

    def _gpu(self, index: int) -> Gpu:
        name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetName", name, _NAME_BYTES, index)
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, index)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, index)
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), index)
        return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, memory.value)


@functools.cache
def _found(name: str) -> Driver | MissingComponentError:
    try:
        return Driver(name)
    except MissingComponentError as error:
        return error


def driver() -> Driver:
    """Return the driver, loaded once.

    Raises:
        MissingComponentError: There is none, or it finds no GPU.
    """
    found = _found(LIBRARY)
    if isinstance(found, MissingComponentError):
        raise MissingComponentError(found.message, *found.hints)
    return found


def gpu_at(device: str) -> tuple[int, Gpu]:
    """Return the index of the device called "cuda:0", and what it is.

    Raises:
        MissingComponentError: No driver, no GPU, or no such device.
    """
    number = re.fullmatch(r"cuda(?::(\d+))?", device)
    if number is None:
        raise MissingComponentError(f"{device!r} is no CUDA device", Hint("cuda:0", "is the first one"))
    index, gpus = int(number[1] or 0), driver().gpus
    if index >= len(gpus):
        raise MissingComponentError(f"there is no device {device!r} here; GPUs: {len(gpus)}")
    return index, gpus[index]


def lacking(device: str) -> str:
    """Return why there is no such device here, or "" where there is."""
    try:
        gpu_at(device)
    except MissingComponentError as error:
        return error.message
    return ""


def bus_id(index: int) -> str:
    """Return the PCI address of a GPU, by which other libraries know it: "0000:06:00.0"."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    driver().call("cuDeviceGetPCIBusId", text, _NAME_BYTES, index)
    return text.value.decode()


def place(device: str) -> str:
    """Return the GPU's name, its architecture and the driver's version.

    Raises:
        MissingComponentError: No driver, no GPU, or no such device.
    """
    _, gpu = gpu_at(device)
    return f"{gpu.name} SM {gpu.capability} driver {driver().version}"


class Lane:
    """Memory and a stream on one GPU. The thread that made it uses it; `close` gives all back.

    Args:
        driver: The driver.
        index: Of the GPU.
    """

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver = driver
        self._device = index
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._blocks: dict[str, tuple[ctypes.c_uint64, int]] = {}
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), index)
        self.enter()
        driver.call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.value or 0)

    def enter(self) -> None:
        """Make the GPU's context the one of this thread."""
        self._driver.call("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Return the bytes that are free on the GPU."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def block(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes that are kept under `name`.

        Raises:
            ResourceError: There is not enough memory on the GPU.
        """
        if name in self._blocks and self._blocks[name][1] >= size:
            return self._blocks[name][0].value
        self._release(name)
        address = ctypes.c_uint64()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._blocks[name] = address, size
        return address.value

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy of a contiguous array to the GPU; it must live until `wait` returns."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._driver.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self._stream)

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Queue a copy from the GPU and return the array that holds it once `wait` has returned."""
        array = np.empty(shape, dtype)
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._driver.call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream)
        return array

    def wait(self) -> None:
        """Return when everything queued is done.

        Raises:
            UnsupportedError: The GPU failed on it.
        """
        self._driver.call("cuStreamSynchronize", self._stream)

    @contextmanager
    def marks(self, count: int) -> Iterator[Marks]:
        """Lend `count` marks that can be set in the stream."""
        handles = [ctypes.c_void_p() for _ in range(count)]
        for handle in handles:
            self._driver.call("cuEventCreate", ctypes.byref(handle), _TIMED_EVENT)
        try:
            yield Marks(self._driver, self._stream, handles)
        finally:
            for handle in handles:
                self._driver.call("cuEventDestroy_v2", handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Note what `enqueue` queues instead of doing it; the graph does all of it at once, on the same memory.

        Raises:
            UnsupportedError: The driver can't capture it, or nothing was queued.
        """
        captured, graph = ctypes.c_void_p(), ctypes.c_void_p()
        self._driver.call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            try:
                enqueue()
            finally:
                self._driver.call("cuStreamEndCapture", self._stream, ctypes.byref(captured))
            self._driver.call("cuGraphInstantiateWithFlags", ctypes.byref(graph), captured, ctypes.c_uint64(0))
        finally:
            if captured.value:
                self._driver.call("cuGraphDestroy", captured)
        return Graph(self._driver, self._stream, graph)

    def close(self) -> None:
        """Give memory, stream and context back."""
        for name in list(self._blocks):
            self._release(name)
        self._driver.call("cuStreamDestroy_v2", self._stream)
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _release(self, name: str) -> None:
        if name in self._blocks:
            self._driver.call("cuMemFree_v2", self._blocks.pop(name)[0])


class Marks:
    """Points in a stream between which time is measured."""

    def __init__(self, driver: Driver, stream: ctypes.c_void_p, handles: list[ctypes.c_void_p]) -> None:
        self._driver = driver
        self._stream = stream
        self._handles = handles

    def set(self, index: int) -> None:
        """Queue a mark: it is passed when everything queued before it is done."""
        self._driver.call("cuEventRecord", self._handles[index], self._stream)

    def milliseconds(self, first: int, last: int) -> float:
        """Return the milliseconds between two marks that were passed; a step is about half a microsecond."""
        taken = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(taken), self._handles[first], self._handles[last])
        return taken.value


class Graph:
    """Work that was captured: launched as a whole, it costs the host one call."""

    def __init__(self, driver: Driver, stream: ctypes.c_void_p, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._stream = stream
        self._handle = handle

    def launch(self) -> None:
        """Queue it."""
        self._driver.call("cuGraphLaunch", self._handle, self._stream)

    def close(self) -> None:
        """Give it back; it must not be running."""
        self._driver.call("cuGraphExecDestroy", self._handle)
