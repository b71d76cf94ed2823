"""Archives of torch.export: nothing that they bring is run before it was looked at."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import BadInputError
from deploykit.models import pt2

Edit = Callable[[Any], None]


class Evil:
    """Creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    dims = ({0: torch.export.Dim("n", min=1, max=8)},)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dims), path)
    return path


def rewrite(path: Path, ending: str, edit: Callable[[bytes], bytes]) -> None:
    """Change one member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(ending))
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, edit(data) if member == name else data)


def rewrite_json(path: Path, ending: str, edit: Edit) -> None:
    def change(data: bytes) -> bytes:
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    rewrite(path, ending, change)


def test_a_plain_program_is_opened(archive: Path) -> None:
    found = pt2.describe(archive)
    (batch,) = found.inputs[0].axes
    assert (batch.min, batch.max, found.inputs[0].shape[1:], found.outputs[0].shape[1:]) == (1, 8, (3, 8, 8), (3,))
    assert pt2.load(archive)(torch.zeros(5, 3, 8, 8)).shape == (5, 3)


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.load", "torch.ops.load_library", "_operator.methodcaller", "os.system"]
)
def test_operators_that_are_none_are_refused(archive: Path, target: str) -> None:
    def edit(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["target"] = target

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="nothing of it was run: its target"):
        pt2.load(archive)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "exec('1')",
        "open('x','w')",
        "Symbol('s0').__class__",
        "Symbol('s0;x')",
        "eval(x)",
    ],
)
def test_expressions_that_call_anything_else_are_refused(archive: Path, expression: str) -> None:
    text = archive.read_bytes()
    assert b"expr_str" in text or zipfile.is_zipfile(archive)

    def edit(model: Any) -> None:
        def walk(value: Any) -> bool:
            if isinstance(value, dict):
                if "expr_str" in value:
                    value["expr_str"] = expression
                    return True
                return any(walk(entry) for entry in value.values())
            return isinstance(value, list) and any(walk(entry) for entry in value)

        assert walk(model)

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="nothing of it was run: its expr_str"):
        pt2.load(archive)


def test_names_that_would_become_code_are_refused(archive: Path) -> None:
    def edit(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["name"] = "x = __import__('os')"

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="its name"):
        pt2.load(archive)


def test_pickled_weights_are_refused_and_not_opened(archive: Path, tmp_path: Path) -> None:
    def edit(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    rewrite_json(archive, "model_weights_config.json", edit)
    rewrite(archive, "weights/weight_0", lambda _: pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(BadInputError, match="is pickled"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_sample_inputs_that_hold_code_are_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Evil(tmp_path / "mark"), buffer)
    rewrite(archive, "sample_inputs/model.pt", lambda _: buffer.getvalue())
    with pytest.raises(BadInputError, match="sample inputs are no plain tensors"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_weights_of_the_older_format_are_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        root = opened.namelist()[0].partition("/")[0]
        opened.writestr(f"{root}/data/weights/model.pt", b"pickle")
    with pytest.raises(BadInputError, match=r"it holds .*model\.pt"):
        pt2.load(archive)
