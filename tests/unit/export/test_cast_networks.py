"""Real networks in half: what the emulator finds of them, and what PyTorch's own half kernels make of the same weights."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.artifact import FileRecord, RunConfig
from deploykit.bundle import save_tensors
from deploykit.calibration.ranges import RANGES, RangeTable
from deploykit.data.imageset import prepare_crops, rendered_images
from deploykit.data.preprocess import normalize
from deploykit.export import cast, onnx_files, provenance, rewrite, simplify, trace
from deploykit.export.plan import original_item
from deploykit.export.ranges import measure
from deploykit.export.stage import TENSORS, Item, Stage, Workspace
from deploykit.models import sources
from deploykit.models.family import get_family
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensor
from deploykit.runtime.backends.emulator import BACKEND as EMULATOR
from deploykit.runtime.backends.onnxruntime import BACKEND as RUNTIME
from deploykit.runtime.batches import run_rows
from deploykit.workflow.options import rendered_size

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of its own internals

IMAGES = 8
#: Least SQNR of the logits, dB: one rounding to half costs 71, to bfloat16 53, and some fifty follow one another.
LEAST = {"fp16": 57.0, "bf16": 40.0}


def perform(stage: Stage[Any], inputs: dict[str, Item], options: object, folder: Path) -> Item:
    folder.mkdir()
    facts = stage.run(inputs, options, Workspace(folder, lambda _done, _total: None))
    records = tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()))
    made = Item(stage.makes, folder, records, dict(facts))
    stage.ensure(inputs, options, made)
    return made


@cache
def hub(name: str) -> tuple[Item, Item, dict[str, Tensor]]:
    """Return a shipped model's graph, its ranges on eight images, and these. Not to be changed."""
    folder = Path(tempfile.mkdtemp())
    original = sources.resolve(name)
    family = get_family(original.family)
    images = rendered_images("rendered:calib", IMAGES, rendered_size(original.recipe))
    feeds: dict[str, Tensor] = {"input": normalize(prepare_crops(images, original.recipe), original.recipe)}
    save_tensors(folder / TENSORS, feeds)
    golden = Item("tensors", folder, (FileRecord.of(folder, TENSORS),))
    options = trace.TraceOptions(batch=1, dynamic=("batch",), opset=family.opset)
    traced = perform(trace.STAGE, {"original": original_item(original)}, options, folder / "traced")
    given = {"graph": traced, "golden": golden}
    given["graph"] = perform(simplify.STAGE, given, simplify.SimplifyOptions(), folder / "simplified")
    graph = perform(rewrite.STAGE, given, rewrite.RewriteOptions(family.rewrites), folder / "hub")
    (folder / "ranges").mkdir()
    rows = [{"input": feeds["input"][index : index + 1]} for index in range(IMAGES)]
    found = measure(graph.path(onnx_files.MODEL), rows, folder / "ranges")
    table = RangeTable(graph.digest, "images", IMAGES, {key: one.range() for key, one in found.items()})
    table.save(folder / "ranges" / RANGES)
    return graph, Item("ranges", folder / "ranges", (FileRecord.of(folder / "ranges", RANGES),)), feeds


def logits(backend: Any, path: Path, feeds: dict[str, Tensor]) -> Tensor:
    with backend.open(str(path), RunConfig(backend.name, threads=1)) as session:
        (found,) = run_rows(session, feeds).values()
    return np.asarray(found)


@pytest.mark.parametrize("name", ["tiny-convnext", "tiny-convnextv2", "tiny-efficientnetv2", "tiny-mobilenetv3"])
def test_a_shipped_model_in_half(name: str, tmp_path: Path) -> None:
    graph, ranges, feeds = hub(name)
    reference = logits(RUNTIME, graph.path(onnx_files.MODEL), feeds)
    before = {name: array.copy() for name, array in feeds.items()}
    for precision, least in LEAST.items():
        options = cast.CastOptions(precision, ("grn",))
        made = perform(cast.STAGE, {"graph": graph, "ranges": ranges}, options, tmp_path / precision)
        found = logits(EMULATOR, made.path(onnx_files.MODEL), feeds)
        assert drift.sqnr_db(reference, found) > least
        assert (reference.argmax(axis=1) == found.argmax(axis=1)).all()
        assert made.facts["weight_bytes"] < 0.51 * made.facts["weight_bytes_before"]
        _check_islands(graph, made)
    graph.check()
    np.testing.assert_array_equal(before["input"], feeds["input"])


def _check_islands(graph: Item, made: Item) -> None:
    """Four nodes of each GRN, told with its module, and two Casts for each beside those at the graph's ends."""
    norms = Counter(node.op_type for node in onnx_files.load(graph.path(onnx_files.MODEL)).graph.node)["ReduceL2"]
    assert Counter(island["rule"] for island in made.facts["islands"]) == ({"grn": 4 * norms} if norms else {})
    assert all(island["module"].endswith("mlp.grn") for island in made.facts["islands"])
    assert made.facts["casts"] == 2 + 2 * norms
    nodes = onnx_files.load(made.path(onnx_files.MODEL)).graph.node
    casts = {output for node in nodes if node.op_type == "Cast" for output in node.output}
    assert not casts & set(itertools.chain.from_iterable(node.input for node in nodes if node.op_type == "Cast"))
    assert set(provenance.read(made.path(onnx_files.MODULES))) == {node.output[0] for node in nodes}


def test_the_emulator_loses_what_pytorchs_half_kernels_lose(tmp_path: Path) -> None:
    """They differ in which values they round: as far from one another as from float32, and as far from that as each other."""
    graph, ranges, feeds = hub("tiny-convnext")
    made = perform(cast.STAGE, {"graph": graph, "ranges": ranges}, cast.CastOptions("fp16"), tmp_path / "cast")
    reference = logits(RUNTIME, graph.path(onnx_files.MODEL), feeds)
    emulated = drift.sqnr_db(reference, logits(EMULATOR, made.path(onnx_files.MODEL), feeds))
    with torch.inference_mode():
        module = sources.open_module(sources.resolve("tiny-convnext")).half()
        kernels = module(torch.from_numpy(feeds["input"]).half()).float().numpy()
    assert abs(emulated - drift.sqnr_db(reference, kernels)) < 3
