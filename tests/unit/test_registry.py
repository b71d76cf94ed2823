"""One door for backends, families, targets and sources."""

from __future__ import annotations

import pytest

from deploykit import registry
from deploykit.errors import InternalError, UsageError
from deploykit.export.target import GROUP as TARGETS
from deploykit.export.target import Target, get_target, target_names
from deploykit.models.family import Family, family_of
from deploykit.runtime.backends.base import Backend, backend_names, get_backend


def test_what_ships_is_registered_like_everybody_elses() -> None:
    assert target_names() == ("openvino", "ort", "trt", "trt-graph", "trt-rtx")
    assert backend_names() == ("emulator", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch")
    assert isinstance(get_target("ort"), Target)
    assert isinstance(get_backend("openvino"), Backend)
    assert isinstance(family_of("nothing that is known"), Family)


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'abacus' is not registered in deploykit\.targets; there are: openvino, ort"):
        get_target("abacus")


def test_something_of_another_kind_is_our_bug() -> None:
    with pytest.raises(InternalError, match=r"'ort' in deploykit\.targets is a Target, not a Family"):
        registry.load(TARGETS, "ort", Family)
