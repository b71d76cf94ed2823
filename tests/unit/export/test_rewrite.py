"""The stage: outputs compared and the guilty rewrite named, modules on record, real networks rewritten."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.artifact import FileRecord, RunConfig
from deploykit.bundle import save_tensors
from deploykit.data.imageset import prepare_crops, rendered_images
from deploykit.data.preprocess import normalize
from deploykit.errors import InternalError, UsageError
from deploykit.export import onnx_files, provenance, rewrite, simplify, trace
from deploykit.export.plan import original_item
from deploykit.export.rewrites.editing import Editor, Rewrite
from deploykit.export.stage import TENSORS, Item, Stage, Workspace
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.runtime import drift
from deploykit.runtime.backends.base import get_backend
from deploykit.workflow.options import rendered_size

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of its own internals

CONVNEXT = ("fold-scales", "regroup-norms", "fold-shifts", "pointwise-convs", "identity-gathers")
VIT = ("fold-scales", "direct-transposes", "early-selections")
SMALL = SourceOptions(random_weights=True, image_size=64)
CHANNELS_LAST = dataclasses.replace(SMALL, model_args={"conv_mlp": False})
#: Like DINOv2's: LayerScale, and one token given out.
SMALL_VIT = dataclasses.replace(SMALL, model_args={"init_values": 1e-5, "depth": 3})


@cache
def golden() -> Item:
    """Images of 64 pixels."""
    folder = Path(tempfile.mkdtemp())
    recipe = sources.resolve("tiny-convnext").recipe
    images = rendered_images("rendered:calib", 3, rendered_size(recipe))
    save_tensors(folder / TENSORS, {"input": normalize(prepare_crops(images, recipe), recipe)})
    return Item("tensors", folder, (FileRecord.of(folder, TENSORS),))


def perform(stage: Stage[Any], role: str, item: Item, options: object, folder: Path) -> Item:
    """Run a stage of one graph or original."""
    folder.mkdir()
    given = {role: item} | ({"golden": golden()} if "golden" in stage.takes else {})
    facts = stage.run(given, options, Workspace(folder, lambda _done, _total: None))
    records = tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()))
    return Item("graph", folder, records, dict(facts))


def simplified(original: Original, dynamic: tuple[str, ...], folder: Path) -> Item:
    options = trace.TraceOptions(batch=1, dynamic=dynamic, opset=20)
    traced = perform(trace.STAGE, "original", original_item(original), options, folder / "traced")
    return perform(simplify.STAGE, "graph", traced, simplify.SimplifyOptions(), folder / "simplified")


def rewritten(item: Item, names: tuple[str, ...], folder: Path) -> Item:
    return perform(rewrite.STAGE, "graph", item, rewrite.RewriteOptions(names), folder / "rewritten")


def operators(item: Item) -> Counter[str]:
    return Counter(node.op_type for node in onnx_files.load(item.path(onnx_files.MODEL)).graph.node)


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Item:
    """tiny-convnext, simplified, its batch open."""
    return simplified(sources.resolve("tiny-convnext"), ("batch",), tmp_path_factory.mktemp("convnext"))


def _spoil(editor: Editor) -> None:
    """Double the weights of the first layer."""
    node = next(editor.nodes("Conv"))
    kernel = node.inputs[1]
    assert kernel is not None
    assert kernel.const_value is not None
    node.replace_input_with(1, editor.weight(2 * kernel.const_value.numpy(), kernel))
    editor.places += 1


@pytest.mark.parametrize("names", [("spoil",), ("identity-gathers", "spoil", "pointwise-convs")])
def test_a_rewrite_that_changes_the_outputs_is_named(
    names: tuple[str, ...], convnext: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "REWRITES", {**rewrite.REWRITES, "spoil": Rewrite("spoil", "", _spoil)})
    with pytest.raises(InternalError, match=r"rewrite 'spoil' changed output '\w+' by \d.*at most 1e-05"):
        rewritten(convnext, names, tmp_path)


def test_a_rewrite_that_changes_the_interface_is_refused(
    convnext: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(editor: Editor) -> None:
        editor.graph.outputs[0].name = "other"

    monkeypatch.setattr(rewrite, "REWRITES", {"rename": Rewrite("rename", "", rename)})
    with pytest.raises(InternalError, match=r"rewriting \(rename\) changed the outputs from"):
        rewritten(convnext, ("rename",), tmp_path)


def test_an_unknown_rewrite_is_told_with_those_there_are(convnext: Item, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown rewrite 'fold'; there are: channel-norms, direct-transposes"):
        rewritten(convnext, ("fold",), tmp_path)


def test_no_rewrites_leave_the_graph_as_it_is(convnext: Item, tmp_path: Path) -> None:
    item = rewritten(convnext, (), tmp_path)
    assert operators(item) == operators(convnext)
    assert item.facts["places"] == {}
    assert provenance.read(item.path(onnx_files.MODULES)) == provenance.read(convnext.path(onnx_files.MODULES))


def test_the_same_graph_gives_the_same_bytes(convnext: Item, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (rewritten(convnext, CONVNEXT, tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest


def test_what_is_done_is_told(convnext: Item, tmp_path: Path) -> None:
    facts = rewritten(convnext, CONVNEXT, tmp_path).facts
    places = {"fold-scales": 7, "regroup-norms": 0, "fold-shifts": 0, "pointwise-convs": 7, "identity-gathers": 1}
    assert facts["places"] == places
    assert (facts["nodes_before"], facts["nodes"]) == (121, 78)
    assert 0 < facts["relative_max"] < 2e-6


def test_the_input_is_not_touched(convnext: Item, tmp_path: Path) -> None:
    rewritten(convnext, CONVNEXT, tmp_path)
    convnext.check()


CASES = {
    "tiny-convnext": (
        *("tiny-convnext", SourceOptions(), CONVNEXT, ("batch",)),
        {"Mul": 0, "MatMul": 0, "Gemm": 1, "Conv": 25, "Gather": 0, "Range": 0},
    ),
    "tiny-convnext, static": (
        *("tiny-convnext", SourceOptions(), CONVNEXT, ()),
        {"Mul": 0, "MatMul": 0, "Gemm": 1, "Conv": 25, "Gather": 0},
    ),
    "convnextv2": (
        *("timm:convnextv2_atto", SMALL, CONVNEXT, ("batch",)),
        {"Mul": 24, "Add": 36, "ReduceL2": 12, "Gather": 0, "Range": 0},
    ),
    "convnextv2, channels last": (
        *("timm:convnextv2_atto", CHANNELS_LAST, CONVNEXT, ("batch",)),
        {"Mul": 24, "Add": 36, "ReduceL2": 12, "MatMul": 0, "Gemm": 1, "Gather": 0, "Range": 0},
    ),
    "vit": (
        *("timm:vit_tiny_patch16_224", SMALL_VIT, VIT, ("batch",)),
        {"Gather": 3, "Gelu": 3, "Softmax": 3},
    ),
    "vit, static": (
        *("timm:vit_tiny_patch16_224", SMALL_VIT, VIT, ()),
        {"Gather": 3, "Gelu": 3, "Softmax": 3},
    ),
    "efficientnet": (
        *("timm:test_efficientnet", SMALL, ("global-pools",), ("batch",)),
        {"GlobalAveragePool": 3, "ReduceMean": 0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_real_networks(case: str, convnext: Item, tmp_path: Path) -> None:
    source, options, names, dynamic, expected = CASES[case]
    original = sources.resolve(source, options)
    item = rewritten(convnext if case == "tiny-convnext" else simplified(original, dynamic, tmp_path), names, tmp_path)
    found = operators(item)
    assert {kind: found[kind] for kind in expected} == expected
    _check_modules(original, item)
    _check_against_pytorch(original, item)
    again = rewritten(item, names, _folder(tmp_path / "again"))
    assert set(again.facts["places"].values()) == {0}
    assert provenance.read(again.path(onnx_files.MODULES)) == provenance.read(item.path(onnx_files.MODULES))


def test_every_shape_is_known_after_rewriting(convnext: Item, tmp_path: Path) -> None:
    """Whoever changes the graph next, to another precision say, need not infer them."""
    model = ir.load(rewritten(convnext, CONVNEXT, tmp_path).path(onnx_files.MODEL))
    for node in model.graph:
        for output in node.outputs:
            assert output.dtype is not None
            assert output.shape is not None
            assert all(isinstance(dim, int) or dim.value for dim in output.shape)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _check_modules(original: Original, item: Item) -> None:
    """Check that every node's module is one of the network's, and that none belongs to a LayerScale: all are folded."""
    graph = onnx_files.load(item.path(onnx_files.MODEL)).graph
    modules = provenance.read(item.path(onnx_files.MODULES))
    assert set(modules) == {node.output[0] for node in graph.node}
    assert set(modules.values()) <= {name for name, _ in sources.open_module(original).named_modules()}
    assert not {"ls1", "ls2"} & {name.rpartition(".")[2] for name in modules.values()}


def _check_against_pytorch(original: Original, item: Item) -> None:
    feeds = {"input": np.random.default_rng(1).random((1, *original.recipe.input_size), dtype=np.float32)}
    with get_backend("torch").open(original.locator, RunConfig("torch", precision="f32")) as session:
        expected = session.infer(feeds)
    path = str(item.path(onnx_files.MODEL))
    with get_backend("onnxruntime").open(path, RunConfig("onnxruntime", precision="f32", threads=1)) as session:
        found = session.infer(feeds)
    assert drift.relative_max(expected[original.task], found[original.task]) < 2e-5
