"""Files as originals: what they say of themselves, what they can't be told, and what is refused unread."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.helper as make
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tests.cases.files import write_boxes
from torch import nn

from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError, UnsupportedError, UsageError
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.serde import to_json

RECIPE = Preprocess((3, 32, 32), "bilinear", 0.9, "center", (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))


def graph(
    path: Path,
    *,
    batch: int | str = "n",
    side: int | str = 32,
    dtype: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
    external: str = "",
) -> Path:
    """Write a classifier of 5 classes: global average, then a matrix."""
    weights = numpy_helper.from_array(np.arange(15, dtype=np.float32).reshape(3, 5), "weights")
    if external:
        (path.parent / "w.bin").write_bytes(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=external)
    nodes = [
        make.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        make.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        make.make_node("Flatten", ["pooled"], ["rows"]),
        make.make_node("MatMul", ["rows", "weights"], ["scores"]),
    ]
    inputs = [make.make_tensor_value_info("pixels", dtype, [batch, 3, side, side])]
    outputs = [make.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5])]
    model = make.make_model(
        make.make_graph(nodes, "g", inputs, outputs, [weights]),
        opset_imports=[make.make_opsetid("", 20)],
        ir_version=10,
    )
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [batch, 3, 32, 32], return [batch, 5]."""
        rows: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return rows


def program(path: Path, *, is_open: bool = True) -> Path:
    dims = ({0: torch.export.Dim("n", min=1, max=64)},) if is_open else None
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=dims), path)
    return path


def test_a_missing_file_and_one_that_stands_by_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.onnx does not exist"):
        sources.resolve(f"file:{tmp_path}/none.onnx")
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(UsageError, match="no model that stands by itself") as caught:
        sources.resolve(f"file:{tmp_path}/w.pth")
    assert "--weights FILE" in caught.value.hints[0].action


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_garbage_is_bad_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model at all")
    with pytest.raises(BadInputError, match=name):
        sources.resolve(f"file:{tmp_path / name}")


def test_a_truncated_program_is_bad_input(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInputError, match=r"no intact|no program that"):
        sources.resolve(str(path))


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd"])
def test_weights_outside_the_files_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "in").mkdir()
    path = graph(tmp_path / "in" / "a.onnx", external=location)
    (tmp_path / "w.bin").write_bytes(bytes(60))
    with pytest.raises(BadInputError, match=r"outside|absolute"):
        sources.resolve(str(path))


def test_options_that_belong_to_architectures_are_refused(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="takes no num_classes"):
        sources.resolve(str(path), SourceOptions(num_classes=5))


def test_what_takes_no_images_is_unsupported(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", dtype=TensorProto.UINT8)
    with pytest.raises(UnsupportedError, match=r"pixels uint8 .* one float32 \[batch, channels, height, width\]"):
        sources.resolve(str(path))


def test_an_open_size_must_be_said_and_a_fixed_one_can_not_be_changed(tmp_path: Path) -> None:
    path = graph(tmp_path / "open.onnx", side="s")
    with pytest.raises(UsageError, match="any size") as caught:
        sources.resolve(str(path))
    assert caught.value.hints[0].action == "--image-size PIXELS"
    assert sources.resolve(str(path), SourceOptions(image_size=48)).recipe.input_size == (3, 48, 48)
    with pytest.raises(UsageError, match="fixed to 32x32 pixels"):
        sources.resolve(str(graph(tmp_path / "fixed.onnx")), SourceOptions(image_size=48))


def test_a_graph_can_be_of_a_named_family(tmp_path: Path) -> None:
    path = str(graph(tmp_path / "mine.onnx"))
    assert sources.resolve(path).family == "generic"
    assert sources.resolve(path, SourceOptions(family="convnext")).family == "convnext"


def test_a_graph_keeps_its_names_and_a_plain_path_is_enough(tmp_path: Path) -> None:
    original = sources.resolve(str(graph(tmp_path / "mine.onnx")))
    assert (original.id, original.scheme, original.form, original.input_name) == ("mine", "file", "graph", "pixels")
    assert original.labels == tuple(f"class {index}" for index in range(5))
    assert (original.parameters, original.fixed_batch, original.task) == (15, None, "logits")
    with sources.open_original(original) as session:
        rows = session.infer({"pixels": np.ones((2, 3, 32, 32), np.float32)})["scores"]
    assert rows[1].tolist() == [15.0, 18.0, 21.0, 24.0, 27.0]


def test_a_graphs_own_labels_and_preprocessing_are_taken(tmp_path: Path) -> None:
    own = {"deploykit.labels": json.dumps(list("abcde")), "deploykit.preprocess": json.dumps(to_json(RECIPE))}
    path = graph(tmp_path / "a.onnx", metadata=own)
    original = sources.resolve(str(path))
    assert original.labels == tuple("abcde")
    assert original.preprocess == RECIPE
    (tmp_path / "labels.txt").write_text("v\nw\nx\ny\nz\n")
    other = sources.resolve(str(path), SourceOptions(labels=str(tmp_path / "labels.txt"), crop_pct=1.0))
    assert (other.labels, other.recipe.crop_pct) == (tuple("vwxyz"), 1.0)
    damaged = graph(tmp_path / "b.onnx", metadata={"deploykit.preprocess": "{"})
    with pytest.raises(BadInputError, match="no JSON"):
        sources.resolve(str(damaged))


def test_a_changed_file_is_noticed_before_it_is_opened(tmp_path: Path) -> None:
    for path, change in ((graph(tmp_path / "a.onnx"), graph), (program(tmp_path / "a.pt2"), program)):
        original = sources.resolve(str(path))
        path.unlink()
        change(path.with_name(f"other{path.suffix}")).rename(path)
        if path.suffix == ".onnx":
            path.write_bytes(path.read_bytes() + b"\x32\x00")
        with pytest.raises(BadInputError, match="has changed since"):
            sources.open_original(original)


def test_changed_weights_beside_a_graph_are_noticed(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", external="w.bin")
    original = sources.resolve(str(path))
    (tmp_path / "w.bin").write_bytes(bytes(60))
    with pytest.raises(BadInputError, match="has changed since"):
        sources.check(original)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(BadInputError, match=r"'w\.bin', which is missing"):
        sources.check(original)


def test_a_graph_has_no_module(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is a graph"):
        sources.open_module(sources.resolve(str(graph(tmp_path / "a.onnx"))))


def test_a_program_opens_as_a_module(tmp_path: Path) -> None:
    torch.manual_seed(3)
    path = program(tmp_path / "net.pt2")
    original = sources.resolve(f"file:{path}")
    assert (original.form, original.input_name, original.fixed_batch) == ("module", "input", None)
    assert original.parameters == sum(parameter.numel() for parameter in Net().parameters())
    torch.manual_seed(3)
    images = torch.rand(5, 3, 32, 32)
    torch.manual_seed(3)
    expected = Net().eval()(images)
    assert torch.equal(sources.open_module(original)(images), expected)
    assert sources.resolve(str(program(tmp_path / "fixed.pt2", is_open=False))).fixed_batch == 2


def test_one_output_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'boxes' is among its outputs 2 times"):
        sources.resolve(str(write_boxes(tmp_path / "twice.onnx", twice=True)))


def test_one_channel_is_grey_with_means_of_its_own(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "gray.onnx", channels=1)
    original = sources.resolve(str(path), SourceOptions(mean=(0.4,), std=(0.2,)))
    assert (original.recipe.input_size, original.recipe.mean, original.recipe.std) == ((1, 64, 64), (0.4,), (0.2,))
    with pytest.raises(UsageError, match="mean and std are 1 finite numbers each") as caught:
        sources.resolve(str(path), SourceOptions(mean=(0.4, 0.4, 0.4)))
    assert caught.value.hints[0].action == "--mean 0.5 --std 0.5"
