"""Seeds: sound files of every kind that the toolkit reads, small, made by code."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from PIL import Image

from deploykit import serde
from deploykit.artifact import Axis, TensorSpec
from deploykit.bundle import save_tensors
from deploykit.calibration.ranges import BINS, RangeTable, TensorRange
from deploykit.runtime import frames
from deploykit.runtime.backends.tensorrt_library import FLAVOURS
from deploykit.runtime.backends.tensorrt_record import BuildOrder, record_path
from deploykit.runtime.rollout import Rollout, Sized, save_sized
from deploykit.runtime.saturation import FILE as PROBE
from deploykit.verdict import Executed
from tests.support import FILES, RECIPE, manifest, record

#: Files by name, that which is opened first.
Files = Mapping[str, bytes]


def bytes_of(name: str, write: Callable[[Path], object]) -> bytes:
    """Return what `write` writes to a path that ends with `name`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


def arrays() -> dict[str, NDArray[Any]]:
    """Return arrays of several types."""
    random = np.random.default_rng(0)
    return {
        "input": random.standard_normal((2, 3, 4, 4)).astype(np.float32),
        "times": np.arange(2),
        "half": np.ones((2, 2), np.float16),
        "scalar": np.array(1.5),
    }


def tensors() -> tuple[Files, ...]:
    """Return an .npz as this package writes it, and as numpy does."""
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays())  # type: ignore[arg-type]
    own = bytes_of("t.npz", lambda path: save_tensors(path, arrays()))
    return {"t.npz": own}, {"t.npz": sink.getvalue()}


def rollout() -> bytes:
    """Return a rollout of two steps and two rows."""
    latents = np.zeros((2, 4, 2, 2), np.float32)
    one = Rollout("input", np.ones((2, 3)), np.zeros((2, *latents.shape), np.float32), latents)
    return bytes_of("rollout.npz", one.save)


def sized() -> bytes:
    """Return inputs of another size."""
    image = np.zeros((1, 3, 8, 8), np.float32)
    sets = [Sized("height", 8, {"input": image}, {"logits": np.zeros((1, 2), np.float32)})]
    return bytes_of("sizes.npz", lambda path: save_sized(path, sets))


def golden() -> tuple[Files, ...]:
    """Return golden inputs with all that lies beside them."""
    rows = {name: array for name, array in arrays().items() if array.ndim}
    own = bytes_of("t.npz", lambda path: save_tensors(path, rows))
    return ({"inputs.npz": own, "original.npz": own, "rollout.npz": rollout(), "sizes.npz": sized()},)


def bundle() -> tuple[Files, ...]:
    """Return a bundle in which every kind of record occurs."""
    graph = graphs()[0]["net.onnx"]
    known = record("net.fp32.onnx", graph)
    whole = manifest(dataclasses.replace(FILES, model=(known,)))
    contents = {one.path: graph if one.path == known.path else b"content" for one in whole.files}
    return ({"manifest.json": whole.to_bytes(), **contents},)


def checkpoints() -> tuple[Files, ...]:
    """Return checkpoints as archives, as PyTorch wrote them once, and nested as training scripts save them."""
    import torch

    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -1.0])}
    nested = {
        "epoch": 3,
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "metric": np.float64(1),
    }
    odd = {
        **state,
        "half": torch.ones(2, dtype=torch.float16),
        "flag": torch.tensor([True]),
        "z": torch.ones(2).to(torch.complex64),
    }
    found = [_saved(value, new=new) for value in (state, nested, odd) for new in (True, False)]
    return *found, {"w.pth": pickle.dumps({"a": 1})}


def _saved(value: object, *, new: bool) -> Files:
    import torch

    sink = io.BytesIO()
    torch.save(value, sink, _use_new_zipfile_serialization=new)
    return {"w.pth": sink.getvalue()}


def safetensors() -> tuple[Files, ...]:
    """Return a state dict."""
    import torch
    from safetensors.torch import save

    state = {
        "conv.weight": torch.arange(6.0).reshape(2, 3),
        "conv.bias": torch.tensor([1.0, -1.0], dtype=torch.float16),
    }
    return {"w.safetensors": save(state)}, {"w.safetensors": save(state, {"format": "pt"})}


def loras() -> tuple[Files, ...]:
    """Return low-rank changes of a layer called `mid.to_q`, as kohya's trainers and as PEFT name them."""
    import torch
    from safetensors.torch import save

    down, up = torch.ones(2, 3), torch.ones(4, 2)
    stem = "lora_unet_mid_to_q"
    kohya = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(2.0)}
    peft = {"unet.mid.to_q.lora_A.weight": down, "unet.mid.to_q.lora_B.weight": up}
    settings = json.dumps({"unet.lora_alpha": 2, "unet.use_dora": False})
    return {"l.safetensors": save(kohya)}, {"l.safetensors": save(peft, {"lora_adapter_metadata": settings})}


def programs() -> tuple[Files, ...]:
    """Return a program of torch.export."""
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    dims = ({0: torch.export.Dim("n", min=1, max=8)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dims)
        return ({"net.pt2": bytes_of("net.pt2", lambda path: torch.export.save(program, path))},)


def _classifier(*, external: bool) -> tuple[onnx.ModelProto, bytes]:
    random = np.random.default_rng(0)
    kernel = numpy_helper.from_array(random.standard_normal((4, 3, 3, 3)).astype(np.float32), "kernel")
    weights = numpy_helper.from_array(random.standard_normal((4, 5)).astype(np.float32), "weights")
    raw = weights.raw_data
    if external:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(len(raw)))):
            weights.external_data.add(key=key, value=value)
    nodes = [
        make.make_node("Conv", ["pixels", "kernel"], ["features"], pads=[1, 1, 1, 1], name="conv"),
        make.make_node("Relu", ["features"], ["positive"], name="relu"),
        make.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        make.make_node("Flatten", ["pooled"], ["rows"], axis=1),
        make.make_node("MatMul", ["rows", "weights"], ["scores"]),
    ]
    sides = [
        make.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 8, 8]),
        make.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 5]),
    ]
    graph = make.make_graph(nodes, "g", sides[:1], sides[1:], [kernel, weights])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    texts = {"labels": json.dumps(list("abcde")), "preprocess": json.dumps(serde.to_json(RECIPE))}
    for key, text in texts.items():
        model.metadata_props.add(key=f"deploykit.{key}", value=text)
    return model, raw


def _branching() -> onnx.ModelProto:
    """A graph with a graph of its own, a constant that is computed, and a function."""
    outputs = [make.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("yes", "no")]
    branches = [
        make.make_graph([make.make_node(op, ["x"], [out.name])], out.name, [], [out])
        for op, out in zip(("Neg", "Abs"), outputs, strict=True)
    ]
    shape = numpy_helper.from_array(np.array([1, 3, 1, 1]), "shape")
    nodes = [
        make.make_node("ConstantOfShape", ["shape"], ["zeros"], value=numpy_helper.from_array(np.zeros(1, np.float32))),
        make.make_node("Add", ["x", "zeros"], ["sum"]),
        make.make_node("ReduceMax", ["sum"], ["top"], keepdims=0),
        make.make_node("Cast", ["top"], ["positive"], to=TensorProto.BOOL),
        make.make_node("If", ["positive"], ["chosen"], then_branch=branches[0], else_branch=branches[1]),
        make.make_node("Twice", ["chosen"], ["y"], domain="own"),
    ]
    opsets = [make.make_opsetid("", 20), make.make_opsetid("own", 1)]
    function = make.make_function("own", "Twice", ["a"], ["b"], [make.make_node("Add", ["a", "a"], ["b"])], opsets[:1])
    sides = [make.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    graph = make.make_graph(nodes, "g", sides[:1], sides[1:], [shape])
    return make.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


@cache
def graphs() -> tuple[Files, ...]:
    """Return ONNX files: a classifier, the same with weights beside it, and one with graphs within a graph."""
    whole, apart = _classifier(external=False)[0], _classifier(external=True)
    return (
        {"net.onnx": whole.SerializeToString()},
        {"net.onnx": apart[0].SerializeToString(), "w.bin": apart[1]},
        {"net.onnx": _branching().SerializeToString()},
    )


@cache
def rounded() -> tuple[Files, ...]:
    """Return an ONNX file of layers in 8 bits, the same with weights beside it, and with weights written one by one."""
    model = onnx.load(PROBE)
    apart, listed = onnx.load(PROBE), onnx.load(PROBE)
    for tensor in listed.graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.helper.make_tensor(tensor.name, TensorProto.INT8, values.shape, values.ravel().tolist())
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        onnx.save(apart, path, save_as_external_data=True, location="w.bin", size_threshold=256)
        beside = {"net.onnx": path.read_bytes(), "w.bin": (Path(folder) / "w.bin").read_bytes()}
    return {"net.onnx": model.SerializeToString()}, beside, {"net.onnx": listed.SerializeToString()}


@cache
def rounded_representations() -> tuple[Files, ...]:
    """Return the layers in 8 bits as OpenVINO IR."""
    return (_representation(rounded()[0]["net.onnx"]),)


@cache
def representations() -> tuple[Files, ...]:
    """Return a classifier as OpenVINO IR."""
    return (_representation(graphs()[0]["net.onnx"]),)


def _representation(graph: bytes) -> Files:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "net.onnx", Path(folder) / "net.xml"
        source.write_bytes(graph)
        openvino.save_model(openvino.Core().read_model(str(source)), str(target), compress_to_fp16=False)
        return {"net.xml": target.read_bytes(), "net.bin": target.with_suffix(".bin").read_bytes()}


def pictures() -> tuple[Files, ...]:
    """Return an image in every format that is decoded."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *((f"i.{ending}", image, {}) for ending in ("png", "jpg", "bmp", "gif", "webp", "ppm", "tiff")),
        ("i.png", image.convert("P"), {"transparency": 3}),
        ("i.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), {}),
        ("i.tiff", image, {"compression": "tiff_lzw"}),
        ("i.tiff", Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), {}),
        ("i.webp", image, {"lossless": True}),
        ("i.jpg", image, {"progressive": True, "exif": _turned()}),
        ("i.gif", image.convert("P"), {"save_all": True, "append_images": [image.convert("P").rotate(90)]}),
    ]
    found = []
    for name, picture, options in made:
        sink = io.BytesIO()
        picture.save(sink, format=Image.registered_extensions()[f".{name[2:]}"], **options)
        found.append({name: sink.getvalue()})
    return tuple(found)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def listings() -> tuple[Files, ...]:
    """Return lists of images with classes by name and by index, in several manners."""
    image = pictures()[0]["i.png"]
    beside = {"a.png": image, "b.png": image + b" "}
    return tuple(
        {name: text.encode(), **beside}
        for name, text in (
            ("l.csv", "image,label\na.png,cat\nb.png,dog\n"),
            ("l.csv", 'path;class;note\n"a.png";0;"x;y"\nb.png;1;\n'),
            ("l.tsv", "file\tlabel\na.png\tcat\nb.png\tdog\n"),
        )
    )


def class_names() -> tuple[Files, ...]:
    """Return a file of three class names."""
    return ({"labels.txt": "cat\ndög\nfish, Pisces (n00000001)\n".encode()},)


def tables() -> tuple[Files, ...]:
    """Return the ranges of two tensors."""
    channels = np.arange(3, dtype=np.float32)
    none = np.empty(0, np.float32)
    histogram = np.ones(BINS)
    ranges = {
        "x": TensorRange(-1.0, 2.0, -0.5, 1.5, 2.0, histogram, channels - 1, channels, channels - 0.5),
        "y": TensorRange(-1.0, 2.0, -0.5, 1.5, 2.0, histogram, none, none, none),
    }
    table = RangeTable("g" * 64, "i" * 64, 5, ranges)
    return ({"ranges.npz": bytes_of("ranges.npz", table.save)},)


def calibrations() -> tuple[Files, ...]:
    """Return arrays of images and of prepared inputs, and a folder's images."""
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    inputs = np.zeros((3, 3, 16, 16), np.float32)
    found: list[Files] = []
    for array in (images, inputs):
        plain, zipped = io.BytesIO(), io.BytesIO()
        np.save(plain, array)
        np.savez_compressed(zipped, images=array)
        found += [{"c.npy": plain.getvalue()}, {"c.npz": zipped.getvalue()}]
    return tuple(found)


def prompts(width: int) -> tuple[Files, ...]:
    """Return the states of prompts, of this width."""
    sink = io.BytesIO()
    np.save(sink, np.random.default_rng(0).standard_normal((9, 7, width)).astype(np.float32))
    return ({"prompts.npy": sink.getvalue()},)


def exchanges() -> tuple[Files, ...]:
    """Return frames of a worker: arrays, and a failure."""
    sent, failed = io.BytesIO(), io.BytesIO()
    frames.send(sent, {"op": "infer", "opened": {"inputs": []}}, arrays())
    frames.send(failed, {"failure": frames.failure_of(ValueError("x"))}, {})
    return {"sent.frame": sent.getvalue()}, {"failed.frame": failed.getvalue()}


def timings() -> tuple[Files, ...]:
    """Return a timing cache."""
    kept = b"what a library wrote"
    return ({"timings": hashlib.sha256(kept).digest() + kept},)


def _order() -> BuildOrder:
    batch = Axis("batch", 1, 1, 8)
    inputs = (TensorSpec("input", "float32", (batch, 3, 8, 8)),)
    outputs = (TensorSpec("logits", "float32", (batch, 2)),)
    return BuildOrder(1, "tensorrt", "fp16", inputs, outputs, (86,), "e" * 64, {"labels": "[]"}, {"batch": (batch,)})


def orders() -> tuple[Files, ...]:
    """Return an order to build an engine."""
    return ({"net.trt.order.json": _order().to_bytes()},)


def engines() -> tuple[Files, ...]:
    """Return engines with their records; no library would take them."""
    found = []
    for flavour in FLAVOURS:
        name = f"net{flavour.suffixes[0]}"
        plan = flavour.magic + bytes(60)
        told = dataclasses.replace(_order().record(plan, "11.4.0.106", (86,)), flavour=flavour.module)
        told = dataclasses.replace(told, layers=(Executed("conv", "Conv", "f16", 100),))
        found.append({name: plan, record_path(Path(name)).name: told.to_bytes()})
    return tuple(found)


def sidecars() -> tuple[Files, ...]:
    """Return a map of modules, a cache entry, a bundle's journal and what locates an original."""
    from deploykit.export.cache import Entry
    from deploykit.models import sources

    entry = Entry("graph", (record("model.onnx"),), {"nodes": 3}, {"onnx": "1"}, 1.5)
    return (
        {"modules.json": json.dumps({"nodes": {"y": "blocks.0"}}).encode()},
        {"entry.json": serde.canonical_bytes(entry)},
        {"journal.json": json.dumps(["a", "b/c"]).encode()},
        {"locator.json": sources.resolve("tiny-convnext").locator.encode()},
    )


def written(folder: Path, files: Files) -> Path:
    """Write files into a folder, and return the path of that which is opened."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / next(iter(files))
