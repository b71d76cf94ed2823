"""OpenVINO: opens its own IR and ONNX files on the CPU, or on an Intel GPU where there is one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploykit import serde, telemetry
from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import BadInputError, DeploykitError, MissingComponentError, UnsupportedError, UsageError
from deploykit.runtime.backends import openvino_contents
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.runtime.backends.contents import Product
from deploykit.runtime.backends.external_data import checked_model
from deploykit.runtime.backends.settings import COUNT
from deploykit.verdict import Executed, Ran

AXES_KEY: Final = "deploykit.axes"

_DEVICES: Final[Mapping[str, str]] = {"cpu": "CPU", "gpu": "GPU"}
#: What reads files, by their suffix.
_FRONTENDS: Final[Mapping[str, str]] = {".xml": "ir", ".onnx": "onnx"}
#: What ONNX's checker says of formats and operators that it doesn't know, which is for OpenVINO to say.
_UNKNOWN: Final = ("is higher than the checker's", "No Op registered")
_PRECISIONS: Final = ("f32", "bf16", "f16")
_SWITCH: Final = "YES|NO|true|false|True|False"
#: Properties that choose how it computes. Others name folders to write, weights and configurations to read, other devices.
_SETTINGS: Final[Mapping[str, str]] = {
    "PERFORMANCE_HINT": "LATENCY|THROUGHPUT|CUMULATIVE_THROUGHPUT",
    "PERFORMANCE_HINT_NUM_REQUESTS": COUNT,
    "EXECUTION_MODE_HINT": "PERFORMANCE|ACCURACY",
    "MODEL_PRIORITY": "LOW|MEDIUM|HIGH",
    "NUM_STREAMS": r"AUTO|NUMA|\d{1,3}",
    **dict.fromkeys(("ENABLE_CPU_PINNING", "ENABLE_CPU_RESERVATION", "ENABLE_HYPER_THREADING"), _SWITCH),
    "CPU_DENORMALS_OPTIMIZATION": _SWITCH,
    "SCHEDULING_CORE_TYPE": "ANY_CORE|PCORE_ONLY|ECORE_ONLY",
    "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": r"[01](\.\d{1,9})?",
    "TBB_PARTITIONER": "STATIC|AUTO",
    **dict.fromkeys(("DYNAMIC_QUANTIZATION_GROUP_SIZE", "KEY_CACHE_GROUP_SIZE", "VALUE_CACHE_GROUP_SIZE"), COUNT),
    **dict.fromkeys(("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"), r"[a-z]{1,4}\d{1,2}"),
}
#: What a device must say of itself to compute in a precision; without it OpenVINO takes another one.
_CAPABILITIES: Final[Mapping[str, str]] = {"bf16": "BF16", "f16": "FP16"}
#: Properties that a RunConfig has a field for.
_OWN_FIELDS: Final[Mapping[str, str]] = {"INFERENCE_PRECISION_HINT": "precision", "INFERENCE_NUM_THREADS": "threads"}
_DTYPES: Final[Mapping[str, str]] = {
    "boolean": "bool",
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}
#: What OpenVINO says where a model is sound but beyond it.
_BEYOND: Final = ("OpConversionFailure", "No conversion rule found", "unsupported opset", "Cannot create")
#: Layers that multiply: Of a convolution the kernel says how often per output value, of a product the left factor, [..., K].
_CONVOLUTIONS: Final = frozenset({"Convolution", "Deconvolution"})
_PRODUCTS: Final = frozenset({"FullyConnected", "MatMul"})
_EIGHT_BITS: Final = frozenset({"u8", "i8"})


class OpenVinoSession(Session):
    """A model compiled by OpenVINO, with one inference request."""

    def __init__(self, path: Path, compiled: Any, metadata: Mapping[str, str], ran: Ran) -> None:  # noqa: ANN401
        axes = _axes(path, metadata)
        inputs = tuple(_spec(path, port, axes) for port in compiled.inputs)
        outputs = tuple(_spec(path, port, axes) for port in compiled.outputs)
        super().__init__(inputs, outputs, ran)
        self._path = path
        self._metadata = metadata
        self._compiled = compiled
        self._request: Any = compiled.create_infer_request()

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file's rt_info holds for deploykit, under the keys that an ONNX file has it under."""
        return self._metadata

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Return the layers of the graph that OpenVINO executes; `feeds` need fit no more than its shapes.

        Raises:
            UnsupportedError: The graph has open axes, whose sizes it doesn't tell.
        """
        self._checked(feeds)
        layers = _layers(self._compiled)
        if any(node.output(0).partial_shape.is_dynamic for node, _ in layers):
            raise UnsupportedError(f"{self._path} has open axes: OpenVINO doesn't tell what its layers cost")
        return tuple(_executed(node, kind) for node, kind in layers)

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        by_index = {index: feeds[spec.name] for index, spec in enumerate(self.inputs)}
        try:
            results = self._request.infer(by_index, share_inputs=True, share_outputs=False)
        except (RuntimeError, TypeError, ValueError) as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise UnsupportedError(f"OpenVINO can't run {self._path} on {shapes}: {_last_line(error)}") from error
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def _close(self) -> None:
        self._request = self._compiled = None


class OpenVinoBackend(Backend):
    """OpenVINO."""

    name = "openvino"
    module = "openvino"
    suffixes = tuple(_FRONTENDS)
    judged = ("f32", "auto")
    devices = tuple(_DEVICES)

    def settings(self, config: RunConfig) -> Mapping[str, str]:  # noqa: ARG002 - the same on every device
        """Return the properties that may be given."""
        return _SETTINGS

    def fault(self, config: RunConfig) -> str:
        """Return what `config` says that OpenVINO is not told, or ""."""
        for key in config.hints.keys() & _OWN_FIELDS.keys():
            return f"set {_OWN_FIELDS[key]} of the RunConfig, not the hint {key}={config.hints[key]}"
        return super().fault(config)

    def unavailable(self, config: RunConfig) -> str:
        """Return what this machine lacks: OpenVINO, the device, or the precision on it."""
        missing = super().unavailable(config)
        if missing:
            return missing
        core = _core()
        try:
            device = _device(config, core.available_devices)
        except MissingComponentError as error:
            return error.message
        return lacking(config.precision, core.get_property(device, "OPTIMIZATION_CAPABILITIES"))

    def held(self, model: str) -> str:
        """Return the grade that a file's weights are held in."""
        if not model.endswith(".xml"):
            return super().held(model)
        path = checked_model(model)
        try:
            return openvino_contents.held(_core().read_model(str(path)))
        except RuntimeError as error:
            raise _unreadable(path, error) from error

    def products(self, model: str) -> Iterator[Product]:
        """Yield a file's layers that multiply data in 8 bits by constant weights of int8."""
        if not model.endswith(".xml"):
            return super().products(model)
        path = checked_model(model)
        try:
            return iter(tuple(openvino_contents.products(_core().read_model(str(path)))))
        except RuntimeError as error:
            raise _unreadable(path, error) from error

    def _open(self, model: str, config: RunConfig) -> Session:
        import openvino

        properties = _properties(config)
        core = _core()
        device = _device(config, core.available_devices)
        missing = lacking(config.precision, core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
        if missing:
            raise MissingComponentError(missing)
        path = checked_model(model)
        try:
            read = _read(path)
        except Exception as error:  # each of its frontends has errors of its own
            raise _unreadable(path, error) from error
        metadata = _metadata(read)
        try:
            compiled = core.compile_model(read, device, properties)
        except RuntimeError as error:
            raise _uncompilable(path, config, error) from error
        ran = _ran(openvino.__version__, compiled)
        _check_ran(path, config, device, compiled, ran)
        try:
            return OpenVinoSession(path, compiled, metadata, ran)
        except RuntimeError as error:  # the memory of its tensors is taken here
            raise _uncompilable(path, config, error) from error

    def code(self, file: str, config: RunConfig) -> str:
        """Return stock Python that opens `file` as `config` says and defines `infer(feeds)`."""
        device = _device(config, list(_DEVICES.values()))
        return "\n".join(
            [
                "import openvino as ov",
                "",
                f"properties = {_properties(config)!r}",
                f"model = ov.Core().compile_model({file!r}, {device!r}, properties)",
                "request = model.create_infer_request()",
                "",
                "",
                "def infer(feeds):",
                "    results = request.infer(feeds, share_outputs=False)",
                "    return {port.any_name: results[port] for port in model.outputs}",
                "",
            ]
        )


@functools.cache
def _core() -> Any:  # noqa: ANN401 - the library's own
    """Return the one Core of this process.

    A plugin gives the thread that loads it an alternate signal stack, and the one before back when it is unloaded. Where those
    of several Cores come and go, the thread is left with one that is freed, and the next signal, Ctrl-C too, is a crash.
    This one stays.
    """
    telemetry.switch_off()
    import openvino

    return openvino.Core()


def _check_rules(path: Path) -> None:
    """Have ONNX's own checker look at a file where it is here: OpenVINO crashes on nodes that lack an input.

    Raises:
        ValueError: A node breaks the rules of its operator.
    """
    try:
        import onnx
    except ImportError:
        return
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if not any(words in str(error) for words in _UNKNOWN):
            raise ValueError(str(error).splitlines()[0]) from error


def _read(path: Path) -> Any:  # noqa: ANN401 - the library has no types
    """Read a file as what its name says that it is; left to guess, OpenVINO tries every format that it knows."""
    import openvino
    from openvino.frontend import FrontEndManager

    if path.suffix == ".onnx":
        _check_rules(path)
    frontend = FrontEndManager().load_by_framework(_FRONTENDS[path.suffix])
    return openvino.Model(frontend.convert(frontend.load(str(path))))


def lacking(precision: str, capabilities: Sequence[str]) -> str:
    """Return why a device can't compute in a precision, or "".

    Args:
        precision: Of a RunConfig.
        capabilities: What the device says of itself, such as "BF16".
    """
    wanted = _CAPABILITIES.get(precision)
    if wanted is None or wanted in capabilities:
        return ""
    return f"OpenVINO can't compute in {precision} on this device, which offers {', '.join(sorted(capabilities))}"


def _executed(node: Any, kind: str) -> Executed:  # noqa: ANN401 - the library has no types
    made, data, weights = list(node.output(0).shape), list(node.input(0).get_shape()), node.input(1).get_shape()
    each = math.prod(weights) // made[1] if kind in _CONVOLUTIONS else data[-1]
    operator = node.get_rt_info()["primitiveType"].astype(str)
    return Executed(node.get_friendly_name(), f"{kind} {operator}", _multiplied_in(node), math.prod(made) * each)


def _multiplied_in(node: Any) -> str:  # noqa: ANN401
    """Return the precision that a layer multiplies in: that of its data, where its weights alone are of 8 bits."""
    precision = str(node.get_rt_info()["runtimePrecision"].astype(str))
    if precision not in _EIGHT_BITS:
        return precision
    data = str(node.input(0).get_source_output().get_element_type().get_type_name())
    return "int8" if data in _EIGHT_BITS else data


def _layers(compiled: Any) -> list[tuple[Any, str]]:  # noqa: ANN401
    """Return the layers of the executed graph that multiply, each with its type."""
    nodes = [(node, node.get_rt_info()["layerType"].astype(str)) for node in compiled.get_runtime_model().get_ops()]
    return [(node, kind) for node, kind in nodes if kind in _CONVOLUTIONS | _PRODUCTS]


def _properties(config: RunConfig) -> dict[str, str | int]:
    properties: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY", **dict(sorted(config.hints.items()))}
    if config.precision != "auto":
        if config.precision not in _PRECISIONS:
            raise UnsupportedError(f"OpenVINO computes in {', '.join(_PRECISIONS)} or auto, not {config.precision!r}")
        properties["INFERENCE_PRECISION_HINT"] = config.precision
    if config.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = config.threads
    return properties


def _device(config: RunConfig, available: list[str]) -> str:
    device = _DEVICES.get(config.device)
    if device is None or not any(_family(one) == device for one in available):
        raise MissingComponentError(
            f"OpenVINO has no device {config.device!r} here; it has: {', '.join(available).lower()}"
        )
    return device


def _family(device: str) -> str:
    """Return "GPU" of "GPU.0"."""
    return device.partition(".")[0]


def _ran(version: str, compiled: Any) -> Ran:  # noqa: ANN401 - the library has no types
    device = ",".join(compiled.get_property("EXECUTION_DEVICES"))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    threads = None
    if device == "CPU":
        threads = compiled.get_property("INFERENCE_NUM_THREADS")
        # What is bfloat16 in the graph runs in it whatever the property says.
        if any(_multiplied_in(node) == "bf16" for node, _ in _layers(compiled)):
            precision = "bf16"
    return Ran(OpenVinoBackend.name, version, device, precision, threads)


def _check_ran(path: Path, config: RunConfig, device: str, compiled: Any, ran: Ran) -> None:  # noqa: ANN401
    """Compare what was compiled with what was asked for; OpenVINO falls back without a word."""
    if any(_family(one) != device for one in ran.device.split(",")):
        raise UnsupportedError(f"asked to run {path} on {device}, OpenVINO runs it on {ran.device}")
    if config.threads is not None and ran.threads is not None and ran.threads != config.threads:
        raise UnsupportedError(f"asked for {config.threads} threads, OpenVINO gives {path} {ran.threads}")
    if config.precision == "auto":
        return
    if ran.precision != config.precision:
        raise UnsupportedError(f"asked to compute {path} in {config.precision}, OpenVINO chose {ran.precision}")
    if config.precision == "f32" or device != "CPU":
        return
    used = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    if config.precision not in used:
        raise UnsupportedError(
            f"asked to compute {path} in {config.precision}, OpenVINO runs its layers in {', '.join(sorted(used))}"
        )


def _metadata(model: Any) -> dict[str, str]:  # noqa: ANN401
    """Return deploykit's texts: an IR keeps them under rt_info "deploykit", one read from ONNX under "framework"."""
    found: dict[str, str] = {}
    if model.has_rt_info(["framework"]):
        values = model.get_rt_info(["framework"]).value
        if isinstance(values, dict):
            found |= {key: str(text) for key, text in values.items() if key.startswith("deploykit.")}
    if model.has_rt_info(["deploykit"]):
        values = model.get_rt_info(["deploykit"]).value
        if isinstance(values, dict):
            found |= {f"deploykit.{key}": str(text) for key, text in values.items()}
    return found


def _axes(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
    """Return the names of dynamic dimensions: tensor name to index (as text) to axis name."""
    text = metadata.get(AXES_KEY, "{}")
    try:
        axes = serde.parse(text)
    except ValueError:
        axes = None
    if not isinstance(axes, dict) or not all(isinstance(names, dict) for names in axes.values()):
        raise BadInputError(
            f'{path}: {AXES_KEY} must be JSON such as {{"input": {{"0": "batch"}}}}, found {text[:80]!r}'
        )
    return axes


def _spec(path: Path, port: Any, axes: Mapping[str, Mapping[str, str]]) -> TensorSpec:  # noqa: ANN401
    if not port.names:
        raise UnsupportedError(f"{path}: tensor {port.get_index()} of {port.node.friendly_name!r} has no name")
    name: str = port.any_name
    kind = port.element_type.get_type_name()
    if kind not in _DTYPES:
        raise UnsupportedError(f"{path}: {name!r} is of type {kind}, which numpy can't hold")
    if port.partial_shape.rank.is_dynamic:
        raise UnsupportedError(f"{path}: {name!r} has no fixed number of dimensions")
    names = axes.get(name, {})
    shape = tuple(
        Axis.unbounded(str(names.get(str(index), f"{name}_{index}"))) if dim.is_dynamic else int(dim.get_length())
        for index, dim in enumerate(port.partial_shape)
    )
    return TensorSpec(name, _DTYPES[kind], shape)


def message_of(error: Exception) -> str:
    """Return the whole message of an error, but for empty lines and those that only name OpenVINO's own source."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from ")]
    return "\n".join(said or lines) or type(error).__name__


def _last_line(error: Exception) -> str:
    """Return the line that says something: OpenVINO puts its own source lines before it."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _unreadable(path: Path, error: Exception) -> DeploykitError:
    if any(words in str(error) for words in _BEYOND):
        return UnsupportedError(f"OpenVINO can't express {path}: {message_of(error)}")
    return BadInputError(f"OpenVINO can't read {path}: {_last_line(error)}")


def _uncompilable(path: Path, config: RunConfig, error: Exception) -> DeploykitError:
    for key, value in config.hints.items():
        if f"property {key}" in str(error) or f"property key {key}" in str(error):
            return UsageError(f"OpenVINO refuses the hint {key}={value}: {_last_line(error)}")
    return UnsupportedError(f"OpenVINO can't compile {path}: {message_of(error)}")


BACKEND = OpenVinoBackend()
