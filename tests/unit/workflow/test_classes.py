"""Classes that are called as folders of images: when, in which order, and when not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.unit.models.test_source_file import graph

from deploykit.errors import UsageError
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.workflow.classes import named
from deploykit.workflow.export import prepare
from deploykit.workflow.options import ExportOptions


@pytest.fixture
def original(tmp_path: Path) -> Original:
    """A graph of five classes that nobody named."""
    return sources.resolve(str(graph(tmp_path / "a.onnx")))


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(root / name / "0.png")
    (root / "README.md").write_text("")
    return str(root)


def test_folders_name_the_classes_in_their_order(original: Original, tmp_path: Path) -> None:
    images = folders(tmp_path / "val", "dog", "ant", "cat", "elk", "bee")
    found = named(original, images)
    assert found.labels == ("ant", "bee", "cat", "dog", "elk")
    (note,) = found.notes or ()
    assert (
        note
        == f"classes are called as the folders of {images}, in their order: ant, bee, cat, …; --labels FILE says others"
    )
    preview = prepare(str(tmp_path / "a.onnx"), ExportOptions(data=images, cache=False))
    assert preview.original.labels == found.labels
    assert note in preview.notes


@pytest.mark.parametrize("names", [("a1", "a2", "a10", "b", "c"), ("Dog", "ant", "bee", "cat", "elk")])
def test_an_order_that_is_not_everyones_is_refused(original: Original, tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="nothing says which class is which") as caught:
        named(original, folders(tmp_path / "val", *names))
    assert caught.value.hints[0].action == "--labels FILE"


@pytest.mark.parametrize(
    "names", [("ant", "bee"), ("class 0", "class 1", "class 2", "class 3", "class 4"), ("a", "b", "c", "d", "e", "f")]
)
def test_folders_of_another_number_or_of_known_names_name_nothing(
    original: Original, tmp_path: Path, names: tuple[str, ...]
) -> None:
    assert named(original, folders(tmp_path / "val", *names)) is original


def test_classes_that_have_names_keep_them(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("v\nw\nx\ny\nz")
    told = sources.resolve(str(graph(tmp_path / "a.onnx")), SourceOptions(labels=str(tmp_path / "l.txt")))
    assert named(told, folders(tmp_path / "val", "ant", "bee", "cat", "dog", "elk")) is told
    for images in (None, "rendered:test", str(tmp_path / "l.txt"), str(tmp_path / "none")):
        assert named(told, images) is told
