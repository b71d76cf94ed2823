"""What an original must be for artifacts to be held to it: numbers, repeatable, and rows that may influence one another."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from deploykit.errors import BadInputError, BakedAxisError
from deploykit.export.soundness import Asked, check_answers, influence, notes_on_rows
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions
from deploykit.runtime.batches import ask

INPUTS: NDArray[np.float32] = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)


@pytest.fixture(autouse=True)
def cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "cases"))


def resolved(name: str) -> Original:
    return sources.resolve(f"py:nets:{name}", SourceOptions(image_size=32))


@contextmanager
def asked(name: str, size: int = 1) -> Iterator[Asked]:
    original = resolved(name)
    with sources.open_original(original) as session:
        yield Asked(original, session, {"input": INPUTS}, ask(session, {"input": INPUTS}, size))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dropout_left_on", "answers differently each time: .* it draws random numbers: bernoulli_ in its own forward"),
        ("noise", "answers differently each time: .* it draws random numbers: randn_like in its own forward"),
    ],
)
def test_an_original_that_does_not_repeat_itself_is_told_from_where(name: str, words: str, size: int) -> None:
    with asked(name, size) as found, pytest.raises(BadInputError, match=words):
        check_answers(found)


def test_dropout_that_was_left_on_is_told_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.drop.train()
            answer: torch.Tensor = self.head(self.drop(x.flatten(1)))
            return answer

    monkeypatch.setattr(importlib.import_module("nets"), "left", lambda: Left().eval(), raising=False)
    with (
        asked("left") as found,
        pytest.raises(BadInputError, match=r"in module 'drop'; in training mode: 'drop' \(Dropout\)"),
    ):
        check_answers(found)


@pytest.mark.parametrize("size", [1, 2])
def test_answers_that_are_no_numbers_are_counted(size: int) -> None:
    with (
        asked("answers_nan", size) as found,
        pytest.raises(BadInputError, match="answers NaN for 5 of 5 golden inputs"),
    ):
        check_answers(found)


@pytest.mark.parametrize("name", ["flat", "counter", "two", "batch_statistics", "minus_batch_mean"])
def test_an_original_that_repeats_itself_is_taken(name: str) -> None:
    with asked(name) as found:
        check_answers(found)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("name", "depends"), [("batch_statistics", True), ("minus_batch_mean", True), ("two", False)])
def test_rows_that_influence_one_another_are_noticed_at_any_size(name: str, size: int, depends: bool) -> None:
    with asked(name, size) as found:
        assert (influence(found) > 1e-2) is depends
        notes = notes_on_rows(found, is_open=False)
        assert [f"judged at batch {size}" in note for note in notes] == [True] * depends
        if depends:
            with pytest.raises(BakedAxisError, match=r"axis 'batch' can't stay open: .* depends on the other rows"):
                notes_on_rows(found, is_open=True)
        else:
            assert notes_on_rows(found, is_open=True) == []


def test_several_outputs_are_named_and_their_rows_found() -> None:
    original = resolved("two")
    assert original.takes.outputs == ("map", "logits", "score")
    with sources.open_original(original) as session:
        found = ask(session, {"input": INPUTS}, 2)
    assert dict(found.axes) == {"map": 0, "logits": 0, "score": 0}
    assert {name: array.shape for name, array in found.arranged().items()} == {
        "map": (5, 8, 16, 16),
        "logits": (5, 10),
        "score": (5,),
    }
