"""Graphs that no network would be, with ranges that no image showed: what must hold of every cast."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tests.unit.export.cast_support import FP16, cast, hub, rules, structure, table_of, types
from tests.unit.export.rewrites.test_any_graph import graphs

from deploykit.artifact import RunConfig
from deploykit.errors import UnsupportedError
from deploykit.export import onnx_files
from deploykit.export.stage import Item
from deploykit.runtime.backends.emulator import BACKEND

LARGE = (-1e5, 1e5)


@given(graphs(), st.data())
@settings(deadline=None, max_examples=60)
def test_every_cast_is_whole_and_has_no_cast_too_many(model: onnx.ModelProto, data: st.DataObject) -> None:
    names = [name for made in model.graph.node for name in made.output]
    large = data.draw(st.sets(st.sampled_from(names), max_size=3))
    note(f"{[made.op_type for made in model.graph.node]}, large: {large}")
    with tempfile.TemporaryDirectory() as folder:
        graph = hub(model, Path(folder) / "graph")
        ranges = table_of(graph, Path(folder) / "ranges", dict.fromkeys(large, LARGE), rest=(-1e-2, 1e-2))
        try:
            made = cast(graph, ranges, FP16, Path(folder) / "cast")
        except UnsupportedError as error:
            assert "no weight can be" in error.message  # noqa: PT017 - where all is large, or there are no weights
            return
        _check_types(model, made, large)
        _check_casts(made)
        _check_run(graph, made)


def _check_types(before: onnx.ModelProto, made: Item, large: set[str]) -> None:
    found, kept = types(made), rules(made)
    for one in before.graph.node:
        name = one.output[0]
        if large & {*one.input, *one.output}:
            assert kept[name] == "range"
        if name in kept:
            assert found[name] == TensorProto.FLOAT
        else:
            assert found.get(f"{name}.float16", found[name]) == TensorProto.FLOAT16


def _check_casts(made: Item) -> None:
    graph = structure(made)
    makers = {name: one for one in graph.node for name in one.output}
    casts = [one for one in graph.node if one.op_type == "Cast"]
    assert len(casts) == made.facts["casts"]
    weights = {tensor.name for tensor in graph.initializer}
    for one in casts:
        (source,) = one.input
        assert source not in weights
        assert source not in makers or makers[source].op_type != "Cast"
    targets = [(one.input[0], one.attribute[0].i) for one in casts]
    assert len(targets) == len(set(targets)), "one Cast serves all users"


def _check_run(graph: Item, made: Item) -> None:
    before = onnx_files.specs(onnx_files.load(graph.path(onnx_files.MODEL)).graph.output, {})
    with BACKEND.open(str(made.path(onnx_files.MODEL)), RunConfig("emulator", threads=1)) as session:
        x = np.zeros([2, *(dim for dim in session.inputs[0].shape[1:] if isinstance(dim, int))], np.float32)
        found = session.infer({"x": x})
    assert [(spec.name, spec.dtype) for spec in before] == [(name, array.dtype.name) for name, array in found.items()]
