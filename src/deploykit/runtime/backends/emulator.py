"""Emulator: what an ONNX file in half precision computes on hardware that computes in half, found out on any CPU.

ONNX Runtime's CPU provider runs most operators of a float16 graph in float32 and keeps what they make in float32 wherever it
can: it tells nothing about half. Here the graph itself says where values are rounded. Every operator that works on half
computes in float32, from operands that half can hold and with float32 sums, as tensor cores do; what it makes is rounded to
half, and beyond the largest half lies infinity. What an operator would keep in half between its steps is written out in steps.
Float32 islands are left as they are, and so is a graph without any half.

The runtime must leave the roundings alone: its optimizer is switched off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from deploykit import optional
from deploykit.artifact import RunConfig
from deploykit.errors import BadInputError, UnsupportedError
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.runtime.backends.external_data import checked_model
from deploykit.runtime.backends.onnxruntime import CPU_PROVIDER, SETTINGS, OnnxRuntimeSession, session_options
from deploykit.runtime.backends.onnxruntime_files import WEIGHTS_FOLDER, first_line, foreign, translated
from deploykit.runtime.backends.rounding import types_of, write_roundings
from deploykit.verdict import Executed, Ran

_PRECISIONS: Final = ("f32", "f16", "bf16")


class EmulatorSession(OnnxRuntimeSession):
    """A half graph that is computed with roundings."""

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Raise UnsupportedError: the kernels that run here are not those of the hardware that is emulated."""
        return Session.executed(self, feeds)


class EmulatorBackend(Backend):
    """Half precision on a CPU: the precision that stands in the graph is the one that is run."""

    name = "emulator"
    module = "onnx"
    suffixes = (".onnx",)
    judged = ("auto",)
    stands_in = True

    def settings(self, config: RunConfig) -> Mapping[str, str]:  # noqa: ARG002 - it has one device
        """Return the session config keys of ONNX Runtime, which computes."""
        return SETTINGS

    def _open(self, model: str, config: RunConfig) -> Session:
        optional.require("onnxruntime")
        import onnxruntime

        if config.precision not in {"auto", *_PRECISIONS}:
            raise UnsupportedError(f"the emulator computes in {', '.join(_PRECISIONS)}, not in {config.precision!r}")
        path = checked_model(model)
        data, precision = _rounded(path, config)

        def opened(profile: Path | None = None) -> Any:  # noqa: ANN401 - the library has no types
            options = session_options(config, profile)
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry(WEIGHTS_FOLDER, str(path.resolve().parent))
            try:
                return onnxruntime.InferenceSession(data, options, providers=[CPU_PROVIDER])
            except foreign() as error:
                raise translated(path, error) from error

        ran = Ran(self.name, onnxruntime.__version__, CPU_PROVIDER, precision, config.threads)
        return EmulatorSession(path, opened(), ran, opened)

    def code(self, file: str, config: RunConfig) -> str:
        """Return Python that opens `file` as `config` says and defines `infer(feeds)`. The roundings are deploykit's own."""
        return "\n".join(
            [
                "from deploykit.artifact import RunConfig",
                "from deploykit.runtime.backends.base import get_backend",
                "",
                f"session = get_backend({self.name!r}).open({file!r}, {config!r})",
                "infer = session.infer",
                "",
            ]
        )


def _rounded(path: Path, config: RunConfig) -> tuple[bytes, str]:
    """Return a model with its roundings written out, and the precision that it computes in.

    Raises:
        BadInputError: The file is no ONNX model.
        UnsupportedError: It computes in another precision than the one asked for, or its roundings are not known.
    """
    import onnx

    try:
        model = onnx.load_model(str(path), load_external_data=False)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        types = types_of(model)
    except Exception as error:  # protobuf and the inference of shapes raise bases that are not public
        raise BadInputError(f"{path} is no ONNX model: {first_line(error)}") from error
    precision = _precision(types.halves.values())
    if config.precision not in {"auto", precision}:
        raise UnsupportedError(f"asked to compute {path} in {config.precision}, the graph says {precision}")
    if not types.halves:
        return path.read_bytes(), precision
    write_roundings(model, types, str(path))
    return model.SerializeToString(), precision


def _precision(kinds: Iterable[int]) -> str:
    """Return the coarsest precision of a graph's tensors."""
    import onnx

    found = set(kinds)
    if onnx.TensorProto.BFLOAT16 in found:
        return "bf16"
    return "f16" if onnx.TensorProto.FLOAT16 in found else "f32"


BACKEND = EmulatorBackend()
