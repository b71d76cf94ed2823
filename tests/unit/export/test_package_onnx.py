"""ONNX files as artifacts: whole in one file, or with their weights in one file beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from tests.support import RECIPE
from tests.unit.export.test_adopt import run as adopted
from tests.unit.models.test_source_file import graph

from deploykit.artifact import FileRecord, RunConfig, sha256_of
from deploykit.errors import BadInputError
from deploykit.export import onnx_files
from deploykit.export.engines import onnx as engine
from deploykit.export.stage import Item, Workspace
from deploykit.export.target import PackageOptions
from deploykit.models import sources
from deploykit.runtime.backends.base import get_backend

OPTIONS = PackageOptions("net.fp32", "fp32", ("a", "b"), RECIPE)


@pytest.fixture
def hub(tmp_path: Path) -> Item:
    """A graph whose weights are large enough to lie apart."""
    path = graph(tmp_path / "a.onnx")
    model = onnx_files.load(path)
    weights = numpy_helper.from_array(np.arange(1200, dtype=np.float32).reshape(3, 400), "weights")
    model.graph.initializer[0].CopyFrom(weights)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 400
    path.write_bytes(model.SerializeToString())
    return adopted(sources.resolve(str(path)), tmp_path / "hub")


def package(hub: Item, folder: Path) -> list[str]:
    folder.mkdir()
    engine.TARGET.stage.run({"graph": hub}, OPTIONS, Workspace(folder, lambda _done, _total: None))
    return sorted(path.name for path in folder.iterdir())


def answer(path: Path) -> list[float]:
    config = RunConfig("onnxruntime", precision="f32")
    with get_backend("onnxruntime").open(str(path), config) as session:
        return list(session.infer({"pixels": np.ones((1, 3, 32, 32), np.float32)})["scores"][0])


EXPECTED = list(np.arange(1200, dtype=np.float32).reshape(3, 400).sum(axis=0))


def test_small_weights_are_inside(hub: Item, tmp_path: Path) -> None:
    assert {record.path for record in hub.files} == {onnx_files.MODEL, onnx_files.WEIGHTS, onnx_files.MODULES}
    assert package(hub, tmp_path / "made") == ["net.fp32.onnx"]
    assert answer(tmp_path / "made" / "net.fp32.onnx") == EXPECTED


def test_large_weights_lie_beside_it_in_one_file_called_after_its_content(
    hub: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_INSIDE", 0)
    digest = sha256_of(hub.path(onnx_files.WEIGHTS))
    assert package(hub, tmp_path / "made") == [f"net.fp32.{digest[:8]}.data", "net.fp32.onnx"]
    assert answer(tmp_path / "made" / "net.fp32.onnx") == EXPECTED
    shutil.move(tmp_path / "made" / "net.fp32.onnx", tmp_path / "made" / "other.onnx")
    assert answer(tmp_path / "made" / "other.onnx") == EXPECTED


def test_weights_that_are_gone_are_said_to_be(hub: Item, tmp_path: Path) -> None:
    hub.path(onnx_files.WEIGHTS).unlink()
    with pytest.raises(BadInputError, match="weights can't be read"):
        package(hub, tmp_path / "made")


def test_records_of_both_files_are_kept(hub: Item) -> None:
    assert onnx_files.weight_bytes(onnx_files.load(hub.path(onnx_files.MODEL))) == 4800
    hub.check()
    record = FileRecord.of(hub.root, onnx_files.WEIGHTS)
    assert record.bytes >= 4800
