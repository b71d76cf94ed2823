from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import record

from deploykit.artifact import MAX_SIZE, Artifact, Axis, FileRecord, Preprocess, RunConfig, TensorSpec, sha256_of
from deploykit.errors import BadInputError


@pytest.mark.parametrize(
    "sizes", [(0, 1, 2, 1), (-1, 1, 2, 1), (2, 1, 3, 1), (1, 4, 3, 1), (3, 3, 2, 1), (1, 1, 1, 0), (1, 1, 1, -2)]
)
def test_impossible_axes_are_refused_by_name(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="axis 'batch' needs"):
        Axis("batch", *sizes)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 7), st.integers(-5, 120))
def test_an_axis_accepts_exactly_its_sizes(least: int, span: int, step: int, size: int) -> None:
    axis = Axis("n", least, least, least + span, step)
    assert axis.accepts(size) == (size in range(least, least + span + 1, step))


def test_an_unbounded_axis_accepts_every_size_from_one() -> None:
    axis = Axis.unbounded("n")
    assert [size for size in (-1, 0, 1, 2, MAX_SIZE, MAX_SIZE + 1) if axis.accepts(size)] == [1, 2, MAX_SIZE]


SPEC = TensorSpec("input", "float32", (Axis("batch", 2, 2, 6, 2), 3, Axis("side", 1, 1, 9)))


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("float64", (2, 3, 1), "'input' takes float32, not float64"),
        ("float32", (2, 4, 1), "'input' takes shape [batch 2..6, 3, side 1..9], not [2, 4, 1]"),
        ("float32", (3, 3, 1), "not [3, 3, 1]"),
        ("float32", (8, 3, 1), "not [8, 3, 1]"),
        ("float32", (2, 3), "not [2, 3]"),
        ("float32", (2, 3, 1, 1), "not [2, 3, 1, 1]"),
        ("float32", (), "not []"),
        ("float32", (2, 3, 0), "not [2, 3, 0]"),
    ],
)
def test_mismatch_says_what_is_wrong(dtype: str, shape: tuple[int, ...], words: str) -> None:
    assert words in (SPEC.mismatch(dtype, shape) or "")


@given(st.sampled_from([2, 4, 6]), st.integers(1, 9))
def test_what_fits_has_no_mismatch(batch: int, side: int) -> None:
    assert SPEC.mismatch("float32", (batch, 3, side)) is None


def test_a_spec_lists_its_dynamic_axes() -> None:
    assert [axis.name for axis in SPEC.axes] == ["batch", "side"]
    assert TensorSpec("x", "int64", ()).text == "[]"


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\:\0", exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]),
    min_size=1,
).filter(lambda name: name not in {".", ".."})


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_paths_inside_are_taken_as_they_are(parts: list[str]) -> None:
    assert FileRecord("/".join(parts), 0, "").path == "/".join(parts)


@given(st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=3))
def test_no_path_may_climb(before: list[str], after: list[str]) -> None:
    with pytest.raises(BadInputError, match="unsafe path"):
        FileRecord("/".join([*before, "..", *after]), 0, "")


@given(st.lists(NAMES, max_size=3), st.sampled_from(["/", "//", "\\", "\\\\", "C:", "c:/", "C:\\", "//host/"]))
def test_no_path_may_be_absolute_on_any_system(parts: list[str], start: str) -> None:
    with pytest.raises(BadInputError, match="unsafe path"):
        FileRecord(start + "/".join(parts), 0, "")


@given(NAMES, NAMES)
def test_no_path_may_hold_a_backslash(before: str, after: str) -> None:
    with pytest.raises(BadInputError, match="unsafe path"):
        FileRecord(f"{before}\\{after}", 0, "")


@pytest.mark.parametrize("path", ["", ".", "./", "a\0b"])
def test_paths_that_name_no_file_are_refused(path: str) -> None:
    with pytest.raises(BadInputError, match="unsafe path"):
        FileRecord(path, 0, "")


def test_a_record_measures_and_finds_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.bin").write_bytes(b"content")
    found = FileRecord.of(tmp_path, "a/b.bin")
    assert found == record("a/b.bin", b"content")
    assert found.check(tmp_path) == tmp_path / "a/b.bin"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"{tmp_path / 'a.bin'} is missing")):
        record("a.bin").check(tmp_path)


def test_a_name_that_no_folder_can_hold_is_told(tmp_path: Path) -> None:
    """200 characters are a name; in UTF-8 they are more bytes than a file system takes."""
    record = FileRecord("\u2603" * 200, 1, "0" * 64)
    with pytest.raises(BadInputError, match="can't be read: File name too long"):
        record.check(tmp_path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(BadInputError, match="is missing"):
        record("a.bin").check(tmp_path)


def test_another_size_is_told_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"longer content")
    with pytest.raises(BadInputError, match=r"a\.bin has 14 bytes; its manifest says 7"):
        record("a.bin", b"content").check(tmp_path)


def test_other_bytes_of_the_same_size_are_told_by_hash(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"CONTENT")
    found, said = (hashlib.sha256(data).hexdigest()[:12] for data in (b"CONTENT", b"content"))
    with pytest.raises(BadInputError, match=rf"a\.bin has SHA-256 {found}…; its manifest says {said}…"):
        record("a.bin", b"content").check(tmp_path)


@pytest.mark.parametrize("of_folder", [False, True])
def test_a_link_that_leads_outside_is_refused_though_its_bytes_are_right(tmp_path: Path, *, of_folder: bool) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "a.bin").write_bytes(b"content")
    name = "link/a.bin" if of_folder else "a.bin"
    (root / name.split("/", maxsplit=1)[0]).symlink_to(outside if of_folder else outside / "a.bin")
    with pytest.raises(BadInputError, match="leads outside"):
        record(name, b"content").check(root)


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.bin").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    record("a.bin", b"content").check(tmp_path / "link")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_hashes_do_not_depend_on_the_block_size(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data[:size]).hexdigest()


@pytest.mark.parametrize(
    ("run", "label"),
    [
        (RunConfig("openvino"), "openvino cpu auto"),
        (RunConfig("onnxruntime", "cuda:0", "f32"), "onnxruntime cuda:0 f32"),
        (RunConfig("openvino", threads=4), "openvino cpu auto 4 threads"),
        (RunConfig("openvino", hints={"b": "2", "a": "1"}, threads=1), "openvino cpu auto 1 threads a=1 b=2"),
    ],
)
def test_labels_tell_run_configs_apart(run: RunConfig, label: str) -> None:
    assert run.label == label


def artifact(*files: FileRecord) -> Artifact:
    return Artifact("net", "onnx", "fp32", "ort", (), (), files, "", ())


def test_an_artifact_is_its_content_in_order() -> None:
    one, two = record("a.xml", b"one"), record("a.bin", b"second")
    whole = artifact(one, two)
    assert (whole.main, whole.bytes) == (one, 9)
    assert artifact(record("b.xml", b"one"), record("b.bin", b"second")).digest == whole.digest
    others = [(one, record("a.bin", b"changed")), (two, one), (one,), ()]
    assert whole.digest not in {artifact(*files).digest for files in others}


@pytest.mark.parametrize(
    ("side", "share", "short"), [(224, 0.875, 256), (64, 0.95, 67), (80, 1.0, 80), (288, 0.95, 303)]
)
def test_the_short_side_is_truncated(side: int, share: float, short: int) -> None:
    recipe = Preprocess((3, side, side), "bicubic", share, "center", (0.0,) * 3, (1.0,) * 3)
    assert recipe.resized == (short, short)
