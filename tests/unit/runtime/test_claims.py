"""What a file says of itself beside what has to be true."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import RECIPE

from deploykit import serde
from deploykit.runtime.claims import LABELS_KEY, PREPROCESS_KEY, Claims, precision_fault

LABELS = ("cat", "dog", "eel")
CLAIMS = Claims("its manifest", LABELS, RECIPE)


def texts(labels: object = LABELS, **changes: object) -> dict[str, str]:
    recipe = serde.to_json(dataclasses.replace(RECIPE, **changes))  # type: ignore[arg-type]
    return {LABELS_KEY: json.dumps(labels), PREPROCESS_KEY: json.dumps(recipe), "deploykit.precision": "int8"}


def test_what_agrees_and_what_isnt_said_contradict_nothing() -> None:
    assert CLAIMS.contradictions(texts()) == ()
    assert CLAIMS.contradictions({}) == ()
    assert Claims().contradictions(texts(["other"])) == ()
    assert Claims("the original", (), RECIPE).contradictions(texts(["other"])) == (), "it has no names of its own"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "eel", "dog"], "class 1 is 'eel' in the file, 'dog' in its manifest (2 of 3 names differ)"),
        (["cat", "dog", "Eel"], "class 2 is 'Eel' in the file, 'eel' in its manifest"),
        (["cat", "dog"], "the file names 2 classes, its manifest 3"),
        ({"0": "cat"}, "deploykit.labels in the file is no list of names"),
        (["cat", "dog", 3], "deploykit.labels in the file is no list of names"),
    ],
    ids=str,
)
def test_other_class_names_are_named(labels: object, message: str) -> None:
    (found,) = CLAIMS.contradictions(texts(labels))
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.0, 0.0, 0.0)}, "preprocess: mean is (0.0, 0.0, 0.0) in the file, (0.5, 0.5, 0.5) in its manifest"),
        ({"std": (1.0, 1.0, 1.0)}, "preprocess: std is (1.0, 1.0, 1.0) in the file, (0.25, 0.25, 0.25) in its"),
        ({"interpolation": "nearest"}, "preprocess: interpolation is nearest in the file, bicubic in its manifest"),
        ({"crop_pct": 1.0}, "preprocess: crop_pct is 1.0 in the file, 0.875 in its manifest"),
        ({"crop_mode": "squash"}, "preprocess: crop_mode is squash in the file, center in its manifest"),
        ({"input_size": (3, 32, 16)}, "preprocess: input_size is (3, 32, 16) in the file, (3, 16, 16) in its manifest"),
        ({"mean": (0.5,)}, "preprocess: mean is (0.5) in the file, (0.5, 0.5, 0.5) in its manifest"),
    ],
    ids=str,
)
def test_other_preprocessing_is_named(changes: dict[str, object], message: str) -> None:
    (found,) = CLAIMS.contradictions(texts(**changes))
    assert found.startswith(message)


def test_several_differences_are_all_told() -> None:
    found = CLAIMS.contradictions(texts(["a", "b", "c"], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert len(found) == 3


def test_rounding_is_no_difference() -> None:
    assert CLAIMS.contradictions(texts(mean=(0.5, 0.5 + 1e-8, 0.5))) == ()


@given(st.text() | st.sampled_from(["[" * 10_000, "null", "{}", '{"mean": 1}', "1", '"x"']))
def test_whatever_is_embedded_is_told_and_never_raised(text: str) -> None:
    assert len(CLAIMS.contradictions({LABELS_KEY: text, PREPROCESS_KEY: text})) == 2


def test_images_for_a_model_that_takes_none() -> None:
    (found,) = Claims("its manifest", LABELS, None).contradictions(texts())
    assert found == "the file says how images are prepared; by its manifest the model takes none"


def test_faults_that_are_known_come_first() -> None:
    claims = dataclasses.replace(CLAIMS, faults=("a fault",))
    assert claims.contradictions(texts(["cat", "dog", "Eel"]))[0] == "a fault"
    assert Claims(faults=("a fault",)).contradictions({}) == ("a fault",)


@pytest.mark.parametrize(
    ("precision", "held", "fault"),
    [
        ("fp32", "f32", False),
        ("fp16", "f16", False),
        ("int8", "int8", False),
        ("int8", "f32", True),
        ("fp16", "f32", True),
        ("bf16", "f32", True),
        ("int8-weights", "f16", True),
        ("fp8", "int8", True),
        ("fp32", "int8", False),  # held to more than it needs
        ("int8", "", False),
        ("of a plugin", "f32", False),
    ],
)
def test_a_coarser_name_than_the_weights_have_is_a_fault(precision: str, held: str, fault: bool) -> None:
    found = precision_fault(precision, held, "its manifest")
    assert bool(found) == fault
    assert not fault or found.startswith(f"its manifest calls it {precision}; its weights are {held}")
