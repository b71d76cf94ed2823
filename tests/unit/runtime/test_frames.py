from __future__ import annotations

import io
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.errors import BadInputError, BakedAxisError, DeploykitError, Hint, InternalError, ResourceError
from deploykit.runtime.backends.base import Tensor
from deploykit.runtime.frames import exception_of, failure_of, receive, send

ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u2", "?")]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=3), st.text())
def test_frames_arrive_as_they_were_sent(arrays: dict[str, Tensor], text: str) -> None:
    pipe = io.BytesIO()
    send(pipe, {"op": text}, arrays)
    send(pipe, {}, {})
    pipe.seek(0)
    header, found = receive(pipe)
    assert header == {"op": text}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert receive(pipe) == ({}, {})


@given(st.integers(min_value=0))
def test_a_cut_frame_is_an_end(share: int) -> None:
    pipe = io.BytesIO()
    send(pipe, {"op": "x"}, {"a": np.arange(6.0)})
    data = pipe.getvalue()
    with pytest.raises(EOFError):
        receive(io.BytesIO(data[: share % len(data)]))


def raw(header: object, values: bytes = b"") -> io.BytesIO:
    text = json.dumps(header).encode()
    return io.BytesIO(struct.pack("<I", len(text)) + text + values)


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        (io.BytesIO(b"\xff\xff\xff\xff"), "header of 4294967295 bytes"),
        (io.BytesIO(b"\x02\x00\x00\x00{]"), "not JSON"),
        (raw([1]), "is a list"),
        (raw({}), "expected a list"),
        (raw({"arrays": [{"name": "a", "dtype": "object", "shape": [1]}]}), "can't be"),
        (raw({"arrays": [{"name": "a", "dtype": "float32", "shape": [-1]}]}), "can't be"),
        (raw({"arrays": [{"name": "a", "dtype": "float32", "shape": [1 << 40]}]}), "array of 4398046511104 bytes"),
        (raw({"arrays": [{"name": "a", "dtype": "float32", "shape": [1] * 70}]}, bytes(4)), "can't be"),
        (io.BytesIO(struct.pack("<I", 200_000) + b"[" * 200_000), "not JSON"),
        (raw({"arrays": [{"name": "a", "dtype": "float32"}]}), "'shape' of _Layout is missing"),
    ],
)
def test_frames_that_cannot_be_ours(pipe: io.BytesIO, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        receive(pipe)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BakedAxisError("b"), BakedAxisError), (MemoryError(), ResourceError), (KeyError("k"), InternalError)],
)
def test_exceptions_keep_their_class(error: Exception, kind: type[DeploykitError]) -> None:
    assert type(exception_of(failure_of(error), "m.onnx")) is kind


def test_hints_travel() -> None:
    found = exception_of(failure_of(BadInputError("what", Hint("do", "good"), Hint("or this"))), "m.onnx")
    assert (found.message, found.hints) == ("what", (Hint("do", "good"), Hint("or this")))


def test_an_array_takes_memory_as_it_comes() -> None:
    """Of 16 GB that are claimed 8 bytes come; of what comes in several blocks nothing is lost."""
    claimed = raw({"arrays": [{"name": "a", "dtype": "uint8", "shape": [1 << 34]}]})
    tracemalloc.start()
    with pytest.raises(EOFError):
        receive(io.BytesIO(claimed.getvalue() + bytes(8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 28
    whole = np.arange((1 << 26) + 5, dtype=np.uint32)
    pipe = io.BytesIO()
    send(pipe, {}, {"a": whole})
    pipe.seek(0)
    assert np.array_equal(receive(pipe)[1]["a"], whole)
