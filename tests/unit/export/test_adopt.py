"""Adopting a graph that exists: its open dimensions get sizes or names, all else stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.cases.files import write_boxes
from tests.unit.models.test_source_file import graph

from deploykit.artifact import FileRecord, RunConfig
from deploykit.errors import BadInputError, BakedAxisError, UsageError
from deploykit.export import adopt, onnx_files, plan, provenance
from deploykit.export.request import Cell, ImagesRequest, Request
from deploykit.export.stage import Item, Workspace
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.runtime.backends.base import get_backend


def run(original: Original, folder: Path, *, batch: int = 1, dynamic: tuple[str, ...] = ()) -> Item:
    folder.mkdir()
    options = adopt.AdoptOptions(batch, dynamic)
    given = {"original": plan.original_item(original)}
    facts = adopt.STAGE.run(given, options, Workspace(folder, lambda _done, _total: None))
    return Item("graph", folder, tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir())), facts)


def shapes(item: Item) -> tuple[tuple[object, ...], ...]:
    found = onnx_files.load(item.path(onnx_files.MODEL)).graph
    sides = (*onnx_files.specs(found.input, {}), *onnx_files.specs(found.output, {}))
    return tuple(tuple(dim if isinstance(dim, int) else dim.name for dim in spec.shape) for spec in sides)


def test_open_dimensions_are_fixed(tmp_path: Path) -> None:
    original = sources.resolve(str(graph(tmp_path / "a.onnx", side="s")), SourceOptions(image_size=48))
    made = run(original, tmp_path / "made", batch=3)
    assert shapes(made) == ((3, 3, 48, 48), (3, 5))
    assert made.facts == {"nodes": 4, "opset": 20, "ir_version": 10}
    assert set(provenance.read(made.path(onnx_files.MODULES)).values()) == {""}


def test_an_open_batch_gets_the_axes_name(tmp_path: Path) -> None:
    original = sources.resolve(str(graph(tmp_path / "a.onnx", batch="whatever")))
    assert shapes(run(original, tmp_path / "made", dynamic=("batch",))) == (("batch", 3, 32, 32), ("batch", 5))


def test_weights_that_lie_beside_the_graph_come_along(tmp_path: Path) -> None:
    original = sources.resolve(str(graph(tmp_path / "a.onnx", external="w.bin")))
    made = run(original, tmp_path / "made")
    whole = onnx_files.load_whole(made.path(onnx_files.MODEL))
    values = onnx.numpy_helper.to_array(whole.graph.initializer[0])
    assert values.tolist() == np.arange(15, dtype=np.float32).reshape(3, 5).tolist()


def test_a_graph_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx")
    original = sources.resolve(str(path))
    path.write_bytes(b"")
    with pytest.raises(BadInputError):
        run(original, tmp_path / "made")


def test_a_fixed_batch_can_be_neither_opened_nor_changed(tmp_path: Path) -> None:
    original = sources.resolve(str(graph(tmp_path / "a.onnx", batch=4)))
    cells = (Cell("fp32", "ort"),)
    golden = ImagesRequest("rendered:calib", "0", 1)
    with pytest.raises(BakedAxisError, match="fixed to 4"):
        plan.check_request(original, Request(cells, 1, ("batch",), golden, None))
    with pytest.raises(UsageError, match="fixed to 4") as caught:
        plan.check_request(original, Request(cells, 1, (), golden, None))
    assert caught.value.hints[0].action == "--batch 4"
    plan.check_request(original, Request(cells, 4, (), golden, None))


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_that_are_listed_as_inputs_are_none(tmp_path: Path, version: int) -> None:
    path = write_boxes(tmp_path / "old.onnx", listed=True)
    model = onnx.load(str(path))
    model.ir_version = version
    path.write_bytes(model.SerializeToString())
    made = run(sources.resolve(str(path)), tmp_path / "made")
    found = onnx_files.load(made.path(onnx_files.MODEL))
    assert [value.name for value in found.graph.input] == ["x"]
    assert found.ir_version == max(4, version)
    assert {tensor.name for tensor in found.graph.initializer} == {"w", "s", "k"}


def test_a_graph_without_a_name_whose_nodes_come_in_any_order_is_put_in_order(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.name = ""
    path.write_bytes(model.SerializeToString())
    made = run(sources.resolve(str(path)), tmp_path / "made")
    assert [node.op_type for node in onnx_files.load(made.path(onnx_files.MODEL)).graph.node] == [
        *("Cast", "GlobalAveragePool", "Flatten", "MatMul")
    ]


def test_a_graph_that_breaks_the_rules_otherwise_is_bad_input(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", batch=1)
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6  # 5 are computed
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match=r"a\.onnx: the graph breaks ONNX's rules"):
        run(sources.resolve(str(path)), tmp_path / "made")


def test_weights_that_are_inputs_too_become_weights_alone(tmp_path: Path) -> None:
    source = write_boxes(tmp_path / "old.onnx", listed=True)
    (tmp_path / "made").mkdir()
    model = adopt.adopted(source, tmp_path / "made", {})
    assert [value.name for value in model.graph.input] == ["x"]
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    config = RunConfig("onnxruntime", precision="f32")
    answers = []
    for path in (source, tmp_path / "made" / onnx_files.MODEL):
        with get_backend("onnxruntime").open(str(path), config) as session:
            answers.append(session.infer({"x": image})["boxes"])
    assert answers[0].tolist() == answers[1].tolist()


def test_a_node_without_its_input_is_bad_input(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx")
    model = onnx.load(path)
    del model.graph.node[1].input[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match=r"a\.onnx: the graph breaks ONNX's rules"):
        adopt.adopted(path, tmp_path, {})


def test_sizes_that_the_graph_does_not_work_at_are_bad_input(tmp_path: Path) -> None:
    """Three channels are fixed by the weights; the file leaves them open."""
    path = graph(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match=r"a\.onnx: .*(dimension|shape)"):
        adopt.adopted(path, tmp_path, {"pixels": (1, 4, 32, 32)})
