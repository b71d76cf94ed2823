"""The IR: that weights in fewer bits are stored as such."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import RECIPE
from tests.unit.export.cast_support import hub, item, model, node, random

from deploykit.errors import UnsupportedError
from deploykit.export.engines.openvino import TARGET
from deploykit.export.stage import Item, Workspace
from deploykit.export.store import STAGE, StoreOptions
from deploykit.export.target import PackageOptions

WEIGHT = random(1, 64, 64)
OPTIONS = PackageOptions("net", "bf16", ("cat", "dog"), RECIPE)


def graph(folder: Path) -> Item:
    return hub(model([node("MatMul", "x,w", "y")], {"w": WEIGHT}, (1, 64)), folder)


def stored(precision: str, tmp_path: Path) -> Item:
    inputs = {"graph": graph(tmp_path / f"{precision}.graph")}
    folder = tmp_path / f"{precision}.stored"
    folder.mkdir()
    return item(
        "graph", folder, STAGE.run(inputs, StoreOptions(precision), Workspace(folder, lambda _done, _total: None))
    )


def packaged(given: Item, folder: Path) -> Item:
    folder.mkdir()
    facts = TARGET.stage.run({"graph": given}, OPTIONS, Workspace(folder, lambda _done, _total: None))
    return item("artifact", folder, facts)


def test_an_ir_of_wider_weights_than_asked_for_is_refused(tmp_path: Path) -> None:
    wide = packaged(graph(tmp_path / "graph"), tmp_path / "wide")
    with pytest.raises(
        UnsupportedError, match="asked for bf16, the IR holds 0 bytes of bf16 constants where the graph"
    ):
        TARGET.stage.ensure({"graph": stored("bf16", tmp_path)}, OPTIONS, wide)


@pytest.mark.parametrize(("precision", "kind", "each"), [("bf16", "bf16", 2), ("int8-weights", "i8", 1)])
def test_weights_keep_their_type(precision: str, kind: str, each: int, tmp_path: Path) -> None:
    given = stored(precision, tmp_path)
    made = packaged(given, tmp_path / "ir")
    TARGET.stage.ensure({"graph": given}, OPTIONS, made)
    assert made.facts["constant_bytes"][kind] == each * WEIGHT.size
    assert made.path("net.openvino.bin").stat().st_size < (each + 0.5) * WEIGHT.size
