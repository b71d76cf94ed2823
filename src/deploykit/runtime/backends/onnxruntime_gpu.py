"""An ONNX file on an NVIDIA GPU by one of ONNX Runtime's providers, all of it or not at all.

ONNX Runtime goes on without a provider that it can't load, and gives the CPU every node that a provider can't run; both are
errors here. TF32 is off where f32 is asked for, and a provider that can't be told so is refused then: by itself ONNX Runtime
has it on, and that isn't f32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from deploykit.artifact import RunConfig
from deploykit.errors import Hint, MissingComponentError, UnsupportedError
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import Tensor
from deploykit.runtime.backends.gpu import GpuSession, Place
from deploykit.runtime.backends.onnxruntime_files import failed, first_line, foreign, specs, translated
from deploykit.runtime.backends.onnxruntime_providers import STREAM, Provider, provider_of
from deploykit.verdict import Ran

#: From this compute capability on, float32 products run in TF32 where that is allowed.
_TF32_FROM: Final = 80
_NO_CPU_NODES: Final = "session.disable_cpu_ep_fallback"
_LEFT_TO_CPU: Final = "assigned to the default CPU EP"
_NO_WAIT: Final = "disable_synchronize_execution_providers"
_DEVICE: Final = "cuda"
_SILENT: Final = 4


class OnnxRuntimeGpuSession(GpuSession):
    """An ONNX file on a GPU; inputs are bound to the lane's memory, outputs to memory of ONNX Runtime's own."""

    def __init__(self, path: Path, session: Any, ran: Ran, lane: cuda.Lane, index: int) -> None:  # noqa: ANN401 - untyped
        import onnxruntime

        super().__init__(*specs(path, session), ran, lane)
        self._path = path
        self._session = session
        self._index = index
        self._binding: Any = None
        self._shapes = ""
        self._values: list[Any] = []
        self._metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry(_NO_WAIT, "1")

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata_props."""
        return self._metadata

    def _prepare(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        self._shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        self._binding = self._session.io_binding()
        addresses = {name: self._lane.block(name, array.nbytes) for name, array in feeds.items()}
        for name, array in feeds.items():
            kind = np.dtype(array.dtype).type
            self._binding.bind_input(name, _DEVICE, self._index, kind, list(array.shape), addresses[name])
        for spec in self.outputs:
            self._binding.bind_output(spec.name, _DEVICE, self._index)
        return addresses

    def _enqueue(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except foreign() as error:
            raise failed(self._path, self._shapes, error) from error

    def _results(self) -> dict[str, Place]:
        self._values = self._binding.get_outputs()
        pairs = zip(self.outputs, self._values, strict=True)
        return {spec.name: Place(value.data_ptr(), tuple(value.shape()), spec.dtype) for spec, value in pairs}

    def _close(self) -> None:
        self._values, self._binding, self._session = [], None, None
        super()._close()


def open_on_gpu(path: Path, config: RunConfig, options_for: Callable[[], Any]) -> OnnxRuntimeGpuSession:
    """Open an ONNX file on the GPU and by the provider that `config` names; `options_for` makes a session's options.

    Raises:
        UsageError: There is no such provider.
        MissingComponentError: No such GPU, or the provider can't be loaded.
        BadInputError: The file can't be read.
        UnsupportedError: The provider can't run every node of it, or not in this precision.
    """
    import onnxruntime

    provider = provider_of(config)
    if reason := provider.lacking(config.device):
        raise MissingComponentError(reason, *provider.remedy)
    index, gpu = cuda.gpu_at(config.device)
    grade = _grade(provider, config, gpu)
    onnxruntime.set_default_logger_severity(_SILENT)  # cuDNN's tries that fail are none of the user's business
    lane = cuda.Lane(cuda.driver(), index)
    try:
        settings = {**provider.settings(config, index), STREAM: str(lane.stream)}
        session = _opened(path, provider, settings, index, options_for)
        where = f"{provider.name} {config.device} {gpu.name}"
        ran = Ran("onnxruntime", onnxruntime.__version__, where, grade, config.threads)
        return OnnxRuntimeGpuSession(path, session, ran, lane, index)
    except BaseException:
        lane.close()
        raise


def _grade(provider: Provider, config: RunConfig, gpu: cuda.Gpu) -> str:
    """Return in what float32 products are computed. Raises UnsupportedError where that isn't what was asked for."""
    if config.precision not in {"auto", "f32"}:
        raise UnsupportedError(
            f"{provider.name} computes in f32, not in {config.precision!r}: what is lower stands in the graph"
        )
    if gpu.capability < _TF32_FROM:
        return "f32"
    if config.precision == "auto":
        return "tf32"
    if not provider.switches_tf32:
        raise UnsupportedError(
            f"{provider.name} may multiply float32 in TF32 on {gpu.name} and has no switch for it: ask for precision 'auto'"
        )
    return "f32"


def _opened(
    path: Path, provider: Provider, settings: Mapping[str, str], index: int, options_for: Callable[[], Any]
) -> Any:  # noqa: ANN401
    import onnxruntime

    def session(strict: str) -> Any:  # noqa: ANN401
        options = options_for()
        options.add_session_config_entry(_NO_CPU_NODES, strict)
        chosen = provider.attach(options, settings, index)
        return onnxruntime.InferenceSession(str(path), options, providers=chosen, enable_fallback=0)

    try:
        found = session("1")
    except foreign() as error:
        if _LEFT_TO_CPU not in str(error):
            raise translated(path, error) from error
        found = session("0")
        if provider.name in found.get_providers():
            raise UnsupportedError(
                f"ONNX Runtime would run a part of {path} on the CPU: {first_line(error)}"
            ) from error
    if provider.name not in found.get_providers():
        raise MissingComponentError(
            f"ONNX Runtime {onnxruntime.__version__} can't load {provider.name} and would run {path} on the CPU",
            Hint("pip install 'onnxruntime-gpu[cuda,cudnn]'", "brings the libraries of CUDA and cuDNN that it needs"),
        )
    return found
