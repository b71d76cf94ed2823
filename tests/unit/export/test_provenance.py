from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from deploykit.errors import BadInputError
from deploykit.export import provenance

Edges = tuple[str, str]


def graph(*nodes: Edges) -> onnx.GraphProto:
    """Build a graph from the inputs and outputs of its nodes, by name, comma-separated."""
    made = [helper.make_node("Op", before.split(","), after.split(",")) for before, after in nodes]
    return helper.make_graph(made, "g", [], [])


CHAIN = graph(("x", "a"), ("a", "b"), ("b", "c"), ("c", "d"))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"a": "A", "b": "B", "c": "C", "d": "D"}, "ABCD"),
        ({"a": "A", "c": "C"}, "AACC"),
        ({"b": "B"}, "BBBB"),
        ({"d": "D"}, "DDDD"),
        ({"a": "A", "gone": "G"}, "AAAA"),
    ],
)
def test_a_node_belongs_with_the_one_before_it_else_after_it(known: dict[str, str], expected: str) -> None:
    assert provenance.complete(CHAIN, known) == dict(zip("abcd", expected, strict=True))


def test_without_any_record_all_belongs_to_the_whole_network() -> None:
    assert provenance.complete(CHAIN, {}) == dict.fromkeys("abcd", "")
    assert provenance.complete(graph(), {"a": "A"}) == {}


def test_the_whole_network_is_a_record_too() -> None:
    assert provenance.complete(CHAIN, {"a": "A", "b": ""}) == {"a": "A", "b": "", "c": "", "d": ""}


def test_what_comes_before_wins_over_what_comes_after() -> None:
    assert provenance.complete(graph(("x", "a"), ("a", "m"), ("m", "z")), {"a": "A", "z": "Z"})["m"] == "A"


def test_a_constant_belongs_with_its_user() -> None:
    found = provenance.complete(graph(("", "k"), ("x", "a"), ("a,k", "b")), {"a": "A", "b": "B"})
    assert found == {"k": "B", "a": "A", "b": "B"}


def test_a_dead_end_does_not_hide_a_record_after_the_node() -> None:
    """`shared` feeds a node that nothing is known of, and then one that is recorded."""
    found = provenance.complete(graph(("x", "shared"), ("shared", "dead"), ("shared", "b")), {"b": "B"})
    assert found["shared"] == "B"


def test_every_output_of_a_node_leads_to_it() -> None:
    found = provenance.complete(graph(("x", "a,second"), ("second", "b")), {"a": "A"})
    assert found == {"a": "A", "b": "A"}


@pytest.mark.parametrize("known", [{"a": "A", "z": "Z"}, {"z": "Z", "a": "A"}])
def test_left_out_optional_tensors_connect_nothing(known: dict[str, str]) -> None:
    """ONNX writes "" for an optional input or output that is left out; two of them are not the same tensor."""
    found = provenance.complete(graph(("x", "a,,more"), ("y,,limit", "clip"), ("clip", "z")), known)
    assert found == {"a": "A", "clip": "Z", "z": "Z"}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.GraphProto, dict[str, str]]:
    names = [f"t{index}" for index in range(draw(st.integers(1, 8)))]
    nodes = []
    for index, name in enumerate(names):
        inputs = draw(st.lists(st.sampled_from(["x", "", *names[:index]]), min_size=1, max_size=3))
        nodes.append((",".join(inputs), name))
    return graph(*nodes), draw(st.dictionaries(st.sampled_from([*names, "gone"]), st.sampled_from("ABC")))


@given(graphs())
def test_every_node_is_mapped_and_every_record_kept(case: tuple[onnx.GraphProto, dict[str, str]]) -> None:
    made, known = case
    found = provenance.complete(made, known)
    assert list(found) == [node.output[0] for node in made.node]
    assert set(found.values()) <= {*known.values(), ""}
    assert all(found[name] == module for name, module in known.items() if name in found)
    for node in made.node:
        before = [found[name] for name in node.input if name in found and name in known]
        if node.output[0] not in known and before:
            assert found[node.output[0]] != ""
    assert provenance.complete(made, found) == found


@given(st.dictionaries(st.text(), st.text()))
def test_a_sidecar_is_read_as_it_was_written(modules: dict[str, str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        provenance.write(Path(folder) / "modules.json", modules)
        assert provenance.read(Path(folder) / "modules.json") == modules


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    provenance.write(tmp_path / "one", {"a": "A", "b": "B"})
    provenance.write(tmp_path / "two", {"b": "B", "a": "A"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"{}", b"[]", b"3", b"null", b'"nodes"', b'{"nodes": []}', b'{"nodes": null}', b'{"nodes": "ab"}'),
        *(
            b"\xff\xfe\x00",
            b'{"nodes": {"a": 3}}',
            b'{"nodes": {"a": null}}',
            b'{"nodes": {"a": ["A"]}}',
            b"[" * 99_999,
        ),
    ],
)
def test_a_damaged_sidecar_is_bad_input(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "modules.json").write_bytes(data)
    with pytest.raises(BadInputError, match=r"modules\.json"):
        provenance.read(tmp_path / "modules.json")


def test_a_missing_sidecar_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"modules\.json"):
        provenance.read(tmp_path / "modules.json")
