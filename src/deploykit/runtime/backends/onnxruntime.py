"""ONNX Runtime: opens ONNX files, on its CPU provider or on one of those for an NVIDIA GPU."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploykit.artifact import EXACT, RunConfig
from deploykit.errors import MissingComponentError, UnsupportedError
from deploykit.runtime.backends import cuda, onnxruntime_exact
from deploykit.runtime.backends.base import CPU, Backend, Session, Tensor, kind_of
from deploykit.runtime.backends.external_data import checked_model
from deploykit.runtime.backends.onnxruntime_files import WEIGHTS_FOLDER, failed, foreign, specs, translated
from deploykit.runtime.backends.onnxruntime_gpu import open_on_gpu
from deploykit.runtime.backends.onnxruntime_providers import HINT, PROVIDERS, provider_of, ways, without_provider
from deploykit.runtime.backends.settings import COUNT, SWITCH
from deploykit.verdict import Executed, Ran

CPU_PROVIDER: Final = "CPUExecutionProvider"
#: Session config keys that choose how it computes. Others name files to write, caches to read, libraries to load.
SETTINGS: Final[Mapping[str, str]] = {
    **{
        f"session.{key}": SWITCH
        for key in (
            *("intra_op.allow_spinning", "inter_op.allow_spinning", "force_spinning_stop", "set_denormal_as_zero"),
            *("disable_prepacking", "disable_quant_qdq", "disable_double_qdq_remover", "enable_quant_qdq_cleanup"),
            *("disable_qdq_constant_folding", "enable_dq_matmulnbits_fusion", "qdqisint8allowed", "x64quantprecision"),
            *("use_deterministic_compute", "use_device_allocator_for_initializers", "disable_aot_function_inlining"),
            *("strict_shape_type_inference", "disable_cpu_ep_fallback", "enable_mem_pattern", "enable_cpu_mem_arena"),
        )
    },
    "session.dynamic_block_base": COUNT,
    "session.qdq_matmulnbits_accuracy_level": COUNT,
    "session.qdq_matmulnbits_block_size": COUNT,
    "session.intra_op_thread_affinities": r"[\d,;-]{1,400}",
    "memory.enable_memory_arena_shrinkage": r"[a-z\d:;]{1,80}",
    "mlas.disable_kleidiai": SWITCH,
    "mlas.qnbit.force_fp32": SWITCH,
    "mlas.use_lut_gemm": SWITCH,
    "optimization.enable_gelu_approximation": SWITCH,
    "optimization.enable_cast_chain_elimination": SWITCH,
    "optimization.disable_specified_optimizers": r"[\w;,]{1,400}",
}
_ERRORS_ONLY: Final = 3
#: Kernels that multiply: the index of the input that says how often per output value, and the precision. Of a convolution
#: it is the kernel, [out, in / groups, ...]; of a product the left factor, [..., K].
_KERNELS: Final[Mapping[str, tuple[int, str]]] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"), (1, "f32")),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm"), (0, "f32")),
    "QLinearConv": (3, "int8"),
    "ConvInteger": (1, "int8"),
    **dict.fromkeys(
        ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "DynamicQuantizeMatMul"), (0, "int8")
    ),
}
#: Settings of a session for each arithmetic.
_ARITHMETICS: Final[Mapping[str | None, Mapping[str, str]]] = {None: {}, EXACT: onnxruntime_exact.SETTINGS}
_CONVOLVES: Final = "Conv"
_EVENT: Final = "_kernel_time"


class OnnxRuntimeSession(Session):
    """An ONNX file opened by ONNX Runtime."""

    def __init__(self, path: Path, session: Any, ran: Ran, reopen: Callable[[Path], Any]) -> None:  # noqa: ANN401 - untyped
        super().__init__(*specs(path, session), ran)
        self._path = path
        self._session = session
        self._reopen = reopen
        self._metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata_props."""
        return self._metadata

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Return the layers that ONNX Runtime runs, from its own profile of one run."""
        with tempfile.TemporaryDirectory() as folder:
            profiled = self._reopen(Path(folder) / "run")
            profiled.run(None, self._checked(feeds))
            events = json.loads(Path(profiled.end_profiling()).read_bytes())
        return tuple(_executed(event) for event in events if _multiplies(event))

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        except foreign() as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise failed(self._path, shapes, error) from error

    def _close(self) -> None:
        self._session = None


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime, on the CPU or on an NVIDIA GPU."""

    name = "onnxruntime"
    module = "onnxruntime"
    suffixes = (".onnx",)
    devices = (CPU, cuda.FIRST)
    arithmetics = (EXACT,)

    def unavailable(self, config: RunConfig) -> str:
        """Return why there is no such device to run on, or no such provider for it, or ""."""
        return super().unavailable(config) or _DEVICES[kind_of(config.device)].lacking(config)

    def settings(self, config: RunConfig) -> Mapping[str, str]:
        """Return the session config keys that may be given, and on a GPU the provider."""
        return {**_DEVICES[kind_of(config.device)].settings, **SETTINGS} if not self._misplaced(config) else SETTINGS

    def place(self, config: RunConfig) -> str:
        """Return what the device of `config` is, or why there is none."""
        return self.unavailable(config) or _DEVICES[kind_of(config.device)].place(config.device)

    def ways(self, config: RunConfig, device: str) -> tuple[RunConfig, ...]:
        """Return it on another device; on a GPU by each provider."""
        return self._device(config.on(device)).ways(config.on(device))

    def _device(self, config: RunConfig) -> _Device:
        """Return what `config` runs on, which a manifest may have from anybody.

        Raises:
            MissingComponentError: There is no such device.
        """
        if misplaced := self._misplaced(config):
            raise MissingComponentError(misplaced)
        return _DEVICES[kind_of(config.device)]

    def _open(self, model: str, config: RunConfig) -> Session:
        return _DEVICES[kind_of(config.device)].open(checked_model(model), config)

    def code(self, file: str, config: RunConfig) -> str:
        """Return stock Python that opens `file` as `config` says and defines `infer(feeds)`."""
        attached, arguments = self._device(config).code(config)
        lines = ["options = ort.SessionOptions()", f"options.log_severity_level = {_ERRORS_ONLY}"]
        if config.threads is not None:
            lines += [f"options.intra_op_num_threads = {config.threads}", "options.inter_op_num_threads = 1"]
        hints = _hints(without_provider(config))
        lines += [f"options.add_session_config_entry({key!r}, {value!r})" for key, value in hints]
        lines += [*attached, f"session = ort.InferenceSession({file!r}, options{arguments})"]
        return "\n".join(["import onnxruntime as ort", "", *lines, "", "", *_CODE_INFER, ""])


_CODE_INFER: Final = (
    "def infer(feeds):",
    "    names = [output.name for output in session.get_outputs()]",
    "    return dict(zip(names, session.run(names, feeds)))",
)


def session_options(config: RunConfig, profile: Path | None) -> Any:  # noqa: ANN401 - the library has no types
    """Return the options of a session; with `profile`, one that notes every kernel's inputs, weights as the graph has them.

    They are neither packed nor laid out in blocks of channels, which are filled up with zeros.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if config.threads is not None:
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1
    for key, value in _hints(config):
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def _hints(config: RunConfig) -> list[tuple[str, str]]:
    """Return the settings of a session: what was asked for, and what its arithmetic takes."""
    return sorted({**config.hints, **_ARITHMETICS[config.arithmetic]}.items())


def _multiplies(event: Mapping[str, Any]) -> bool:
    return str(event["name"]).endswith(_EVENT) and event["args"].get("op_name") in _KERNELS


def _executed(event: Mapping[str, Any]) -> Executed:
    operator = event["args"]["op_name"]
    index, precision = _KERNELS[operator]
    inputs, outputs = (
        [next(iter(entry.values())) for entry in event["args"][key]]
        for key in ("input_type_shape", "output_type_shape")
    )
    each = math.prod(inputs[index][1:]) if _CONVOLVES in operator else inputs[index][-1]
    return Executed(event["name"].removesuffix(_EVENT), operator, precision, math.prod(outputs[0]) * each)


@dataclass(frozen=True)
class _Device:
    """One kind of device: how a file is opened on it, why not ("" where it can be), what it is, in which ways, its code.

    Attributes:
        settings: Hints that are ours, not ONNX Runtime's.
    """

    open: Callable[[Path, RunConfig], Session]
    lacking: Callable[[RunConfig], str]
    place: Callable[[str], str]
    ways: Callable[[RunConfig], tuple[RunConfig, ...]]
    code: Callable[[RunConfig], tuple[tuple[str, ...], str]]
    settings: Mapping[str, str] = field(default_factory=dict)


def _open_on_cpu(path: Path, config: RunConfig) -> Session:
    import onnxruntime

    if config.precision not in {"auto", "f32"}:
        raise UnsupportedError(
            f"ONNX Runtime's CPU provider computes in f32, not in {config.precision!r}: what is lower stands in the graph"
        )

    changed = onnxruntime_exact.unsigned(path) if config.arithmetic == EXACT else None

    def opened(profile: Path | None = None) -> Any:  # noqa: ANN401 - the library has no types
        options = session_options(config, profile)
        if changed is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(path.resolve().parent))
        try:
            return onnxruntime.InferenceSession(changed or str(path), options, providers=[CPU_PROVIDER])
        except foreign() as error:
            raise translated(path, error) from error

    session = opened()
    used = session.get_providers()
    if used != [CPU_PROVIDER]:
        raise UnsupportedError(f"asked to run on {CPU_PROVIDER}, ONNX Runtime chose {used} for {path}")
    ran = Ran("onnxruntime", onnxruntime.__version__, CPU_PROVIDER, "f32", config.threads)
    return OnnxRuntimeSession(path, session, ran, opened)


def _open_on_gpu(path: Path, config: RunConfig) -> Session:
    if config.arithmetic is not None:
        raise UnsupportedError(f"{config.arithmetic} arithmetic is computed on the CPU, not on {config.device}")
    return open_on_gpu(path, config, lambda: session_options(without_provider(config), None))


_DEVICES: Final[Mapping[str, _Device]] = {
    CPU: _Device(
        open=_open_on_cpu,
        lacking=lambda _: "",
        place=lambda device: device,
        ways=lambda config: (config,),
        code=lambda _: ((), f", providers=[{CPU_PROVIDER!r}]"),
    ),
    kind_of(cuda.FIRST): _Device(
        open=_open_on_gpu,
        lacking=lambda config: provider_of(config).lacking(config.device),
        place=cuda.place,
        ways=ways,
        code=lambda config: provider_of(config).code(config),
        settings={HINT: "|".join(PROVIDERS)},
    ),
}

BACKEND = OnnxRuntimeBackend()
