"""Tracing: axes that are really dynamic, modules on record, nothing local inside."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from deploykit.artifact import FileRecord
from deploykit.errors import BakedAxisError, UnsupportedError
from deploykit.export import onnx_files, plan, provenance, trace
from deploykit.export.stage import Item, Workspace
from deploykit.models import source_tiny, sources
from deploykit.models.family import AxisRule

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of its own internals


class BakedBatch(nn.Module):
    """Fixes its batch as attention code often does: by a Python int."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [batch, 8], return [batch, 8]."""
        return x.reshape(int(x.shape[0]) // 2 * 2, 2, 4).mean(dim=1).repeat(1, 2) if x.shape[0] == 2 else x


class Refused(nn.Module):
    """Branches on a value, which can't be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return [batch, 8]."""
        return x if x.sum() > 0 else -x


OPEN = trace.Open({"batch": AxisRule(min=1, max=16, step=1, traced=2)}, ({0: "batch"},))


def test_a_network_that_fixes_its_batch_is_refused_by_the_axis_name() -> None:
    with pytest.raises(BakedAxisError, match="axis batch can't be dynamic") as caught:
        trace._export(BakedBatch(), (torch.zeros(2, 8),), OPEN, "baked")
    assert caught.value.exit_code == 8
    assert caught.value.hints[0].action == "--batch N"


def test_a_network_that_cannot_be_traced_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="refused can't be traced"):
        trace._export(Refused(), (torch.zeros(2, 8),), trace.Open({}, ({},)), "refused")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-convnext, dynamic batch."""
    folder = tmp_path_factory.mktemp("traced")
    _trace(folder, trace.TraceOptions(batch=1, dynamic=("batch",), opset=20))
    return folder


def _trace(folder: Path, options: trace.TraceOptions) -> Item:
    original = plan.original_item(sources.resolve("tiny-convnext"))
    facts = trace.STAGE.run({"original": original}, options, Workspace(folder, lambda _done, _total: None))
    files = tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()))
    made = Item("graph", folder, files, facts)
    trace.STAGE.ensure({"original": original}, options, made)
    return made


def test_operators_stay_whole(traced: Path) -> None:
    model = onnx_files.load(traced / onnx_files.MODEL)
    kinds = Counter(node.op_type for node in model.graph.node)
    blocks = sum(source_tiny.tiny_card("tiny-convnext").kwargs["depths"])
    assert kinds["Gelu"] == blocks
    assert kinds["LayerNormalization"] > blocks
    assert not {"Erf", "ReduceVar", "Pow"} & set(kinds)
    assert model.opset_import[0].version == 20


def test_axes_are_called_by_their_names(traced: Path) -> None:
    graph = onnx_files.load(traced / onnx_files.MODEL).graph
    (spec,) = onnx_files.specs(graph.input, {})
    assert (spec.name, spec.axes[0].name, spec.shape[1:]) == ("input", "batch", (3, 64, 64))
    (output,) = onnx_files.specs(graph.output, {})
    assert (output.name, output.axes[0].name) == ("logits", "batch")


def test_every_node_maps_to_a_module_of_the_network(traced: Path) -> None:
    graph = onnx_files.load(traced / onnx_files.MODEL).graph
    modules = provenance.read(traced / onnx_files.MODULES)
    known = {name for name, _ in sources.open_module(sources.resolve("tiny-convnext")).named_modules()}
    assert set(modules) == {node.output[0] for node in graph.node}
    assert set(modules.values()) <= known
    for node in graph.node:
        if node.op_type == "Conv":
            assert node.input[1] == f"{modules[node.output[0]]}.weight"


def test_nothing_of_the_exporters_notes_is_left(traced: Path) -> None:
    model = onnx_files.load(traced / onnx_files.MODEL)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_same_original_gives_the_same_bytes(traced: Path, tmp_path: Path) -> None:
    again = _trace(tmp_path, trace.TraceOptions(batch=1, dynamic=("batch",), opset=20))
    assert again.path(onnx_files.MODEL).read_bytes() == (traced / onnx_files.MODEL).read_bytes()


def test_an_axis_that_was_lost_in_the_graph_is_noticed(traced: Path, tmp_path: Path) -> None:
    model = onnx_files.load(traced / onnx_files.MODEL)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(tmp_path / onnx_files.MODEL))
    item = Item("graph", tmp_path, (FileRecord.of(tmp_path, onnx_files.MODEL),))
    with pytest.raises(BakedAxisError, match="axis 'batch' was declared dynamic"):
        trace.STAGE.ensure({}, trace.TraceOptions(1, ("batch",), 20), item)


class Several(nn.Module):
    """Adds a row's number to all of its values, and halves the map where it is even."""

    def forward(self, sample: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Take [batch, 2, height, 4] and int64 [batch], return [batch, 2, height, 4]."""
        half = nn.functional.avg_pool2d(sample + number.float().view(-1, 1, 1, 1), 2)
        return nn.functional.interpolate(half, scale_factor=2.0)


def test_an_axis_of_steps_is_open_in_steps_and_one_size_wherever_it_lies() -> None:
    rules = {
        "batch": AxisRule(min=1, max=16, step=1, traced=2),
        "height": AxisRule(min=4, max=64, step=4, traced=12),
    }
    opened = trace.Open(rules, ({0: "batch", 2: "height"}, {0: "batch"}))
    examples = (torch.randn(2, 2, 12, 4), torch.tensor([1, 2]))
    program = trace._export(Several(), examples, opened, "several")
    for rows, height in ((1, 4), (3, 32)):
        sample, numbers = torch.randn(rows, 2, height, 4), torch.arange(rows)
        torch.testing.assert_close(program.module()(sample, numbers), Several()(sample, numbers))
    given = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"]
    assert str(given[0][2]).startswith("4*"), "multiples of four, and no other size"
    assert given[0][0] == given[1][0], "one symbol"
    assert (given[0][1], given[0][3]) == (2, 4)


def test_an_input_that_lacks_an_axis_of_its_batch_is_refused_by_the_axis_name() -> None:
    opened = trace.Open({"batch": AxisRule(min=1, max=16, step=1, traced=2)}, ({0: "batch"}, {}))
    with pytest.raises(BakedAxisError, match="axis batch can't be dynamic"):
        trace._export(Several(), (torch.randn(2, 2, 4, 4), torch.tensor([1, 2])), opened, "several")
