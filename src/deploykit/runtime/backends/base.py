"""Backend and Session: the small protocol that every inference runtime implements, in one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deploykit import heap, registry, telemetry
from deploykit.artifact import RunConfig, TensorSpec
from deploykit.errors import BadInputError, InternalError, MissingComponentError, UnsupportedError, UsageError
from deploykit.optional import COMPONENTS, Component
from deploykit.runtime.backends import onnx_contents, onnx_products, settings
from deploykit.runtime.backends.contents import Product
from deploykit.verdict import Executed, Ran

Tensor = NDArray[Any]
#: Arrays by the names of tensors.
Tensors = Mapping[str, Tensor]
Nanoseconds = NDArray[np.int64]
GROUP = "deploykit.backends"
CPU = "cpu"


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        weight: Name of the weights, of two axes or more.
        axis: Of them, that of the output channels.
        bias: Name of the bias; "" where it has none.
    """

    weight: str
    axis: int
    bias: str


class Session(ABC):
    """An opened model. Public methods check; `_infer` and `_close` do the work.

    A session says where it really runs (`ran`). A runtime that fell back to another device or precision than the RunConfig
    names must not be returned by `Backend.open`.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], ran: Ran) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.ran = ran
        self._open = True

    def infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once.

        Args:
            feeds: One array per input, by name, with the dtype and shape that `inputs` declares.

        Returns:
            One array per output, by name. The arrays are the caller's to keep.

        Raises:
            UsageError: The session is closed, or a feed is missing, unknown, or of another dtype or shape.
        """
        native = self._checked(feeds)
        results = self._infer(native)
        if list(results) != [spec.name for spec in self.outputs]:
            raise InternalError(f"{self.ran.backend} returned outputs {list(results)}; declared: {self.outputs}")
        return results

    def _checked(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `feeds` in the order of `inputs`, contiguous and in native byte order. Raises what `infer` does."""
        if not self._open:
            raise UsageError("this session is closed")
        expected = {spec.name for spec in self.inputs}
        if set(feeds) != expected:
            raise UsageError(f"this model takes inputs {sorted(expected)}, not {sorted(feeds)}")
        for spec in self.inputs:
            problem = spec.mismatch(feeds[spec.name].dtype.name, feeds[spec.name].shape)
            if problem:
                raise UsageError(f"input {problem}")
        return {spec.name: np.asarray(feeds[spec.name], dtype=spec.dtype, order="C") for spec in self.inputs}

    def close(self) -> None:
        """Free the runtime's memory and return it to the system. Closing twice is harmless."""
        if self._open:
            self._open = False
            self._close()
            heap.trim()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts embedded in the file, such as labels and preprocessing, by key."""
        return {}

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Return the layers with weights and the products as the runtime runs them on `feeds`.

        Raises:
            UnsupportedError: This runtime doesn't tell.
        """
        raise UnsupportedError(f"{self.ran.backend} doesn't tell in which precision its layers run: {sorted(feeds)}")

    def infer_float64(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once in float64 throughout, which shows what float32 rounds. Takes what `infer` does and answers in float64.

        Raises:
            UnsupportedError: This runtime or this model can't.
        """
        raise UnsupportedError(f"{self.ran.backend} doesn't compute in float64: {sorted(feeds)}")

    def layers(self) -> tuple[Layer, ...]:
        """Return the layers whose weights `infer_with` can change, in the model's order; () where it can't."""
        return ()

    def weights(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return copies of weights or biases of `layers`, by name.

        Raises:
            UnsupportedError: This runtime doesn't show them.
        """
        raise UnsupportedError(f"{self.ran.backend} doesn't show its weights: {sorted(names)}")

    def infer_with(self, feeds: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Run once with other values for some weights, and put back those that were there.

        Args:
            feeds: As for `infer`.
            changed: Values by the names of `layers`, of the shapes that `weights` returns.

        Raises:
            UnsupportedError: This runtime can't.
        """
        raise UnsupportedError(f"{self.ran.backend} can't run with other weights: {sorted(changed)}")

    def phases(self, feeds: Mapping[str, Tensor], iterations: int) -> dict[str, Nanoseconds]:  # noqa: ARG002 - none here
        """Return how long each part of `iterations` inferences took, (iterations,) each, by name; {} where it has no parts."""
        self._checked(feeds)
        return {}

    @abstractmethod
    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    @abstractmethod
    def _close(self) -> None: ...


class Backend(ABC):
    """One inference runtime.

    Attributes:
        name: As in `RunConfig.backend`.
        module: Key of `deploykit.optional.COMPONENTS`.
        suffixes: Of the main files that it opens.
        judged: Precisions that a file is judged in: full precision, and the runtime's own choice where that may differ.
        stands_in: It computes as another machine would: good to judge by, not to run an application on or to time.
        devices: That it can run on, the one where none is named first; of GPUs the first.
        threaded: A RunConfig may say how many threads compute.
        arithmetics: That a RunConfig may ask for beside the kernels' own.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    judged: ClassVar[tuple[str, ...]] = ("f32",)
    stands_in: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = (CPU,)
    threaded: ClassVar[bool] = True
    arithmetics: ClassVar[tuple[str, ...]] = ()

    @property
    def component(self) -> Component:
        """The library behind it."""
        return COMPONENTS[self.module]

    def default_run(self, precision: str = "auto") -> RunConfig:
        """Return how it runs where only a precision is asked for."""
        return RunConfig(self.name, device=self.devices[0], precision=precision)

    def ways(self, config: RunConfig, device: str) -> tuple[RunConfig, ...]:
        """Return every way to run on `device` what `config` says, the usual one first, whether it is here or not."""
        return (config.on(device),)

    def on(self, config: RunConfig, device: str) -> tuple[RunConfig, ...]:
        """Return those of `ways` that this machine has; where it has none, the usual one."""
        found = self.ways(config, device)
        return tuple(way for way in found if not self.unavailable(way)) or found[:1]

    def settings(self, config: RunConfig) -> Mapping[str, str]:  # noqa: ARG002 - most have the same everywhere
        """Return the hints that a RunConfig on its device may give, each with a regular expression for its value.

        None of them may lead to a file, a library or another device: RunConfigs come with bundles of strangers.
        """
        return {}

    def fault(self, config: RunConfig) -> str:
        """Return what `config` says that this runtime is not told, or ""."""
        if config.arithmetic not in {None, *self.arithmetics}:
            return f"{self.component.title} has no arithmetic {str(config.arithmetic)[: settings.SHOWN]!r}, only its kernels'"
        return settings.fault(self.component.title, config, self.settings(config), threaded=self.threaded)

    def unavailable(self, config: RunConfig) -> str:
        """Return why nothing can run as `config` says on this machine, or "" where something can."""
        if self.component.version() is None:
            return f"{self.component.title} is not installed here"
        return self._misplaced(config)

    def held(self, model: str) -> str:
        """Return the grade (see `deploykit.verdict.GRADES`) that a file's weights are held in; "" where it can't be told.

        Raises:
            BadInputError: The file is damaged.
        """
        return onnx_contents.held(Path(model)) if model.endswith(".onnx") else ""

    def products(self, model: str) -> Iterator[Product]:
        """Yield a file's layers that multiply data in 8 bits by constant weights of int8; none where it can't be told.

        Raises:
            BadInputError: The file is damaged.
        """
        return onnx_products.products(model) if model.endswith(".onnx") else iter(())

    def place(self, config: RunConfig) -> str:
        """Return what this machine has for the device of `config`: no verdict is carried over from other things."""
        return config.device

    def open(self, model: str, config: RunConfig) -> Session:
        """Open `model` so that it runs as `config` says.

        Args:
            model: Path of an artifact's main file; for the backend of originals, the original's source.
            config: How to run it.

        Raises:
            UsageError: `config` is another backend's or says what this one is not told (see `fault`), or `model` has a suffix
                that isn't opened here.
            MissingComponentError: The runtime or the device is not here.
            BadInputError: The file can't be read by this runtime.
            UnsupportedError: The runtime refuses the model or the precision.
        """
        if config.backend != self.name:
            raise UsageError(f"backend {self.name!r} can't run a RunConfig of backend {config.backend!r}")
        if reason := self.fault(config):
            raise UsageError(reason)
        if self.suffixes and not model.endswith(self.suffixes):
            raise UsageError(f"{self.name} opens {' and '.join(self.suffixes)} files, not {model!r}")
        self.component.require()
        if misplaced := self._misplaced(config):
            raise MissingComponentError(misplaced)
        telemetry.switch_off()
        try:
            return self._open(model, config)
        except UnicodeDecodeError as error:  # names, texts, even what runtimes say of them
            raise BadInputError(f"{model} holds text that is not UTF-8: {error}") from error

    def _misplaced(self, config: RunConfig) -> str:
        if kind_of(config.device) in map(kind_of, self.devices):
            return ""
        return f"{self.component.title} has no device {config.device!r}; it runs on {' and '.join(self.devices)}"

    @abstractmethod
    def _open(self, model: str, config: RunConfig) -> Session: ...

    @abstractmethod
    def code(self, file: str, config: RunConfig) -> str:
        """Return stock Python that opens `file` as `config` says, without deploykit."""


def kind_of(device: str) -> str:
    """Return what kind of device it is, without its number: "cuda" of "cuda:0"."""
    return device.partition(":")[0]


def get_backend(name: str) -> Backend:
    """Return the backend registered as `name`.

    Raises:
        UsageError: There is none.
    """
    return registry.load(GROUP, name, Backend)


def backend_names() -> tuple[str, ...]:
    """Return the names of all registered backends."""
    return registry.names(GROUP)


def backend_for(file: str) -> Backend:
    """Return the backend that files named like `file` are made for: of those that open it, the one that opens least else.

    Raises:
        UsageError: No backend opens such files.
    """
    backends = [backend for backend in map(get_backend, backend_names()) if not backend.stands_in]
    found = sorted((backend for backend in backends if file.endswith(backend.suffixes)), key=lambda b: len(b.suffixes))
    if not found:
        suffixes = sorted({suffix for backend in backends for suffix in backend.suffixes})
        raise UsageError(f"{file} is nothing that a backend opens: expected {', '.join(suffixes)}")
    return found[0]
