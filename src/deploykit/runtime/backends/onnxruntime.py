"""ONNX Runtime: opens ONNX files on its CPU provider."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import BadInputError, DeploykitError, MissingComponentError, UnsupportedError, UsageError
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.runtime.backends.external_data import checked_model
from deploykit.verdict import Executed, Ran

#: Device of a RunConfig to execution provider.
_PROVIDERS: Final[Mapping[str, str]] = {"cpu": "CPUExecutionProvider"}
_DTYPES: Final[Mapping[str, str]] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
#: First words of the session config keys that ONNX Runtime knows. It takes any other key too, and does nothing with it.
_HINT_AREAS: Final = ("ep.", "memory.", "mlas.", "optimization.", "session.")
_ERRORS_ONLY: Final = 3
#: What ONNX Runtime says where a model is sound but beyond it. Everything else it refuses is a damaged or unsafe file.
_BEYOND: Final = (
    "No Op registered",
    "is not a registered function/op",
    "Could not find an implementation",
    "only *guarantees* support",
    "Unsupported model IR version",
)
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
_CONVOLVES: Final = "Conv"
_EVENT: Final = "_kernel_time"


class OnnxRuntimeSession(Session):
    """An ONNX file opened by ONNX Runtime."""

    def __init__(self, path: Path, session: Any, ran: Ran, reopen: Callable[[Path], Any]) -> None:  # noqa: ANN401 - untyped
        inputs = tuple(_spec(path, node) for node in session.get_inputs())
        outputs = tuple(_spec(path, node) for node in session.get_outputs())
        super().__init__(inputs, outputs, ran)
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
            raise UnsupportedError(f"ONNX Runtime can't run {self._path} on {shapes}: {first_line(error)}") from error

    def _close(self) -> None:
        self._session = None


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    module = "onnxruntime"
    suffixes = (".onnx",)

    def _open(self, model: str, config: RunConfig) -> Session:
        import onnxruntime

        chosen = provider(config, onnxruntime.get_available_providers())
        path = checked_model(model)

        def opened(profile: Path | None = None) -> Any:  # noqa: ANN401 - the library has no types
            options = session_options(config, profile)
            try:
                return onnxruntime.InferenceSession(str(path), options, providers=[chosen])
            except foreign() as error:
                raise translated(path, error) from error

        session = opened()
        used = session.get_providers()
        if used != [chosen]:
            raise UnsupportedError(f"asked to run on {chosen}, ONNX Runtime chose {used} for {path}")
        ran = Ran(self.name, onnxruntime.__version__, chosen, "f32", config.threads)
        return OnnxRuntimeSession(path, session, ran, opened)

    def code(self, file: str, config: RunConfig) -> str:
        """Return stock Python that opens `file` as `config` says and defines `infer(feeds)`."""
        chosen = provider(config, list(_PROVIDERS.values()))
        lines = ["options = ort.SessionOptions()", f"options.log_severity_level = {_ERRORS_ONLY}"]
        if config.threads is not None:
            lines += [f"options.intra_op_num_threads = {config.threads}", "options.inter_op_num_threads = 1"]
        lines += [f"options.add_session_config_entry({key!r}, {value!r})" for key, value in _hints(config).items()]
        lines.append(f"session = ort.InferenceSession({file!r}, options, providers=[{chosen!r}])")
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
    for key, value in _hints(config).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


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


def provider(config: RunConfig, available: list[str]) -> str:
    """Return the execution provider of a device that is here. Raises what `Backend.open` does."""
    found = _PROVIDERS.get(config.device)
    if found is None or found not in available:
        here = [device for device, known in _PROVIDERS.items() if known in available]
        raise MissingComponentError(f"ONNX Runtime has no device {config.device!r} here; it has: {', '.join(here)}")
    if config.precision not in {"auto", "f32"}:
        raise UnsupportedError(
            f"ONNX Runtime's CPU provider computes in f32, not in {config.precision!r}: what is lower stands in the graph"
        )
    return found


def _hints(config: RunConfig) -> dict[str, str]:
    for key in config.hints:
        if not key.startswith(_HINT_AREAS):
            raise UsageError(
                f"hint {key!r} is no session config key of ONNX Runtime; those begin with {', '.join(_HINT_AREAS)}"
            )
    return dict(sorted(config.hints.items()))


def _spec(path: Path, node: Any) -> TensorSpec:  # noqa: ANN401
    if node.type not in _DTYPES:
        raise UnsupportedError(f"{path}: {node.name!r} is a {node.type}, which numpy can't hold")
    return TensorSpec(node.name, _DTYPES[node.type], tuple(_dim(node.name, *item) for item in enumerate(node.shape)))


def _dim(owner: str, index: int, dim: int | str | None) -> int | Axis:
    if isinstance(dim, int) and dim >= 0:
        return dim
    return Axis.unbounded(dim if isinstance(dim, str) and dim else f"{owner}_{index}")


def foreign() -> tuple[type[Exception], ...]:
    """Return every exception class that ONNX Runtime raises, beside those of Python's that its bindings use."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError)


def first_line(error: Exception) -> str:
    """Return what ONNX Runtime says, without its codes and the addresses of its own source."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"^Load model from .*? failed: ?", "", text.splitlines()[0] if text else type(error).__name__)
    return re.sub(r"^/\S+?:\d+ .*?\)(?: const)? (?=[A-Z])", "", text)[:600]


def translated(path: Path, error: Exception) -> DeploykitError:
    """Return what ONNX Runtime raised as an error of ours."""
    line = first_line(error)
    if type(error).__name__ == "NotImplemented" or any(words in str(error) for words in _BEYOND):
        return UnsupportedError(f"ONNX Runtime can't express {path}: {line}")
    return BadInputError(f"ONNX Runtime can't read {path}: {line}")


BACKEND = OnnxRuntimeBackend()
