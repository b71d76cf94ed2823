from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.unit.calibration.pictures import RECIPE, crops, natural

from deploykit.calibration import images as calibration
from deploykit.calibration.images import (
    RENDERED_CALIBRATION,
    RENDERED_POOL,
    CalibrationImages,
    CalibrationInputs,
    CalibrationSet,
    Choice,
    ChosenFiles,
    open_calibration,
)
from deploykit.data import rendered
from deploykit.data.imageset import prepare_crops
from deploykit.data.preprocess import crop, normalize
from deploykit.errors import BadInputError, DeploykitError, UsageError

NAMES = ["b.png", "a/z.png", "a/b/c.PNG", "z/1.png", "c.jpg"]
SORTED = ["a/b/c.PNG", "a/z.png", "b.png", "c.jpg", "z/1.png"]


def fill(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(natural(seed)).save(root / name)
    return root


def opened(name: Path | str, count: int = 300, seed: int = 0) -> CalibrationSet:
    return open_calibration(str(name), count, seed, RECIPE)


def refusal(kind: type[DeploykitError], name: Path | str, count: int = 300, seed: int = 0) -> str:
    with pytest.raises(kind) as caught:
        opened(name, count, seed)
    assert type(caught.value) is kind
    return caught.value.message


def image_titles(found: CalibrationSet) -> list[str]:
    return [found.title(index).replace(os.sep, "/") for index in range(len(found))]


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npy", "", ":"])
def test_what_does_not_exist_is_refused_by_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path, ["notes.png"]))
    (tmp_path / "notes.png").rename(tmp_path / "notes.txt")
    if name:
        assert refusal(UsageError, name) == f"{name!r} does not exist"
    else:
        assert "is no image file" in refusal(UsageError, name)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    assert "null byte" in refusal(UsageError, "a\0b")


@pytest.mark.parametrize("name", ["list.csv", "photo.png", "archive.zip"])
def test_a_file_that_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is neither a folder of images nor an array (.npy, .npz)" in refusal(UsageError, tmp_path / name)


def test_other_files_are_refused_by_name_all_at_once(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    for name in ("README.md", "a/labels.csv", "a/b/x"):
        (tmp_path / name).touch()
    message = refusal(UsageError, tmp_path)
    assert "has 3 faults:" in message
    for name in ("README.md", "a/labels.csv", "a/b/x"):
        assert f"{Path(name)} is no image file" in message


def test_a_folder_without_images_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden.png").touch()
    assert "holds no images" in refusal(BadInputError, tmp_path)


def test_links_are_followed_but_not_in_circles_and_not_to_nowhere(tmp_path: Path) -> None:
    fill(tmp_path / "store", ["x/a.png"])
    root = fill(tmp_path / "photos", ["d/z.png"])
    (root / "cat").symlink_to(tmp_path / "store/x")
    (root / "b.png").symlink_to(tmp_path / "store/x/a.png")
    assert image_titles(opened(root)) == ["b.png", "cat/a.png", "d/z.png"]
    (root / "d/up").symlink_to(root)
    (root / "d/self").symlink_to(root / "d")
    (root / "d/gone.png").symlink_to(tmp_path / "gone")
    (root / "gone").symlink_to(tmp_path / "gone")
    message = refusal(UsageError, root)
    assert "has 4 faults:" in message
    assert f"{Path('d/up')} is a link to a folder that it lies in" in message
    assert f"{Path('d/self')} is a link to a folder that it lies in" in message
    assert f"{Path('d/gone.png')} is missing" in message
    assert "gone is no image file" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    fill(tmp_path / "photos", NAMES)
    os.mkfifo(tmp_path / "photos/pipe.png")
    assert refusal(UsageError, tmp_path / "photos").endswith("pipe.png is no file")
    os.mkfifo(tmp_path / "pipe.npy")
    assert refusal(UsageError, tmp_path / "pipe.npy").endswith("is no regular file")


def test_images_that_can_not_be_decoded_are_told_all_at_once(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    (tmp_path / "b.png").write_bytes(b"no image")
    whole = (tmp_path / "z/1.png").read_bytes()
    (tmp_path / "z/1.png").write_bytes(whole[: len(whole) // 2])
    found = opened(tmp_path)
    assert isinstance(found, CalibrationImages)
    with pytest.raises(BadInputError) as caught:
        prepare_crops(found, RECIPE)
    assert "has 2 faults:" in caught.value.message
    assert "b.png is no image" in caught.value.message
    assert "1.png can't be decoded" in caught.value.message


def test_images_are_listed_in_order_of_their_paths_whenever_they_were_written(tmp_path: Path) -> None:
    assert image_titles(opened(fill(tmp_path / "one", NAMES))) == SORTED
    assert image_titles(opened(fill(tmp_path / "two", NAMES[::-1]))) == SORTED


def test_hidden_files_and_litter_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, ".git/a.png", ".a.png"])
    for name in ("a/Thumbs.db", "desktop.ini", "a/.DS_Store"):
        (tmp_path / name).touch()
    assert image_titles(opened(tmp_path)) == SORTED


def test_chosen_files_are_those_that_are_decoded(tmp_path: Path) -> None:
    found = opened(fill(tmp_path, NAMES[:4]), 2, 3)
    assert isinstance(found, ChosenFiles)
    assert (found.name, len(found), found.choice.available, found.labels) == (str(tmp_path), 2, 4, ())
    prepared = prepare_crops(found, RECIPE)
    for index, title in enumerate(image_titles(found)):
        image = natural(NAMES.index(title))
        assert np.array_equal(found.image(index), image)
        assert np.array_equal(prepared[index], crop(image, RECIPE))


def test_the_digest_of_files_knows_bytes_choice_and_seed_but_no_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "one", NAMES)
    before = opened(root, 3).digest
    assert opened(root, 3).digest == before
    renamed = fill(tmp_path / "two", NAMES)
    (renamed / "z/1.png").rename(renamed / "z/2.png")
    assert opened(renamed, 3).digest == before
    assert len({before, opened(root, 3, 1).digest, opened(root, 2).digest, opened(root, 5).digest}) == 4
    assert opened(root, 5, 1).digest != opened(root, 5).digest
    chosen = opened(root, 3)
    assert isinstance(chosen, ChosenFiles)
    data = chosen.paths[1].read_bytes()
    chosen.paths[1].write_bytes(data + b"\0")
    assert chosen.digest != before


def test_files_that_are_gone_when_they_are_hashed_are_all_named(tmp_path: Path) -> None:
    found = opened(fill(tmp_path, NAMES))
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(BadInputError) as caught:
        _ = found.digest
    assert "has 2 faults:" in caught.value.message
    assert "b.png can't be read: No such file" in caught.value.message


# ---- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "seed", "text"), [(0, 0, "--calib-size 0"), (-1, 0, "-1"), (5, -1, "--calib-seed -1")]
)
def test_a_choice_of_nothing_is_refused(count: int, seed: int, text: str) -> None:
    assert text in refusal(UsageError, RENDERED_CALIBRATION, count, seed)


def test_the_choice_is_the_same_on_every_machine() -> None:
    assert Choice.of(20, 6, 0).indices == EXPECTED[0]
    assert Choice.of(20, 6, 1).indices == EXPECTED[1]
    assert Choice.of(20, 6, 2**63).indices == EXPECTED[2]


EXPECTED = ((1, 2, 3, 11, 13, 15), (2, 9, 14, 16, 18, 19), (4, 5, 9, 11, 16, 18))


@given(st.integers(1, 400), st.integers(1, 500), st.integers(0, 2**40))
def test_a_choice_holds_no_image_twice_and_grows_with_its_number(available: int, count: int, seed: int) -> None:
    choice = Choice.of(available, count, seed)
    assert choice == Choice.of(available, count, seed)
    assert len(choice.indices) == min(available, count)
    assert list(choice.indices) == sorted(set(choice.indices))
    assert set(choice.indices) <= set(range(available))
    assert set(choice.indices) <= set(Choice.of(available, count + 1, seed).indices)


def test_every_image_is_chosen_about_as_often() -> None:
    times = np.zeros(50)
    for seed in range(2000):
        times[list(Choice.of(50, 10, seed).indices)] += 1
    assert np.abs(times / 2000 - 0.2).max() < 0.045  # 5 standard deviations


def test_where_there_are_fewer_all_are_taken() -> None:
    assert Choice.of(5, 300, 7) == Choice(7, 5, (0, 1, 2, 3, 4))


# ---- the rendered set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rendered:test", "rendered:train", "rendered:", "rendered:other"])
def test_other_rendered_splits_are_not_for_calibration(name: str) -> None:
    assert refusal(UsageError, name) == f"{name!r} is not for calibration"


def test_the_rendered_set_leaves_the_first_images_to_golden_inputs() -> None:
    found = opened(RENDERED_CALIBRATION, 3, 5)
    assert isinstance(found, CalibrationImages)
    which = [RENDERED_POOL[index] for index in found.choice.indices]
    assert min(which) >= 1000
    assert image_titles(found) == [f"rendered:calib {index}" for index in which]
    for index, place in enumerate(which):
        assert np.array_equal(found.image(index), rendered.render("calib", place)[0])
    digests = {opened(RENDERED_CALIBRATION, count, seed).digest for count in (3, 4) for seed in (5, 6)}
    assert len(digests) == 4
    assert found.digest in digests


# ---- arrays ----------------------------------------------------------------------------------------------------------

IMAGES = crops(6, 40)
INPUTS = normalize(crops(6), RECIPE)


def save(path: Path, **arrays: NDArray[Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, arrays["x"])
    else:
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (IMAGES[0], r"uint8 \[40, 40, 3\]"),
        (IMAGES.transpose(0, 3, 1, 2), r"uint8 \[6, 3, 40, 40\]"),
        (IMAGES[..., :1], r"uint8 \[6, 40, 40, 1\]"),
        (IMAGES[:, :0], r"uint8 \[6, 0, 40, 3\]"),
        (IMAGES.astype(np.float32), r"float32 \[6, 40, 40, 3\]"),
        (INPUTS.astype(np.float64), r"float64 \[6, 3, 32, 32\]"),
        (INPUTS.astype(np.float16), r"float16 \[6, 3, 32, 32\]"),
        (INPUTS.astype(">f4"), r">f4 \[6, 3, 32, 32\]"),
        (INPUTS[:, :, :31], r"float32 \[6, 3, 31, 32\]"),
        (INPUTS[0], r"float32 \[3, 32, 32\]"),
        (np.float32(3), r"float32 \[\]"),
        (np.zeros(3, [("a", np.uint8)]), r"\[3\]"),
        (np.array(["a.png"]), r"<U5 \[1\]"),
        (np.array([{"a": 1}], dtype=object), r"object \[1\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_other_shapes_and_types_are_refused(tmp_path: Path, array: Any, text: str, suffix: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        opened(save(tmp_path / f"a.{suffix}", x=array))
    wanted = "calibration takes uint8 [N, height, width, 3] or, prepared, float32 [N, 3, 32, 32]"
    assert caught.value.message.endswith(wanted)


def test_a_transposed_and_a_double_array_are_told_what_to_do(tmp_path: Path) -> None:
    for array, hint in ((IMAGES.transpose(0, 3, 1, 2), "transpose(0, 2, 3, 1)"), (INPUTS.astype(float), "float32")):
        with pytest.raises(UsageError) as caught:
            opened(save(tmp_path / "a.npy", x=array))
        assert hint in caught.value.hints[0].action


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("array", [IMAGES[:0], INPUTS[:0]], ids=["uint8", "float32"])
def test_an_empty_array_holds_no_images(tmp_path: Path, suffix: str, array: NDArray[Any]) -> None:
    assert refusal(BadInputError, save(tmp_path / f"a.{suffix}", x=array)).endswith("holds no images")


def claiming(count: int) -> bytes:
    """Return an array whose header claims `count` images, and which has two."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 40, 40, 3)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + IMAGES[:2].tobytes()


@pytest.mark.parametrize("count", [-2, 1, 3, 10**12, 10**30])
def test_a_header_that_claims_other_than_there_is_is_refused_before_anything_is_allocated(
    tmp_path: Path, count: int
) -> None:
    (tmp_path / "a.npy").write_bytes(claiming(count))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", claiming(count))
    for name in ("a.npy", "b.npz"):
        assert f"is {count * 4800:,} bytes of values; it holds 9,600" in refusal(BadInputError, tmp_path / name)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", x=IMAGES)
    monkeypatch.setattr(calibration, "MAX_BYTES", IMAGES.nbytes - 1)
    assert f"is {IMAGES.nbytes:,} bytes; at most {IMAGES.nbytes - 1:,}" in refusal(BadInputError, path)


def test_an_archive_of_several_arrays_must_call_one_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=IMAGES, labels=np.arange(6))
    assert "has 2 arrays (x, labels)" in refusal(UsageError, path)
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    assert "has 0 arrays (none)" in refusal(UsageError, tmp_path / "none.npz")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("README", "text")
    assert "(README)" in refusal(UsageError, tmp_path / "text.npz")
    assert len(opened(save(tmp_path / "b.npz", images=IMAGES, labels=np.arange(6)))) == 6


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("data", [b"", b"no array", b"\x93NUMPY\x03\x00\x00\x00\x00\x00", b"PK\x05\x06"])
def test_what_is_no_array_is_bad_input(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert "is no whole array: " in refusal(BadInputError, tmp_path / name)


@given(st.sampled_from(["a.npy", "a.npz"]), st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_array_is_refused_or_of_the_same_shape(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, flip: int
) -> None:
    path = save(tmp_path_factory.mktemp("damaged") / name, x=IMAGES)
    data = bytearray(path.read_bytes())
    data[place] ^= flip
    path.write_bytes(data)
    try:
        found = opened(path)
    except (UsageError, BadInputError):
        return
    assert isinstance(found, CalibrationImages)
    assert found.image(0).shape == (40, 40, 3)


@pytest.mark.parametrize("suffix", ["npy", "NPY", "npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_images_is_prepared_as_files_are(tmp_path: Path, suffix: str, order: Any) -> None:
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as stream:
        if suffix == "npz":
            np.savez(stream, x=np.asarray(IMAGES, order=order))
        else:
            np.save(stream, np.asarray(IMAGES, order=order))
    found = opened(path, 4, 1)
    assert isinstance(found, CalibrationImages)
    assert (found.name, len(found), found.choice.available) == (str(path), 4, 6)
    prepared = prepare_crops(found, RECIPE)
    for index, place in enumerate(found.choice.indices):
        assert found.title(index) == f"image {place}"
        assert np.array_equal(prepared[index], crop(IMAGES[place], RECIPE))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_of_inputs_is_taken_as_it_is(tmp_path: Path, suffix: str) -> None:
    found = opened(save(tmp_path / f"a.{suffix}", x=INPUTS), 4, 1)
    assert isinstance(found, CalibrationInputs)
    assert (found.name, len(found), found.choice.available) == (str(tmp_path / f"a.{suffix}"), 4, 6)
    for index, place in enumerate(found.choice.indices):
        assert found.title(index) == f"image {place}"
        assert np.array_equal(found.row(index), INPUTS[place])


@pytest.mark.parametrize("array", [IMAGES, INPUTS], ids=["uint8", "float32"])
def test_the_digest_of_an_array_knows_the_chosen_rows_and_the_seed(tmp_path: Path, array: NDArray[Any]) -> None:
    path = save(tmp_path / "a.npy", x=array)
    chosen = opened(path, 3)
    assert opened(save(tmp_path / "b.npz", x=array), 3).digest == chosen.digest
    assert len({chosen.digest, opened(path, 3, 1).digest, opened(path, 4).digest}) == 3
    left_out = next(index for index in range(6) if index not in chosen.choice.indices)
    for index, differs in ((left_out, False), (chosen.choice.indices[1], True)):
        changed = array.copy()
        changed[index, 0, 0, 0] += 1
        assert (opened(save(tmp_path / "c.npy", x=changed), 3).digest != chosen.digest) == differs
