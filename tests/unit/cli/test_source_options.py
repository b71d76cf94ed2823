"""What is typed about an original, as options of the library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deploykit import serde
from deploykit.cli.source import _argument, _numbers, source_options
from deploykit.errors import UsageError
from deploykit.models.original import SourceOptions

#: As typer hands over what nobody typed.
NOTHING: dict[str, Any] = {
    "weights": None,
    "random_weights": False,
    "checkpoint_key": None,
    "num_classes": None,
    "model_arg": None,
    "labels": None,
    "image_size": None,
    "interpolation": None,
    "crop_pct": None,
    "mean": None,
    "std": None,
    "embedding": False,
    "family": None,
    "lora": None,
}
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# What is refused


@pytest.mark.parametrize("text", ["", "=", "=3", "drop_rate", "drop_rate:0.1", " "])
def test_an_argument_without_a_key_or_a_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write KEY=VALUE, such as drop_rate=0\.1"):
        _argument(text)


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "-Infinity", "infinity", "1e999", "-1e999"])
def test_an_argument_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="numbers are finite"):
        _argument(f"rate={value}")


def test_an_argument_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--model-arg depth is given twice"):
        source_options(**{**NOTHING, "model_arg": ["depth=2", "width=3", "depth=2"]})


@pytest.mark.parametrize(
    "text", ["", ",", "0.5,", "0.5,,0.5", "0.5 0.5 0.5", "a,b,c", "0.5;0.5", "(0.5,0.5,0.5)", "0,5,x"]
)
@pytest.mark.parametrize("name", ["mean", "std"])
def test_numbers_that_cannot_be_read_are_refused(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"--{name} .*write numbers with commas between, such as 0\.485"):
        source_options(**{**NOTHING, name: text})


# What is read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=-1", -1),
        ("a=0", 0),
        ("a=1.0", 1.0),
        ("a=1e-6", 1e-6),
        ("a=.5", 0.5),
        ("a=true", True),
        ("a=False", False),
        ("a=TRUE", True),
        ("a=", ""),
        ("a=avg", "avg"),
        ("a=b=c", "b=c"),
        ("a==", "="),
        ("a=none", "none"),
        ("a=1,2", "1,2"),
        ("a=0x10", "0x10"),
        ("a=truer", "truer"),
    ],
)
def test_an_argument_is_a_number_a_truth_or_a_text(text: str, value: object) -> None:
    key, found = _argument(text)
    assert (key, found, type(found)) == ("a", value, type(value))


@given(
    key=KEYS, value=st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
)
def test_numbers_and_truths_come_back_exactly(key: str, value: float) -> None:
    found = _argument(f"{key}={value}")
    assert found == (key, value)
    assert type(found[1]) is type(value)


@given(key=KEYS, value=st.text())
def test_other_texts_come_back_exactly(key: str, value: str) -> None:
    assume(not _is_number(value) and value.lower() not in {"true", "false"})
    assert _argument(f"{key}={value}") == (key, value)


@given(text=st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        key, value = _argument(text)
    except UsageError:
        assert not text.partition("=")[1] or text.startswith("=") or _is_number(text.partition("=")[2])
    else:
        assert key
        assert not isinstance(value, float) or math.isfinite(value)


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4))
def test_numbers_with_commas_come_back_exactly(values: list[float]) -> None:
    assert _numbers("mean", ", ".join(map(repr, values))) == tuple(values)


def test_nothing_typed_is_nothing_given() -> None:
    assert source_options(**NOTHING) == SourceOptions()
    assert source_options(**{**NOTHING, "model_arg": []}).given == {}
    assert _numbers("mean", None) is None


def test_everything_typed_arrives() -> None:
    options = source_options(
        weights=Path("a/b.pth"),
        random_weights=True,
        checkpoint_key="model",
        num_classes=3,
        model_arg=["depth=2", "drop_rate=0.5"],
        labels=Path("labels.txt"),
        image_size=96,
        interpolation="bilinear",
        crop_pct=0.9,
        mean="0.5,0.5,0.5",
        std="0.25, 0.25,0.25",
        embedding=True,
        family="convnext",
        lora=Path("lora.safetensors"),
    )
    assert options == SourceOptions(
        weights=str(Path("a/b.pth")),
        random_weights=True,
        checkpoint_key="model",
        num_classes=3,
        model_args={"depth": 2, "drop_rate": 0.5},
        labels="labels.txt",
        image_size=96,
        interpolation="bilinear",
        crop_pct=0.9,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        embedding=True,
        family="convnext",
        lora="lora.safetensors",
    )
    assert set(options.given) == set(vars(options))


def _reads_as_no_finite_number(text: str) -> bool:
    """Tell whether a text is a number to Python, but NaN or infinite: "INFINITY", "-nan", "1e999"."""
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _is_too_long(value: float | str) -> bool:
    """Tell whether it is an integer, or reads as one, of more than 64 bits."""
    try:
        return not isinstance(value, float) and not -(2**63) <= int(value) < 2**64
    except ValueError:
        return False


@pytest.mark.parametrize("text", [str(2**64), str(-(2**63) - 1), "9" * 400])
def test_integers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="integers have 64 bits"):
        source_options(**{**NOTHING, "model_arg": [f"depth={text}"]})


@given(
    arguments=st.dictionaries(
        KEYS, st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.text(max_size=9)
    )
)
def test_what_was_typed_survives_being_written_down(arguments: dict[str, bool | int | float | str]) -> None:
    typed = [f"{key}={value}" for key, value in arguments.items()]
    try:
        options = source_options(**{**NOTHING, "model_arg": typed})
    except UsageError:
        assert any(_reads_as_no_finite_number(str(value)) or _is_too_long(value) for value in arguments.values())
        return
    again = serde.from_json(SourceOptions, serde.to_json(options))
    assert again == options
    for key, value in options.model_args.items():
        assert type(again.model_args[key]) is type(value)
