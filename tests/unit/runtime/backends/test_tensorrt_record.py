"""What lies beside an engine, read without a library or a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import BadInputError, UsageError
from deploykit.runtime.backends.tensorrt_library import FLAVOURS, NATIVE, RTX, Flavour
from deploykit.runtime.backends.tensorrt_record import record_of

from .test_tensorrt import write


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_engine_is_told_by_its_name_and_tells_its_record(tmp_path: Path, flavour: Flavour) -> None:
    record = record_of(write(tmp_path, flavour))
    assert record is not None
    assert (record.flavour, record.metadata) == (flavour.module, {"deploykit.precision": "fp16"})


@pytest.mark.parametrize("name", ["net.onnx", "net.openvino.xml", "net.json"])
def test_what_is_called_like_no_engine_has_no_record(tmp_path: Path, name: str) -> None:
    assert record_of(tmp_path / name) is None


def test_engines_that_are_missing_changed_or_misnamed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is missing"):
        record_of(tmp_path / "net.trt-rtx.engine")
    path = write(tmp_path)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(BadInputError, match="it was cut or changed"):
        record_of(path)
    other = write(tmp_path, RTX).rename(tmp_path / f"net{NATIVE.suffixes[0]}")
    with pytest.raises(UsageError, match="is an engine of TensorRT for RTX"):
        record_of(other)
