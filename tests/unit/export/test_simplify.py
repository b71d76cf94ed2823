"""Simplifying: outputs compared, interface kept, folding bounded, modules carried over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as make
from onnx import TensorProto, numpy_helper

from deploykit.artifact import FileRecord
from deploykit.bundle import save_tensors
from deploykit.export import onnx_files, provenance, simplify
from deploykit.export.stage import TENSORS, Item, Workspace


def graph(scale: float = 2.0, output: str = "y") -> onnx.ModelProto:
    """y = x * scale * ones, where `scale * ones` is a constant of 4 MB that is computed from small ones."""
    shape = numpy_helper.from_array(np.array([1024, 1024], np.int64), "shape")
    factor = numpy_helper.from_array(np.array([scale], np.float32), "factor")
    nodes = [
        make.make_node("Expand", ["factor", "shape"], ["big"]),
        make.make_node("Mul", ["x", "big"], [output], name="scaling"),
    ]
    sides = [make.make_tensor_value_info(name, TensorProto.FLOAT, [1024, 1024]) for name in ("x", output)]
    built = make.make_graph(nodes, "g", sides[:1], sides[1:], [shape, factor])
    return make.make_model(built, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


def run(tmp_path: Path, options: simplify.SimplifyOptions) -> tuple[onnx.ModelProto, dict[str, str], dict[str, object]]:
    """Run the stage on `graph()`."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    onnx_files.save(graph(), before / onnx_files.MODEL)
    provenance.write(before / onnx_files.MODULES, {"big": "block.grow", "y": "block.scale"})
    files = tuple(FileRecord.of(before, name) for name in (onnx_files.MODEL, onnx_files.MODULES))
    workspace = Workspace(after, lambda _done, _total: None)
    save_tensors(before / TENSORS, {"x": np.random.default_rng(0).standard_normal((1024, 1024), np.float32)})
    golden = Item("tensors", before, (FileRecord.of(before, TENSORS),))
    inputs = {"graph": Item("graph", before, files), "golden": golden}
    facts = dict(simplify.STAGE.run(inputs, options, workspace))
    return onnx_files.load(after / onnx_files.MODEL), provenance.read(after / onnx_files.MODULES), facts


def test_constants_are_folded_and_modules_survive(tmp_path: Path) -> None:
    model, modules, facts = run(tmp_path, simplify.SimplifyOptions())
    assert [node.op_type for node in model.graph.node] == ["Mul"]
    assert modules == {"y": "block.scale"}
    assert facts == {"nodes_before": 2, "nodes": 1, "relative_max": 0.0}


def test_folding_does_not_grow_the_file_beyond_its_limit(tmp_path: Path) -> None:
    model, _, _ = run(tmp_path, simplify.SimplifyOptions(fold_limit="1MB"))
    assert [node.op_type for node in model.graph.node] == ["Expand", "Mul"]
