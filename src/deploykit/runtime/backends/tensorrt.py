"""TensorRT: opens engines of either library on an NVIDIA GPU. Without one, all that a CPU can check is still checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from deploykit.artifact import RunConfig, TensorSpec
from deploykit.errors import (
    BadInputError,
    DeploykitError,
    Hint,
    MissingComponentError,
    ResourceError,
    UnsupportedError,
)
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.runtime.backends.gpu import GpuSession, Place
from deploykit.runtime.backends.tensorrt_library import NATIVE, RTX, Flavour, Library, library, plain
from deploykit.runtime.backends.tensorrt_record import EngineRecord, check_gpu, check_version, read_engine
from deploykit.verdict import Executed, Ran, grade_of

#: The hint that lets one launch do what an inference queues.
GRAPHS: Final = "cuda_graph"
#: TensorRT's types that numpy has too.
_DTYPES: Final[Mapping[str, str]] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
#: What the library itself may find against an engine, by the name of the diagnostic, before it is loaded.
_FINDINGS: Final[Mapping[str, tuple[type[DeploykitError], str]]] = {
    "MALFORMED_ENGINE": (BadInputError, "is malformed"),
    "VERSION_MISMATCH": (MissingComponentError, "was built by another version"),
    "UNSUPPORTED_CC": (MissingComponentError, "has no code for this GPU"),
    "OLD_CUDA_DRIVER": (MissingComponentError, "needs a newer NVIDIA driver"),
    "OLD_CUDA_RUNTIME": (MissingComponentError, "needs a newer CUDA runtime"),
    "INSUFFICIENT_GPU_MEMORY": (ResourceError, "needs more memory than this GPU has"),
}


class TensorRtSession(GpuSession):
    """An engine on a GPU: one execution context, one stream, memory that grows with the largest batch so far.

    With `graphs`, what an inference queues is captured once for each set of shapes and addresses, and launched as a whole.
    """

    def __init__(
        self,
        record: EngineRecord,
        engine: Any,  # noqa: ANN401 - the library has no types
        context: Any,  # noqa: ANN401
        lane: cuda.Lane,
        ran: Ran,
        *,
        graphs: bool,
    ) -> None:
        super().__init__(record.inputs, record.outputs, ran, lane)
        self._record = record
        self._engine = engine
        self._context = context
        self._graphs = graphs
        self._places: dict[str, Place] = {}
        self._captured: tuple[object, cuda.Graph] | None = None
        self._profile = 0

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts of the engine's record, under the keys that an ONNX file has them under."""
        return {f"deploykit.{key}": text for key, text in self._record.texts.items()}

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Return the layers as the engine's own program has them.

        Raises:
            UnsupportedError: This engine didn't tell when it was built.
        """
        self._checked(feeds)
        return self._record.layers or super().executed(feeds)

    def _prepare(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        lane, context = self._lane, self._context
        self._choose({name: array.shape for name, array in feeds.items()})
        for name, array in feeds.items():
            self._must(context.set_input_shape(name, array.shape), f"shape {list(array.shape)} of {name!r}")
        unknown = context.infer_shapes()
        self._must(not unknown, f"these shapes, which leave {unknown} open")
        inputs = {name: Place(lane.block(name, array.nbytes), array.shape, "") for name, array in feeds.items()}
        outputs: dict[str, Place] = {}
        for spec in self.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs[spec.name] = Place(lane.block(spec.name, _bytes(shape, spec.dtype)), shape, spec.dtype)
        for name, place in (inputs | outputs).items():
            self._must(context.set_tensor_address(name, place.address), f"the address of {name!r}")
        self._places = inputs | outputs
        return {name: place.address for name, place in inputs.items()}

    def _choose(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Change to the first optimization profile that holds these shapes, where there are several."""
        engine, context = self._engine, self._context
        several = range(engine.num_optimization_profiles if engine.num_optimization_profiles > 1 else 0)
        fitting = (
            number
            for number in several
            if all(_holds(engine.get_tensor_profile_shape(name, number), shape) for name, shape in shapes.items())
        )
        chosen = next(fitting, self._profile)
        if chosen != self._profile:
            self._forget()
            done = context.set_optimization_profile_async(chosen, self._lane.stream)
            self._must(done, f"its optimization profile {chosen}")
            self._profile = chosen

    def _enqueue(self) -> None:
        if not self._graphs:
            self._execute()
            return
        if self._captured is None or self._captured[0] != self._places:
            self._forget()
            self._execute()  # what a first run of these shapes sets up can't be captured
            self._lane.wait()
            self._captured = self._places, self._lane.capture(self._execute)
        self._captured[1].launch()

    def _execute(self) -> None:
        context = self._context
        self._must(context.execute_async_v3(self._lane.stream), "to run")

    def _results(self) -> dict[str, Place]:
        return {spec.name: self._places[spec.name] for spec in self.outputs}

    def _must(self, done: bool, what: str) -> None:  # noqa: FBT001 - what TensorRT returns
        if not done:
            raise UnsupportedError(f"{self.ran.backend} refuses {what}")

    def _forget(self) -> None:
        if self._captured is not None:
            self._captured[1].close()
            self._captured = None

    def _close(self) -> None:
        self._forget()
        self._context = self._engine = None
        super()._close()


class TensorRtBackend(Backend):
    """TensorRT for data centres, workstations and Jetson.

    Attributes:
        flavour: Which of the libraries it is.
    """

    flavour: ClassVar[Flavour] = NATIVE
    name = module = NATIVE.module
    suffixes = NATIVE.suffixes
    judged = ("auto",)
    devices = (cuda.FIRST,)
    threaded = False

    def settings(self, config: RunConfig) -> Mapping[str, str]:  # noqa: ARG002 - the same on every GPU
        """Return the one hint: whether inferences are replayed as CUDA graphs."""
        return {GRAPHS: "on|off"}

    def unavailable(self, config: RunConfig) -> str:
        """Return why there is no GPU to run on, or ""."""
        return super().unavailable(config) or cuda.lacking(config.device)

    def place(self, config: RunConfig) -> str:
        """Return the GPU's name, its architecture and the driver's version, or why there is none."""
        return self.unavailable(config) or cuda.place(config.device)

    def _open(self, model: str, config: RunConfig) -> Session:
        graphs = wants_graphs(config)
        path = Path(model)
        record, plan = read_engine(path, self.flavour)
        grade = grade_of(record.precision, "f32")
        if config.precision not in {"auto", grade}:
            raise UnsupportedError(f"asked to compute {path} in {config.precision}, the engine computes in {grade}")
        loaded = library(self.flavour)
        check_version(path, record, self.flavour, loaded.version)
        index, gpu = cuda.gpu_at(config.device)
        check_gpu(path, record, gpu)
        ran = Ran(self.name, loaded.version, f"{config.device} {gpu.name}", grade, None)
        lane = cuda.Lane(cuda.driver(), index)
        try:
            engine, context = _load(path, plan, loaded, lane, graphs=graphs)
            check_interface(path, record, engine)
            return TensorRtSession(record, engine, context, lane, ran, graphs=graphs and not self.flavour.ahead)
        except BaseException:
            lane.close()
            raise

    def code(self, file: str, config: RunConfig) -> str:
        """Return Python that opens `file` as `config` says and defines `infer(feeds)`; memory is PyTorch's."""
        return _CODE.format(module=self.flavour.module, file=file, device=config.device)


class RtxBackend(TensorRtBackend):
    """TensorRT for RTX: engines that are built ahead, and finished on the GPU when they are opened."""

    flavour = RTX
    name = module = RTX.module
    suffixes = RTX.suffixes


_CODE: Final = """\
import {module} as trt
import torch

logger = trt.Logger(trt.Logger.WARNING)  # must outlive everything below
torch.cuda.set_device({device!r})
with open({file!r}, "rb") as stream:
    engine = trt.Runtime(logger).deserialize_cuda_engine(stream.read())
context = engine.create_execution_context()
names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
stream = torch.cuda.Stream()


def infer(feeds):
    held = {{name: torch.from_numpy(array).cuda() for name, array in feeds.items()}}
    for name, tensor in held.items():
        assert context.set_input_shape(name, tuple(tensor.shape))
    assert not context.infer_shapes()
    for name in outputs:
        kind = getattr(torch, trt.nptype(engine.get_tensor_dtype(name)).__name__)
        held[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
    for name, tensor in held.items():
        assert context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {{name: held[name].cpu().numpy() for name in outputs}}
"""


def wants_graphs(config: RunConfig) -> bool:
    """Tell whether a RunConfig asks for CUDA graphs."""
    return config.hints.get(GRAPHS) == "on"


def _load(path: Path, plan: bytes, loaded: Library, lane: cuda.Lane, *, graphs: bool) -> tuple[Any, Any]:
    """Deserialize an engine and make its execution context.

    Raises:
        BadInputError: The library takes it for damaged.
        MissingComponentError: Driver, CUDA or GPU are not what it needs.
        ResourceError: It needs more memory than is free.
        UnsupportedError: The library refuses it otherwise.
    """
    trt = loaded.trt
    with loaded.listening() as heard:
        runtime = trt.Runtime(loaded.logger)
        _check_validity(path, plan, loaded, runtime)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UnsupportedError(f"{loaded.flavour.title} can't open {path}: {said(heard)}")
        needed, free = engine.device_memory_size_v2, lane.free_memory()
        if needed > free:
            raise ResourceError(
                f"{path} needs {needed / 1e6:,.0f} MB on the GPU, {free / 1e6:,.0f} MB are free",
                Hint("--profile batch=MIN,OPT,MAX", "with a smaller MAX needs less"),
            )
        context = engine.create_execution_context(*_runtime_config(loaded, engine, graphs=graphs))
        if context is None:
            raise UnsupportedError(f"{loaded.flavour.title} can't prepare {path}: {said(heard)}")
    return engine, context


def _check_validity(path: Path, plan: bytes, loaded: Library, runtime: Any) -> None:  # noqa: ANN401
    """Ask a library that can tell, before it loads an engine, what it has against it."""
    if not loaded.flavour.ahead:
        return
    trt = loaded.trt
    _, findings = runtime.get_engine_validity(plan)
    for name, (kind, words) in _FINDINGS.items():
        if int(findings) & int(getattr(trt.EngineInvalidityDiagnostics, name)):
            raise kind(f"{path} {words}, says {loaded.flavour.title} {loaded.version}")


def _runtime_config(loaded: Library, engine: Any, *, graphs: bool) -> tuple[Any, ...]:  # noqa: ANN401
    """Return what a context is made with: kernels for a new shape are compiled before it runs, not while slower ones do.

    A library that takes this captures its graphs by itself.
    """
    if not loaded.flavour.ahead:
        return ()
    trt = loaded.trt
    runtime_config = engine.create_runtime_config()
    runtime_config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    if graphs:
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return (runtime_config,)


def check_interface(path: Path, record: EngineRecord, engine: Any) -> None:  # noqa: ANN401
    """Compare an engine's inputs and outputs with those of its record.

    Raises:
        BadInputError: They differ.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: (engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))) for name in names}
    for spec in (*record.inputs, *record.outputs):
        if spec.name not in found:
            raise BadInputError(f"{path} has no tensor {spec.name!r}; it has {', '.join(names)}")
        kind, shape = found[spec.name]
        if _DTYPES.get(kind) != spec.dtype or not _fits(shape, spec):
            raise BadInputError(
                f"{path} has {spec.name!r} as {kind} {list(shape)}; its record says {spec.dtype} {spec.text}"
            )
    if len(names) != len(record.inputs) + len(record.outputs):
        raise BadInputError(f"{path} has tensors that its record doesn't name: {', '.join(names)}")


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == dim if isinstance(dim, int) else size == -1 for size, dim in zip(shape, spec.shape, strict=True)
    )


def _holds(bounds: Sequence[Sequence[int]], shape: tuple[int, ...]) -> bool:
    """Tell whether a shape lies within the least and the largest of a profile."""
    least, _, most = bounds
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def said(heard: list[str]) -> str:
    """Return what a library complained about last, or that it said nothing."""
    return plain(heard[-1]) if heard else "it doesn't say why"


BACKEND, RTX_BACKEND = TensorRtBackend(), RtxBackend()
