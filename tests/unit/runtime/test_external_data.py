from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from deploykit.errors import BadInputError
from deploykit.runtime.backends.external_data import checked_model, external_locations


def tensor(location: str) -> onnx.TensorProto:
    found = onnx.TensorProto(name=location, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    found.external_data.add(key="offset", value="0")
    found.external_data.add(key="location", value=location)
    return found


def everywhere() -> onnx.ModelProto:
    """Build a model that names a file in every place where ONNX allows a tensor."""
    deep = helper.make_graph([], "deep", [], [], [tensor("subgraph")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=deep, value=tensor("attribute"))
    node.attribute.append(helper.make_attribute("tensors", [tensor("list1"), tensor("list2")]))
    node.attribute.append(helper.make_attribute("graphs", [helper.make_graph([], "g", [], [], [tensor("graphs")])]))
    sparse = onnx.SparseTensorProto(values=tensor("sparse_values"), indices=tensor("sparse_indices"), dims=[1])
    node.attribute.append(helper.make_attribute("sparse", sparse))
    inner = helper.make_node("Constant", [], ["z"], value=tensor("function"))
    function = helper.make_function("d", "f", [], ["z"], [inner], [helper.make_opsetid("", 20)])
    function.attribute_proto.append(helper.make_attribute("default", tensor("default")))
    graph = helper.make_graph(
        [node], "g", [], [], [tensor("initializer"), tensor("initializer")], sparse_initializer=[sparse]
    )
    model = helper.make_model(graph, functions=[function])
    training = model.training_info.add()
    training.initialization.initializer.append(tensor("training1"))
    training.algorithm.initializer.append(tensor("training2"))
    return model


PLACES = {
    *("subgraph", "attribute", "list1", "list2", "graphs", "sparse_values", "sparse_indices"),
    *("function", "default", "initializer", "training1", "training2"),
}


def test_finds_every_place_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(everywhere().SerializeToString())
    found = external_locations(path)
    assert len(found) == len(PLACES)
    assert set(found) == PLACES


def test_a_graph_in_two_pieces_is_one_graph(tmp_path: Path) -> None:
    """Protobuf merges a field that occurs twice; so must whoever looks for what a file refers to."""
    pieces = [helper.make_graph([], "g", [], [], [tensor(name)]) for name in ("first", "second")]
    path = tmp_path / "m.onnx"
    path.write_bytes(b"".join(onnx.ModelProto(graph=piece).SerializeToString() for piece in pieces))
    assert onnx.load_model(path, load_external_data=False).graph.initializer[1].name == "second"
    assert external_locations(path) == ("first", "second")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/etc/passwd", "absolute"),
        ("C:\\secret", "absolute"),
        ("\\\\host\\share", "absolute"),
        ("../x", "leads outside"),
        ("a\\..\\..\\x", "leads outside"),
        ("nothing", "is missing"),
        ("", "is missing"),
        ("x" * 5000, "can't be read: File name too long"),
        ("\u2603" * 200, "can't be read: File name too long"),
        ("*/_ORT_MEM_ADDR_/*", "an address in memory"),
        ("*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*", "an address in memory"),
    ],
)
def test_unsafe_locations(tmp_path: Path, location: str, words: str) -> None:
    path = tmp_path / "m.onnx"
    graph = helper.make_graph([], "g", [], [], [tensor(location)])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BadInputError, match=words):
        checked_model(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\x00", "impossible field tag 0"),
        (b"\x3a\x7f", "claims 127 bytes, 0 are left"),
        (b"\x08", "ends within a number"),
        (b"\x08" + b"\xff" * 11, "more than ten bytes"),
        (b"\x09\x00", "ends within a field"),
        (b"\x0b", "wire type 3"),
        (b"\x3a\x06\x2a\x04\x6a\x02\x0a\x05", "claims 5 bytes"),
    ],
)
def test_bytes_that_are_no_model(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=words):
        external_locations(path)


WHOLE = everywhere().SerializeToString()


@given(st.data())
def test_damage_is_found_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever a file holds, reading it ends, and with nothing but a BadInputError."""
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged)
    with contextlib.suppress(BadInputError):
        external_locations(path)


def test_an_address_in_memory_is_none_though_a_file_has_its_name(tmp_path: Path) -> None:
    place = tmp_path / "*" / "_ORT_MEM_ADDR_" / "*"
    place.parent.mkdir(parents=True)
    place.write_bytes(bytes(64))
    graph = helper.make_graph([], "g", [], [], [tensor("*/_ORT_MEM_ADDR_/*")])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BadInputError, match="an address in memory"):
        checked_model(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_node_that_stands_for_an_engine_in_a_file_is_refused(tmp_path: Path, is_nested: bool) -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/x.engine", embed_mode=0
    )
    if is_nested:
        node = helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph([node], "deep", [], []))
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())
    with pytest.raises(BadInputError, match="EPContext, which stands for a compiled engine"):
        checked_model(str(path))


def test_weights_beside_an_ir_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.xml").write_text("<net/>", encoding="utf-8")
    (tmp_path / "secret").write_bytes(b"x")
    (folder / "m.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInputError, match="outside the model's folder"):
        checked_model(str(folder / "m.xml"))


@pytest.mark.parametrize(("version", "sound"), [(20, True), (1 << 16, True), (1 << 32, False), (-1, False)])
def test_versions_that_no_operator_set_has_are_refused(version: int, sound: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("own", version)])
    path.write_bytes(model.SerializeToString())
    with contextlib.nullcontext() if sound else pytest.raises(BadInputError, match="operator set of version"):
        checked_model(str(path))
