"""What files claim is compared with what they hold, before memory is taken."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploykit.arrays import UNPACKED_LEAST, Header
from deploykit.bundle import load_tensors
from deploykit.errors import BadInputError


def _npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def _npz(path: Path, member: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", member)
    return path


@pytest.mark.parametrize(
    "member",
    [
        _npy((1 << 40,)),
        _npy((1 << 62, 1 << 62)),
        _npy((3,), data=bytes(8)),
        _npy((1,), data=bytes(8)),
        _npy((-1,), data=bytes(4)),
        _npy((1 << 40,), "|V0"),
        _npy((1,), "|O", bytes(8)),
        b"\x93NUMPY\x03\x00" + bytes(8),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f",
    ],
    ids=["terabytes", "overflow", "short", "long", "negative", "of nothing", "objects", "records", "long header"],
)
def test_a_header_that_claims_other_than_there_is_is_refused(tmp_path: Path, member: bytes) -> None:
    with pytest.raises(BadInputError, match=r"x\.npz is no safe \.npz: .+") as caught:
        load_tensors(_npz(tmp_path / "x.npz", member))
    assert "\n" not in caught.value.message


def test_what_would_unpack_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    many = UNPACKED_LEAST // 4
    path = _npz(tmp_path / "bomb.npz", _npy((many,), data=bytes(4 * many)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BadInputError, match=r"would unpack to 268,\d+,\d+ bytes; at most 268,435,456 are read"):
        load_tensors(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2], ids=["lzma", "bzip2"])
def test_members_packed_by_other_methods_are_refused(tmp_path: Path, method: int) -> None:
    path = _npz(tmp_path / "x.npz", _npy((2,), data=bytes(8)), method)
    with pytest.raises(BadInputError, match=r"'x\.npy' in it is packed by another method than deflate"):
        load_tensors(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    for name, told in (
        ("pipe.npz", "is no regular file"),
        ("loop.npz", "can't be read: Too many levels of symbolic links"),
        (f"{'n' * 300}.npz", "can't be read: File name too long"),
        (".", "is a folder"),
    ):
        with pytest.raises(BadInputError, match=told):
            load_tensors(tmp_path / name)


@given(
    array=arrays.arrays(
        st.sampled_from(["<f4", ">f8", "|u1", "?", "<i8", "<c8"]), arrays.array_shapes(min_dims=0, min_side=0)
    ),
    order=st.sampled_from("CF"),
)
def test_an_array_is_read_as_numpy_reads_it(array: np.ndarray, order: str) -> None:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, order="F" if order == "F" else "C"))
    found = Header.read(io.BytesIO(stream.getvalue())).array(stream.getvalue())
    wanted = np.load(io.BytesIO(stream.getvalue()))
    assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
