"""The models that ship with the package: what a name resolves to, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.errors import BadInputError, UsageError
from deploykit.models import source_tiny, sources
from deploykit.models.original import SourceOptions


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shipped models to break."""
    folder = tmp_path / "tiny"
    shutil.copytree(source_tiny.TINY, folder)
    monkeypatch.setattr(source_tiny, "TINY", folder)
    source_tiny.tiny_card.cache_clear()
    yield folder
    source_tiny.tiny_card.cache_clear()


def _change(zoo: Path, **fields: object) -> None:
    path = zoo / "tiny-convnext.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(UsageError, match=r"'tiny-convnet' is no model that I know\. Near: tiny-convnext"):
        sources.resolve("tiny-convnet")
    with pytest.raises(UsageError, match=r"is no model that I know$"):
        sources.resolve("zzzzzz")
    with pytest.raises(UsageError, match=r"there is no scheme 'zoo'; there are: .*timm, tiny"):
        sources.resolve("zoo:tiny-convnext")
    with pytest.raises(UsageError, match="'tiny-convnet' does not ship with the package"):
        sources.resolve("tiny:tiny-convnet")


def test_a_shipped_model_takes_no_option_but_one() -> None:
    with pytest.raises(UsageError, match="ships trained: it takes no num_classes, random_weights"):
        sources.resolve("tiny-convnext", SourceOptions(random_weights=True, num_classes=3, embedding=True))


def test_a_network_that_keeps_its_head_has_no_features(zoo: Path) -> None:
    _change(zoo, module="torch.nn:Flatten", kwargs={})
    with pytest.raises(UsageError, match=r"--embedding: tiny-convnext .* torch\.nn:Flatten can't leave its head off"):
        sources.resolve("tiny-convnext", SourceOptions(embedding=True))


def test_a_locator_opens_the_same_original_again() -> None:
    original = sources.resolve("tiny-convnext")
    assert sources.located(original.locator) == original
    assert sources.located("tiny-convnext") == original
    with pytest.raises(BadInputError, match="locates no original"):
        sources.located("{")


@pytest.mark.parametrize("name", ["../tiny-convnext", "/etc/passwd", "tiny-convnext.json", ""])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UsageError):
        sources.resolve(name)


def test_changed_weights_are_refused_before_they_are_read(zoo: Path) -> None:
    path = zoo / "tiny-convnext.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="its card says"):
        sources.open_module(sources.resolve("tiny-convnext"))


def test_missing_weights_are_refused(zoo: Path) -> None:
    (zoo / "tiny-convnext.safetensors").unlink()
    with pytest.raises(BadInputError, match="is missing: reinstall"):
        sources.open_module(sources.resolve("tiny-convnext"))


def test_weights_of_another_shape_are_refused(zoo: Path) -> None:
    kwargs = json.loads((zoo / "tiny-convnext.json").read_text())["kwargs"]
    _change(zoo, kwargs={**kwargs, "num_classes": 3})
    with pytest.raises(BadInputError, match="doesn't fit timm"):
        sources.open_module(sources.resolve("tiny-convnext"))


def test_a_damaged_card_is_refused(zoo: Path) -> None:
    _change(zoo, surprise=1)
    with pytest.raises(BadInputError, match="unknown field 'surprise'"):
        sources.resolve("tiny-convnext")
    source_tiny.tiny_card.cache_clear()
    (zoo / "tiny-convnext.json").write_text("{")
    with pytest.raises(BadInputError, match="is not JSON"):
        sources.resolve("tiny-convnext")


def test_the_digest_depends_on_weights_architecture_preprocessing_and_labels(zoo: Path) -> None:
    before = sources.resolve("tiny-convnext").digest
    card = json.loads((zoo / "tiny-convnext.json").read_text())
    for fields in (
        {"weights_sha256": "0" * 64},
        {"kwargs": {**card["kwargs"], "drop_rate": 0.1}},
        {"labels": card["labels"][::-1]},
        {"preprocess": {**card["preprocess"], "crop_pct": 1.0}},
    ):
        (zoo / "tiny-convnext.json").write_text(json.dumps({**card, **fields}))
        source_tiny.tiny_card.cache_clear()
        assert sources.resolve("tiny-convnext").digest != before
