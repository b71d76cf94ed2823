"""A TensorRT whose engines double their input, with the names of the real one alone; it notes what is asked of it.

It stands in where the real libraries need a GPU: to run. Building and refusing is tested with the real ones.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

SIZES = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16}


@dataclass
class Script:
    """What the fake engine is, what it answers, and what was asked of it."""

    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(
        default_factory=lambda: {"x": ("FLOAT", (-1, 3)), "y": ("FLOAT", (-1, 3))}
    )
    refuses: str = ""
    findings: int = 0
    opens: bool = True
    memory: int = 1000
    profiles: tuple[tuple[int, int], ...] = ((1, 8),)
    calls: list[str] = field(default_factory=list)

    def said(self, name: str) -> bool:
        self.calls.append(name)
        return name != self.refuses


class Context:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle not in {0, None}, "never on the default stream"
        self.profile = profile_index
        return self.script.said("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self.script.profiles[self.profile]
        assert least <= shape[0] <= most, "the profile in use holds the shape"
        self.shapes[name] = tuple(shape)
        return self.script.said("set_input_shape")

    def infer_shapes(self) -> list[str]:
        return [] if self.script.said("infer_shapes") else ["x"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        self.script.calls.append("get_tensor_shape")
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.script.said("set_tensor_address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle not in {0, None}, "never on the default stream"
        assert set(self.addresses) == set(self.script.tensors), "every tensor has an address"
        if not self.script.said("execute_async_v3"):
            return False
        source, target = (self._view(name) for name in ("x", "y"))
        target[:] = 2 * source
        return True

    def _view(self, name: str) -> Any:
        kind: Any = np.dtype(SIZES[self.script.tensors[name][0]])
        count = math.prod(self.shapes["x"])
        block: Any = (ctypes.c_char * (count * kind.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(block, kind)


class Engine:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.num_io_tensors = len(script.tensors)
        self.device_memory_size_v2 = script.memory
        self.num_optimization_profiles = len(script.profiles)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == "x", "of inputs alone"
        least, most = self.script.profiles[profile_index]
        return [(rows, 3) for rows in (least, least, most)]

    def get_tensor_name(self, index: int) -> str:
        return list(self.script.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.script.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.script.tensors[name][1]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=None, cuda_graph_strategy=None)

    def create_execution_context(self, *arguments: Any) -> Context | None:
        self.script.calls += [f"strategy {one.dynamic_shapes_kernel_specialization_strategy}" for one in arguments]
        self.script.calls += [f"graphs {one.cuda_graph_strategy}" for one in arguments]
        return Context(self.script) if self.script.said("create_execution_context") else None


class Runtime:
    def __init__(self, script: Script) -> None:
        self.script = script

    def get_engine_validity(self, plan: bytes) -> tuple[int, int]:
        return 0, self.script.findings

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self.script.calls.append("deserialize_cuda_engine")
        return Engine(self.script) if self.script.opens else None


FINDINGS = {
    "VERSION_MISMATCH": 1,
    "UNSUPPORTED_CC": 2,
    "OLD_CUDA_DRIVER": 4,
    "OLD_CUDA_RUNTIME": 8,
    "INSUFFICIENT_GPU_MEMORY": 16,
    "MALFORMED_ENGINE": 32,
}


def module(script: Script) -> Any:
    """Return what `import tensorrt_rtx` would."""
    return SimpleNamespace(
        Runtime=lambda _logger: Runtime(script),
        EngineInvalidityDiagnostics=SimpleNamespace(**FINDINGS),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="EAGER"),
    )
