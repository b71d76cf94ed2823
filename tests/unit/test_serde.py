from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import serde
from deploykit.artifact import Axis, FileRecord
from deploykit.errors import BadInputError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    name: str
    size: int | Axis
    weight: float
    on: bool
    colour: Colour


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    many: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf]
    maybe: float | None
    deep: Mapping[str, tuple[int, ...]]
    free: Mapping[str, Any]


def axis(name: str, sizes: tuple[int, int, int], step: int) -> Axis:
    least, usual, most = sorted(sizes)
    return Axis(name, least, usual, most, step)


INTEGERS = st.integers(-(2**63), 2**64 - 1)
AXES = st.builds(axis, st.text(max_size=4), st.tuples(*[st.integers(1, 99)] * 3), st.integers(1, 9))
FINITE = st.floats(allow_nan=False)


def leaves(floats: st.SearchStrategy[float]) -> st.SearchStrategy[Leaf]:
    return st.builds(Leaf, st.text(), INTEGERS | AXES, floats, st.booleans(), st.sampled_from(Colour))


def trees(floats: st.SearchStrategy[float]) -> st.SearchStrategy[Tree]:
    leaf = leaves(floats)
    return st.builds(
        Tree,
        leaf,
        st.lists(leaf, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), leaf, max_size=2),
        st.none() | floats,
        st.dictionaries(st.text(max_size=3), st.lists(INTEGERS, max_size=3).map(tuple), max_size=2),
        st.dictionaries(st.text(max_size=3), st.text() | st.booleans() | st.integers() | st.none(), max_size=2),
    )


@given(trees(FINITE))
def test_what_is_written_is_read_back(tree: Tree) -> None:
    assert serde.from_json(Tree, json.loads(serde.canonical_bytes(tree))) == tree


@given(trees(st.floats()))
def test_rewriting_gives_the_same_bytes(tree: Tree) -> None:
    """Equality of dataclasses takes True for 1 and NaN for different from itself; bytes do neither."""
    data = serde.canonical_bytes(tree)
    assert serde.canonical_bytes(serde.from_json(Tree, json.loads(data))) == data


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_non_finite_floats_travel_as_strict_json(value: float, text: str) -> None:
    assert serde.canonical_bytes({"x": value}) == f'{{"x":"{text}"}}'.encode()
    found = serde.from_json(float, text)
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    assert serde.from_json(str, "NaN") == "NaN"
    with pytest.raises(BadInputError):
        serde.from_json(float, "1.5")


TREE = Tree(
    Leaf("a", 3, 0.5, True, Colour.RED),
    (Leaf("b", Axis("batch", 1, 2, 4), 1.5, False, Colour.BLUE), Leaf("c", 1, 2.5, True, Colour.RED)),
    {"x": Leaf("d", 7, 3.5, True, Colour.BLUE)},
    None,
    {"y": (1, 2)},
    {},
)


def spoilt(path: str, value: object) -> Any:
    """Return TREE as JSON with the value at `path` ("many.1.on") replaced, or removed where `value` is ..."""
    whole = serde.to_json(TREE)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    owner: Any = whole
    for part in parents:
        owner = owner[part]
    if value is ...:
        del owner[last]
    else:
        owner[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("leaf", [], r"^\$\.leaf: expected an object \(Leaf\), found list"),
        ("leaf", None, r"^\$\.leaf: expected an object"),
        ("leaf.name", 3, r"^\$\.leaf\.name: expected str, found int '3'"),
        ("leaf.name", None, r"^\$\.leaf\.name: "),
        ("leaf.size", True, r"^\$\.leaf\.size: "),
        ("leaf.size", 1.0, r"^\$\.leaf\.size: "),
        ("leaf.size", None, r"^\$\.leaf\.size: "),
        ("leaf.weight", False, r"^\$\.leaf\.weight: expected a number, found bool"),
        ("leaf.weight", "nan", r"^\$\.leaf\.weight: expected a number, found str"),
        ("leaf.on", 1, r"^\$\.leaf\.on: expected bool, found int"),
        ("leaf.colour", "green", r"^\$\.leaf\.colour: expected one of \['red', 'blue'\], found str 'green'"),
        ("leaf.colour", ["red"], r"^\$\.leaf\.colour: expected one of"),
        ("leaf.colour", ..., r"^\$\.leaf: field 'colour' of Leaf is missing"),
        ("leaf.new", 1, r"^\$\.leaf: unknown field 'new' in Leaf"),
        ("many", {}, r"^\$\.many: expected a list"),
        ("many", "ab", r"^\$\.many: expected a list"),
        ("many.1.on", "yes", r"^\$\.many\[1\]\.on: "),
        ("many.0.size.step", ..., r"^\$\.many\[0\]\.size"),
        ("by_name", [], r"^\$\.by_name: expected an object"),
        ("by_name.x.weight", [], r"^\$\.by_name\.x\.weight: "),
        ("maybe", "much", r"^\$\.maybe: expected a number"),
        ("deep.y.1", True, r"^\$\.deep\.y\[1\]: expected an integer, found bool"),
        ("many", ..., r"^\$: field 'many' of Tree is missing"),
        ("stranger", None, r"^\$: unknown field 'stranger' in Tree"),
    ],
)
def test_misfits_are_refused_by_path(path: str, value: object, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        serde.from_json(Tree, spoilt(path, value))


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], {}])
def test_only_an_integer_is_an_integer(value: object) -> None:
    with pytest.raises(BadInputError):
        serde.from_json(int, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Axis, {"name": "batch", "min": 0, "opt": 1, "max": 2, "step": 1}),
        (FileRecord, {"path": "../up", "bytes": 1, "sha256": ""}),
    ],
)
def test_values_that_a_dataclass_refuses_are_bad_input(kind: type, value: object) -> None:
    with pytest.raises(BadInputError, match=r"^\$\.here: "):
        serde.from_json(kind, value, "$.here")


def test_a_refused_axis_in_a_union_is_bad_input() -> None:
    bad = {"name": "batch", "min": 5, "opt": 1, "max": 2, "step": 1}
    with pytest.raises(BadInputError, match=r"^\$\.leaf\.size: "):
        serde.from_json(Tree, spoilt("leaf.size", bad))


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_that_no_float_holds_is_bad_input(sign: int) -> None:
    with pytest.raises(BadInputError, match=r"^\$\.leaf\.weight: "):
        serde.from_json(Tree, spoilt("leaf.weight", sign * 10**400))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(["leaf", "leaf.size", "many.0", "many.1.colour", "by_name.x", "deep", "maybe"]), JSON)
def test_any_json_is_read_or_refused(path: str, value: object) -> None:
    whole = spoilt(path, value)
    try:
        found = serde.from_json(Tree, whole)
    except BadInputError:
        return
    assert serde.canonical_bytes(found) == serde.canonical_bytes(serde.from_json(Tree, serde.to_json(found)))


@given(st.dictionaries(st.text(), JSON), st.randoms(use_true_random=False))
def test_canonical_bytes_do_not_know_the_order_of_keys(value: dict[str, object], draw: Any) -> None:
    keys = list(value)
    draw.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert serde.canonical_bytes(shuffled) == serde.canonical_bytes(value)
    assert serde.digest(shuffled) == serde.digest(value)


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), int, 1j, {"deep": [b""]}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="can't be written as JSON"):
        serde.to_json(value)


def test_canonical_bytes_are_ascii_without_space() -> None:
    assert serde.canonical_bytes({"ö": [1, None], "a": Colour.RED}) == b'{"a":"red","\\u00f6":[1,null]}'


@dataclass(frozen=True)
class Grown:
    """A record that got a field after files were written."""

    old: int
    new: float | None = field(default=None, metadata=serde.LATER)


def test_a_field_that_came_later_may_be_absent_and_is_not_written_without_a_value() -> None:
    assert serde.from_json(Grown, {"old": 1}) == Grown(1)
    assert serde.to_json(Grown(1)) == {"old": 1}
    assert serde.from_json(Grown, serde.to_json(Grown(1, 0.5))) == Grown(1, 0.5)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_no_number_is_null_and_named_and_nothing_else_changes(value: Any) -> None:
    plain, names = serde.finite(serde.to_values(value))
    text = json.dumps(plain, allow_nan=False)
    assert plain == json.loads(text)
    assert set(names.values()) <= set(serde.NON_FINITE)
    assert bool(names) == (json.dumps(serde.to_json(value)) != json.dumps(serde.to_values(value)))
    if not names:
        assert plain == value


def test_paths_lead_to_what_is_named() -> None:
    value = {"judgements": [{"metrics": {"a": math.inf, "b": 1.0}}, {"metrics": {"a": math.nan}}], "text": "Infinity"}
    plain, names = serde.finite(value)
    assert plain == {"judgements": [{"metrics": {"a": None, "b": 1.0}}, {"metrics": {"a": None}}], "text": "Infinity"}
    assert names == {"judgements[0].metrics.a": "Infinity", "judgements[1].metrics.a": "NaN"}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_integers_are_of_64_bits(number: int) -> None:
    with pytest.raises(BadInputError, match="integer of 64 bits"):
        serde.from_json(int, number)
    assert serde.from_json(int, 2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nul", "1" * 5000])
def test_what_is_no_json_or_nested_too_deep_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"deep|Expecting|Exceeds"):
        serde.parse(text)
    assert serde.parse(b'{"a": [1, null]}') == {"a": [1, None]}
