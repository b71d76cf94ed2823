"""ONNX Runtime's ways onto an NVIDIA GPU: its CUDA provider, TensorRT 10 inside it, and TensorRT for RTX as a plugin.

A `RunConfig` names one by its hint "provider"; without one it is CUDA's. Sources: the pages "CUDA" and "TensorRT" of ONNX
Runtime's execution providers, and "Provider options" of NVIDIA's TensorRT-RTX-EP-ABI.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from deploykit.artifact import RunConfig
from deploykit.errors import Hint, UsageError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.onnxruntime_files import first_line, foreign

HINT: Final = "provider"
#: The option of every provider that names the stream to work on, as a number.
STREAM: Final = "user_compute_stream"
_PLUGIN: Final = "onnxruntime_ep_nv_tensorrt_rtx"
_TENSORRT: Final = "tensorrt"
_SILENT: Final = 4
#: Relu of one float, opset 13: the least that a provider has to be loaded for.
_LEAST: Final = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Provider(ABC):
    """One provider.

    Attributes:
        name: ONNX Runtime's name for it.
        remedy: What brings it here.
        switches_tf32: It can be told to multiply float32 without TF32.
    """

    name: str
    remedy: tuple[Hint, ...]
    switches_tf32: bool = False

    @abstractmethod
    def absent(self) -> str:
        """Return why this ONNX Runtime doesn't have it, or ""."""

    @abstractmethod
    def refused(self, index: int) -> str:
        """Return why it can't be loaded for this GPU, or ""."""

    @abstractmethod
    def attach(self, options: Any, settings: Mapping[str, str], index: int) -> list[Any] | None:  # noqa: ANN401 - untyped
        """Add it to a session's options, or return the list of providers that the session is made with."""

    @abstractmethod
    def code(self, config: RunConfig) -> tuple[tuple[str, ...], str]:
        """Return lines that add it to `options` of `ort`, and the further arguments of a session."""

    def settings(self, config: RunConfig, index: int) -> dict[str, str]:
        """Return its options for this run on this GPU."""
        switch = {"use_tf32": str(int(config.precision == "auto"))} if self.switches_tf32 else {}
        return {"device_id": str(index), **switch}

    def lacking(self, device: str) -> str:
        """Return why it can't run on this GPU here, or "" as far as that is known before a file is opened."""
        return self.absent() or cuda.lacking(device) or self.refused(cuda.gpu_at(device)[0])


@dataclass(frozen=True)
class BuiltIn(Provider):
    """A provider that onnxruntime-gpu brings along.

    Attributes:
        library: The module whose import loads the libraries that it needs beside those of CUDA, "" where it needs none.
    """

    library: str = ""

    def absent(self) -> str:
        """Return why this ONNX Runtime was built without it, or ""."""
        import onnxruntime

        if self.name in onnxruntime.get_available_providers():
            return ""
        return f"this ONNX Runtime has no {self.name}: it takes onnxruntime-gpu in its place"

    def refused(self, index: int) -> str:
        """Return why it can't be loaded with its library, or ""."""
        return _tried(self, index) if self.library else ""

    def attach(self, options: Any, settings: Mapping[str, str], index: int) -> list[Any]:  # noqa: ANN401, ARG002 - as declared
        """Load what it needs and return the list of providers."""
        import onnxruntime

        with contextlib.redirect_stdout(io.StringIO()):  # what it can't find it prints, whether or not that matters
            onnxruntime.preload_dlls()
        if self.library and COMPONENTS[self.library].version() is not None:
            importlib.import_module(self.library)
        return [(self.name, dict(settings))]

    def code(self, config: RunConfig) -> tuple[tuple[str, ...], str]:
        """Return lines that load what it needs, and the list of providers."""
        lines = ("ort.preload_dlls()", *([f"import {self.library}"] if self.library else ()))
        return lines, f", providers=[{(self.name, self.settings(config, _index(config)))!r}]"


@dataclass(frozen=True)
class Plugin(Provider):
    """A provider in a package of its own.

    Attributes:
        package: Its module, key of `deploykit.optional.COMPONENTS`.
    """

    package: str = ""

    def absent(self) -> str:
        """Return why its package is not here, or ""."""
        component = COMPONENTS[self.package]
        return "" if component.version() is not None else f"{component.title} is not installed here"

    def refused(self, index: int) -> str:
        """Return why it can't be registered or finds no such GPU, or ""."""
        if said := _registered(self.name, self.package):
            return f"ONNX Runtime can't load {self.name}: {said}"
        if not self._devices()[index : index + 1]:
            return f"{self.name} finds no GPU {index} that it can use"
        return ""

    def attach(self, options: Any, settings: Mapping[str, str], index: int) -> None:  # noqa: ANN401
        """Add it to the options, for this GPU."""
        claimed = {f"has_{STREAM}": "1"} if STREAM in settings else {}
        options.add_provider_for_devices(self._devices()[index : index + 1], {**settings, **claimed})

    def code(self, config: RunConfig) -> tuple[tuple[str, ...], str]:
        """Return lines that register it and add it to the options."""
        index = _index(config)
        lines = (
            f"import {self.package} as ep",
            "ort.register_execution_provider_library(ep.get_ep_name(), ep.get_library_path())",
            "devices = [device for device in ort.get_ep_devices() if device.ep_name == ep.get_ep_name()]",
            f"options.add_provider_for_devices(devices[{index}:{index + 1}], {self.settings(config, index)!r})",
        )
        return lines, ""

    def _devices(self) -> list[Any]:
        import onnxruntime

        return [device for device in onnxruntime.get_ep_devices() if device.ep_name == self.name]


def _loading() -> tuple[type[Exception], ...]:
    """Return what loading a library may raise."""
    return (*foreign(), OSError, ImportError)


@functools.cache
def _registered(name: str, package: str) -> str:
    """Register a plugin, once for the process; return what ONNX Runtime has against it, or ""."""
    import onnxruntime

    try:
        onnxruntime.register_execution_provider_library(name, importlib.import_module(package).get_library_path())
    except _loading() as error:
        return first_line(error)
    return ""


@functools.cache
def _tried(provider: BuiltIn, index: int) -> str:
    """Open the least of files with a provider; return why that can't be done, or ""."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        chosen = provider.attach(options, {"device_id": str(index)}, index)
        session = onnxruntime.InferenceSession(_LEAST, options, providers=chosen, enable_fallback=0)
    except _loading() as error:
        return f"ONNX Runtime can't load {provider.name}: {first_line(error)}"
    return "" if provider.name in session.get_providers() else f"ONNX Runtime can't load {provider.name}"


PROVIDERS: Final[Mapping[str, Provider]] = {
    "cuda": BuiltIn(
        "CUDAExecutionProvider",
        (Hint("pip install 'deploykit[gpu]'", "after: pip uninstall onnxruntime"),),
        switches_tf32=True,
    ),
    "tensorrt": BuiltIn(
        "TensorrtExecutionProvider",
        (Hint("pip install 'tensorrt-cu13<11'", "brings TensorRT 10, which onnxruntime-gpu is built with"),),
        library=_TENSORRT,
    ),
    "rtx": Plugin(
        "NvTensorRTRTXExecutionProvider",
        (Hint("pip install 'deploykit[ort-rtx]'", "beside onnxruntime, not onnxruntime-gpu"),),
        package=_PLUGIN,
    ),
}
_USUAL: Final = next(iter(PROVIDERS))


def provider_of(config: RunConfig) -> Provider:
    """Return the provider that `config` names.

    Raises:
        UsageError: There is none of that name.
    """
    name = config.hints.get(HINT, _USUAL)
    if name not in PROVIDERS:
        raise UsageError(f"{HINT}={name} is no provider of ONNX Runtime for a GPU; there are {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def without_provider(config: RunConfig) -> RunConfig:
    """Return it without its hint "provider": what is left are ONNX Runtime's own words."""
    return replace(config, hints={key: value for key, value in config.hints.items() if key != HINT})


def ways(config: RunConfig) -> tuple[RunConfig, ...]:
    """Return `config`, which names no provider, and the same by every further provider, each in its own precision."""
    further = [name for name in PROVIDERS if name != _USUAL]
    return config, *(replace(config, precision="auto", hints={**config.hints, HINT: name}) for name in further)


def _index(config: RunConfig) -> int:
    return int(config.device.partition(":")[2] or "0")
