"""What the conformance suite runs: every registered backend on each of its devices, as it is and through a worker.

A new backend takes part by being registered. If it opens files, it gets the tiny ONNX network below (an IR made of it); a
backend that opens something else needs a line in `model_for`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.export.engines.tensorrt import CAPABILITIES
from deploykit.export.engines.tensorrt_build import BuildOptions, build
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import Session, Tensor, backend_names, get_backend
from deploykit.runtime.backends.tensorrt_library import FLAVOURS, Flavour, library
from deploykit.runtime.backends.tensorrt_record import VERSION, EngineRecord, here, record_path
from deploykit.runtime.worker import open_in_worker

ORIGINAL = "tiny-convnext"
#: The sizes of its images; it takes others too.
OWN = {"height": 64, "width": 64}
METADATA = {"deploykit.axes": '{"input": {"0": "batch"}, "logits": {"0": "batch"}}', "deploykit.labels": '["a", "b"]'}
CHANNELS, SIDE, HIDDEN, CLASSES = 3, 12, 8, 5

#: Largest |error| / largest |reference| that each precision may have on the tiny network.
TOLERANCE = {"f32": 2e-6, "bf16": 2e-2, "f16": 2e-3}


@dataclass(frozen=True)
class Case:
    """One backend, one kind of file, one device, with or without a process of its own."""

    backend: str
    suffix: str
    device: str
    worker: bool

    @property
    def id(self) -> str:
        return f"{self.backend}{self.suffix}-{self.device}" + ("-worker" if self.worker else "")

    def config(self, **settings: Any) -> RunConfig:
        """How it is run on its device; threads are for those that have some."""
        backend = get_backend(self.backend)
        if not backend.threaded and (settings.get("threads") or 0) > 0:
            del settings["threads"]
        return RunConfig(self.backend, **{"device": self.device, **settings})

    def open(self, model: str, **settings: Any) -> Session:
        run = self.config(**settings)
        return open_in_worker(model, run) if self.worker else get_backend(self.backend).open(model, run)


CASES = [
    Case(name, suffix, device, worker)
    for name in backend_names()
    for suffix in (get_backend(name).suffixes or ("",))
    for device in get_backend(name).devices
    for worker in (False, True)
]


def weights() -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(7)
    shapes = {"kernel": (HIDDEN, CHANNELS, 3, 3), "bias": (HIDDEN,), "matrix": (HIDDEN, CLASSES), "shift": (CLASSES,)}
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tiny_onnx(batch: int | str) -> onnx.ModelProto:
    """Build Conv, Gelu, mean, Gemm: float32 [batch, 3, 12, 12] to [batch, 5]."""
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "bias"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["conv"], ["gelu"]),
        helper.make_node("GlobalAveragePool", ["gelu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "shift"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, METADATA)
    onnx.checker.check_model(model, full_check=True)
    return model


def tiny_reference(image: Tensor) -> NDArray[np.float64]:
    """Compute what the tiny network computes, in float64 numpy."""
    w = {name: array.astype(np.float64) for name, array in weights().items()}
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, w["kernel"]) + w["bias"][:, None, None]
    gelu = 0.5 * conv * (1 + np.vectorize(math.erf)(conv / math.sqrt(2)))
    logits: NDArray[np.float64] = gelu.mean(axis=(2, 3)) @ w["matrix"] + w["shift"]
    return logits


def torch_reference(image: Tensor) -> NDArray[np.float64]:
    import torch

    from deploykit.models.sources import open_module, resolve

    with torch.inference_mode():
        result = open_module(resolve(ORIGINAL))(torch.from_numpy(image))
    return np.asarray(result.numpy(), np.float64)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Paths of the tiny network by suffix; with "static" before the suffix for a batch of 1."""
    folder = tmp_path_factory.mktemp("tiny")
    found: dict[str, str] = {}
    for kind, batch in (("", "batch"), ("static", 1)):
        path = folder / f"tiny{kind}.onnx"
        onnx.save(tiny_onnx(batch), path)
        found[f"{kind}.onnx"] = str(path)
        if "openvino" in backend_names() and get_backend("openvino").component.version():
            found[f"{kind}.xml"] = str(_to_ir(path))
        for flavour in FLAVOURS:
            if COMPONENTS[flavour.module].version() and (flavour.ahead or not _unavailable(flavour.module)):
                found |= _to_engines(path, kind, flavour)
    return found


def _unavailable(backend: str, device: str | None = None) -> str:
    run = get_backend(backend).default_run()
    return get_backend(backend).unavailable(run if device is None else run.on(device))


def _to_engines(path: Path, kind: str, flavour: Flavour) -> dict[str, str]:
    """Build an engine of the network and write it under every name that its backend opens."""
    batch = Axis("batch", 1, 2, 8) if kind == "" else 1
    inputs = (TensorSpec("input", "float32", (batch, CHANNELS, SIDE, SIDE)),)
    capabilities = tuple(CAPABILITIES["fp32"]) if flavour.ahead else (cuda.gpu_at("cuda:0")[1].capability,)
    plan = build(flavour, path, BuildOptions(inputs, capabilities if flavour.ahead else ()))
    record = EngineRecord(
        version=VERSION,
        flavour=flavour.module,
        built_by=library(flavour).version,
        platform=here(),
        capabilities=capabilities,
        precision="fp32",
        inputs=inputs,
        outputs=(TensorSpec("logits", "float32", (batch, CLASSES)),),
        size=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        source="0" * 64,
        texts={key.removeprefix("deploykit."): text for key, text in METADATA.items()},
        layers=(),
    )
    found: dict[str, str] = {}
    for suffix in flavour.suffixes:
        engine = path.with_name(f"{path.stem}-{len(found)}{suffix}")
        engine.write_bytes(plan)
        record_path(engine).write_bytes(record.to_bytes())
        found[f"{kind}{suffix}"] = str(engine)
    return found


def _to_ir(path: Path) -> Path:
    import openvino

    model = openvino.Core().read_model(path)
    for key, text in METADATA.items():
        model.set_rt_info(text, key.split("."))
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
    return path.with_suffix(".xml")


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    if reason := _unavailable(found.backend, found.device):
        pytest.skip(f"{found.backend}: {reason}")
    return found


@pytest.fixture(params=[case for case in CASES if case.suffix], ids=lambda case: case.id)
def reader(request: pytest.FixtureRequest) -> Case:
    """A case whose library is here: without its first device too, it tells good files from bad ones."""
    found: Case = request.param
    backend = get_backend(found.backend)
    if backend.component.version() is None:
        pytest.skip(f"{found.backend} is not installed here")
    if found.device != backend.devices[0] and (reason := _unavailable(found.backend, found.device)):
        pytest.skip(f"{found.backend}: {reason}")
    return found


@pytest.fixture
def model(case: Case, files: Mapping[str, str]) -> str:
    """What the case opens, with a dynamic batch."""
    return model_for(case, files)


def model_for(case: Case, files: Mapping[str, str]) -> str:
    return ORIGINAL if case.backend == "torch" else files[case.suffix]


def reference_for(case: Case, image: Tensor) -> NDArray[np.float64]:
    return torch_reference(image) if case.backend == "torch" else tiny_reference(image)


def image_for(spec: TensorSpec, batch: int, seed: int = 0) -> Tensor:
    shape = [OWN.get(dim.name, batch) if isinstance(dim, Axis) else dim for dim in spec.shape]
    return np.random.default_rng(seed).standard_normal(shape).astype(spec.dtype)
