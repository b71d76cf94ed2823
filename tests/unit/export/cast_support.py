"""What the tests of the cast share: small graphs by hand, range tables that say what a test wants, the stage run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from deploykit.artifact import FileRecord, RunConfig
from deploykit.calibration.ranges import RANGES, Collector, RangeTable, Seen
from deploykit.export import onnx_files, provenance
from deploykit.export.cast import STAGE, CastOptions
from deploykit.export.stage import Item, Workspace
from deploykit.runtime.backends.emulator import BACKEND as EMULATOR
from deploykit.runtime.backends.onnxruntime import BACKEND as RUNTIME

Array = NDArray[Any]
Range = tuple[float, float]
FP16 = CastOptions("fp16")


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return make.make_node(operator, inputs.split(","), output.split(","), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    shape: Sequence[int | str] = ("batch", 4, 8, 8),
    *,
    opset: int = 20,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """Make a model of one float32 input, x."""
    inputs = [make.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    given = [make.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    built = make.make_graph(list(nodes), "g", inputs, given, constants)
    made = make.make_model(built, opset_imports=[make.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def item(kind: str, folder: Path, facts: Mapping[str, Any] | None = None) -> Item:
    records = tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()))
    return Item(kind, folder, records, facts or {})


def hub(proto: onnx.ModelProto, folder: Path, modules: Mapping[str, str] | None = None) -> Item:
    """Write a graph as stages hand it on."""
    folder.mkdir(parents=True)
    made = onnx_files.save_apart(ir.serde.deserialize_model(proto), folder)
    onnx_files.save(made, folder / onnx_files.MODEL)
    provenance.write(folder / onnx_files.MODULES, modules or {})
    return item("graph", folder)


def table_of(graph: Item, folder: Path, known: Mapping[str, Range], *, rest: Range = (-4.0, 4.0)) -> Item:
    """Write a table in which all floating tensors reach as far as `rest`, but those that are known."""
    folder.mkdir()
    inferred = onnx.shape_inference.infer_shapes(onnx_files.load(graph.path(onnx_files.MODEL))).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    names = [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    ranges = {}
    for name in names:
        low, high = known.get(name, rest)
        collector, nothing = Collector(name), np.empty(0, np.float32)
        collector.add(Seen(low, high, np.array([low, high], np.float32), nothing, nothing, nothing))
        ranges[name] = collector.range()
    RangeTable(graph.digest, "images", 1, ranges).save(folder / RANGES)
    return item("ranges", folder)


def cast(graph: Item, ranges: Item, options: CastOptions, folder: Path) -> Item:
    """Run the stage and check what it made."""
    folder.mkdir()
    facts = STAGE.run({"graph": graph, "ranges": ranges}, options, Workspace(folder, lambda _done, _total: None))
    made = item("graph", folder, facts)
    STAGE.ensure({"graph": graph, "ranges": ranges}, options, made)
    return made


def cast_model(
    proto: onnx.ModelProto,
    tmp_path: Path,
    options: CastOptions = FP16,
    known: Mapping[str, Range] | None = None,
    modules: Mapping[str, str] | None = None,
) -> Item:
    graph = hub(proto, tmp_path / "graph", modules)
    return cast(graph, table_of(graph, tmp_path / "ranges", known or {}), options, tmp_path / "cast")


def structure(made: Item) -> onnx.GraphProto:
    return onnx_files.load(made.path(onnx_files.MODEL)).graph


def operators(made: Item) -> list[str]:
    return [one.op_type for one in structure(made).node]


def types(made: Item) -> dict[str, int]:
    graph = structure(made)
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def rules(made: Item) -> dict[str, str]:
    return {island["node"]: island["rule"] for island in made.facts["islands"]}


def run(path: Path, feed: Array, backend: str = "emulator") -> Array:
    opener = EMULATOR if backend == "emulator" else RUNTIME
    with opener.open(str(path), RunConfig(backend, threads=1)) as session:
        (found, *_) = session.infer({"x": feed}).values()
    return found


def random(seed: int, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


KERNEL = random(1, 6, 4, 3, 3, scale=0.2)
CONV = node("Conv", "x,kernel", "conv", pads=[1] * 4)
