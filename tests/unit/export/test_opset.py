"""An older operator set: converted where it can be, refused by name where it can't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper as make
import pytest
from onnx import TensorProto, numpy_helper

from deploykit import ExportOptions
from deploykit.artifact import FileRecord
from deploykit.bundle import save_tensors
from deploykit.errors import UnsupportedError, UsageError
from deploykit.export import onnx_files, opset, provenance
from deploykit.export.stage import TENSORS, Item, Workspace
from deploykit.models.family import get_family
from deploykit.workflow.export import prepare

SHAPE = [2, 3, 4]


def normalized(to: int = 20, *more: onnx.NodeProto) -> onnx.ModelProto:
    """LayerNormalization (since 17), then a mean whose axes are an input (since 18) with an attribute of that time."""
    constants = [
        numpy_helper.from_array(np.linspace(0.5, 2.0, 4, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
    ]
    nodes = [
        make.make_node("LayerNormalization", ["x", "scale"], ["normal"], axis=-1),
        make.make_node("ReduceMean", ["normal", "axes"], ["y"], keepdims=0, noop_with_empty_axes=0),
        *more,
    ]
    sides = [
        make.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
        make.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [2, 4]),
    ]
    built = make.make_graph(nodes, "g", sides[:1], sides[1:], constants)
    return make.make_model(built, opset_imports=[make.make_opsetid("", to)], ir_version=10)


def convert(tmp_path: Path, model: onnx.ModelProto, to: int) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Run the stage on a graph."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    onnx_files.save(model, before / onnx_files.MODEL)
    provenance.write(before / onnx_files.MODULES, {"normal": "block.norm", "y": "block.pool"})
    files = tuple(FileRecord.of(before, name) for name in (onnx_files.MODEL, onnx_files.MODULES))
    save_tensors(before / TENSORS, {"x": np.random.default_rng(0).standard_normal(SHAPE, np.float32)})
    golden = Item("tensors", before, (FileRecord.of(before, TENSORS),))
    inputs = {"graph": Item("graph", before, files), "golden": golden}
    options = opset.OpsetOptions(to)
    facts = dict(opset.STAGE.run(inputs, options, Workspace(after, lambda _done, _total: None)))
    made = Item("graph", after, tuple(FileRecord.of(after, path.name) for path in after.iterdir()))
    opset.STAGE.ensure(inputs, options, made)
    assert provenance.read(after / onnx_files.MODULES)["normal"] == "block.norm"
    return onnx_files.load(after / onnx_files.MODEL), facts


def test_a_graph_comes_down_with_its_ir_version_and_computes_the_same(tmp_path: Path) -> None:
    made, facts = convert(tmp_path, normalized(), 17)
    assert opset.opset_of(made) == 17
    assert made.ir_version == 8, "what runtimes of that time read"
    mean = next(node for node in made.graph.node if node.op_type == "ReduceMean")
    assert "noop_with_empty_axes" not in {one.name for one in mean.attribute}
    assert facts["relative_max"] == pytest.approx(0.0, abs=1e-6)


def test_the_opset_that_it_has_is_no_work_and_a_newer_one_is_no_lie(tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    assert opset.opset_of(convert(tmp_path / "same", normalized(), 20)[0]) == 20
    assert opset.opset_of(convert(tmp_path, normalized(), 21)[0]) == 21


def test_an_operator_that_came_later_is_named_with_its_module_and_the_set_that_has_it(tmp_path: Path) -> None:
    gelu = make.make_node("Gelu", ["y"], ["z"])
    with pytest.raises(UnsupportedError, match="opset 16 has no ") as caught:
        convert(tmp_path, normalized(20, gelu), 16)
    assert "LayerNormalization (since 17, module 'block.norm')" in caught.value.message
    assert "Gelu (since 20" in caught.value.message
    assert caught.value.hints[0].action == "--opset 20"


def test_what_the_converter_can_not_do_is_told(tmp_path: Path) -> None:
    """An attribute of a later time with a value of its own: axes that are empty are not reduced."""
    model = normalized()
    model.graph.node[1].attribute[1].i = 1
    with pytest.raises(UnsupportedError, match="the graph can't be written in opset 17: ") as caught:
        convert(tmp_path, model, 17)
    assert caught.value.hints


@pytest.mark.parametrize(("asked", "traced"), [(13, 18), (18, 18), (19, 19), (23, 20), (None, 20)])
def test_a_network_is_traced_as_near_as_the_exporter_can(asked: int | None, traced: int) -> None:
    assert get_family("mobilenetv3").opset == 20
    made = prepare("tiny-mobilenetv3", ExportOptions(opset=asked, verify=False, bench=False)).plan
    made.check()
    options = {node.id: node.options for node in made.nodes}
    assert options["trace"].opset == traced  # type: ignore[attr-defined]
    assert ("opset" in options) == (asked is not None)


def test_a_precision_that_raises_the_opset_is_refused_before_anything_runs() -> None:
    options = ExportOptions(cells=("bf16:trt-graph",), opset=17, verify=False, bench=False)
    with pytest.raises(UnsupportedError, match="needs opset 22, not 17"):
        prepare("tiny-mobilenetv3", options)
    with pytest.raises(UsageError, match="the oldest is 7"):
        prepare("tiny-mobilenetv3", ExportOptions(opset=3, verify=False, bench=False))
