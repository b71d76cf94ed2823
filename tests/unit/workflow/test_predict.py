"""What an artifact sees: classes, or features and the nearest images by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from deploykit import serde
from deploykit.artifact import Preprocess
from deploykit.errors import BadInputError, ResourceError, UsageError
from deploykit.workflow.predict import check_out, predict, write
from deploykit.workflow.shipped import chosen

#: Nothing is cropped or normalized away: a network sees the colours themselves.
RECIPE = Preprocess((3, 8, 8), "bilinear", 1.0, "center", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def network(path: Path, labels: Sequence[str], scale: float = 8.0) -> Path:
    """Write a network that answers with the mean of each colour channel, times `scale`."""
    helper = onnx.helper
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(np.float32(scale), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    texts = {"labels": list(labels), "preprocess": serde.to_json(RECIPE), "precision": "fp32"}
    helper.set_model_props(model, {f"deploykit.{key}": json.dumps(value) for key, value in texts.items()})
    onnx.save(model, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a", RED), ("b", GREEN), ("c", BLUE), ("d", (250, 40, 0))):
        Image.new("RGB", (12, 10), colour).save(folder / f"{name}.png")
    return folder


def test_a_folder_of_images_is_classified_in_order(tmp_path: Path, photos: Path) -> None:
    found = predict(chosen(network(tmp_path / "net.onnx", ("red", "green", "blue"))), [photos], top=2)
    assert [Path(one.image).name for one in found] == ["a.png", "b.png", "c.png", "d.png"]
    assert [one.scores[0].label for one in found] == ["red", "green", "blue", "red"]
    assert all(len(one.scores) == 2 and one.embedding is None for one in found)


def test_features_are_returned_and_written(tmp_path: Path, photos: Path) -> None:
    found = predict(chosen(network(tmp_path / "net.onnx", ())), [photos / "b.png", photos / "a.png"])
    expected = np.array([[0, 8, 0], [8, 0, 0]], np.float32)
    for one, row in zip(found, expected, strict=True):
        assert one.embedding is not None
        np.testing.assert_allclose(one.embedding, row, atol=1e-5)
        np.testing.assert_allclose(one.record()["embedding"], row, atol=1e-5)
    write(tmp_path / "f.npy", found)
    np.testing.assert_allclose(np.load(tmp_path / "f.npy", allow_pickle=False), expected, atol=1e-5)
    write(tmp_path / "f.json", found)
    told = json.loads((tmp_path / "f.json").read_text())
    assert [Path(one["image"]).name for one in told] == ["b.png", "a.png"]
    np.testing.assert_allclose([one["embedding"] for one in told], expected, atol=1e-5)


def test_the_nearest_images_of_a_folder_come_nearest_first(tmp_path: Path, photos: Path) -> None:
    query = tmp_path / "query.png"
    Image.new("RGB", (8, 8), (240, 10, 0)).save(query)
    (found,) = predict(chosen(network(tmp_path / "net.onnx", ())), [query], top=3, nearest=photos)
    assert [Path(near.image).name for near in found.nearest] == ["a.png", "d.png", "b.png"]
    assert found.nearest[0].cosine == pytest.approx(240 / np.hypot(240, 10), abs=1e-4)
    assert set(found.record()) == {"image", "nearest"}


def test_an_image_of_no_features_is_near_to_nothing(tmp_path: Path, photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    (found,) = predict(chosen(network(tmp_path / "net.onnx", ())), [tmp_path / "black.png"], nearest=photos)
    assert {near.cosine for near in found.nearest} == {0.0}


def test_what_can_not_be_answered_is_told(tmp_path: Path, photos: Path) -> None:
    classes = chosen(network(tmp_path / "net.onnx", ("red", "green", "blue")))
    with pytest.raises(UsageError, match="answers with classes, not features"):
        predict(classes, [photos], nearest=photos)
    with pytest.raises(UsageError, match="answers with classes, not features"):
        write(tmp_path / "f.npy", predict(classes, [photos]))
    with pytest.raises(BadInputError, match="answers with 3 numbers and carries 2 class names"):
        predict(chosen(network(tmp_path / "few.onnx", ("red", "green"))), [photos])
    with pytest.raises(BadInputError, match=r"answers with NaN or infinity to .*a\.png"):
        predict(chosen(network(tmp_path / "nan.onnx", ("a", "b", "c"), scale=float("inf"))), [photos])
    features = chosen(network(tmp_path / "features.onnx", ()))
    with pytest.raises(UsageError, match="is no folder"):
        predict(features, [photos], nearest=photos / "a.png")


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("f.csv", UsageError, r"written as \.npy or \.json"),
        ("folder.npy", ResourceError, "it is a folder"),
        ("nowhere/f.npy", ResourceError, "no such folder"),
    ],
)
def test_a_file_that_features_can_not_go_to_is_refused_at_once(
    tmp_path: Path, name: str, kind: type[Exception], reason: str
) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(kind, match=reason):
        check_out(tmp_path / name)
