"""What a request says of GPUs and of ranges of axes, and what is refused of it before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deploykit.artifact import Axis
from deploykit.errors import UnsupportedError, UsageError
from deploykit.export import cast, plan, ranges
from deploykit.export.calibrate import CalibrationRequest
from deploykit.export.plan import axes_of, capabilities_of, check_request, ranges_of
from deploykit.export.request import Cell, ImagesRequest, Request
from deploykit.export.target import get_target
from deploykit.models.family import get_family
from deploykit.models.original import Original
from deploykit.models.sources import resolve

FP16, FP32 = Cell("fp16", "trt-rtx"), Cell("fp32", "trt-rtx")
REQUEST = Request((FP16,), 1, ("batch",), ImagesRequest("rendered:calib", "0" * 64, 4), None)


@pytest.fixture(scope="module")
def original() -> Original:
    return resolve("tiny-convnext")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profiles": {"batch": ((1, 8, 32),)}, "dynamic": ()}, "--profile batch=1,8,32: the axis is not open"),
        ({"profiles": {"width": ((1, 8, 32),)}}, "--profile width=1,8,32: the axis is not open"),
        ({"profiles": {"batch": ((1, 8, 300),)}}, "takes batch 1 to 256 in steps of 1"),
        ({"profiles": {"batch": ((8, 4, 16),)}}, "takes batch 1 to 256"),
        ({"profiles": {"batch": ((0, 4, 16),)}}, "takes batch 1 to 256"),
        ({"profiles": {"batch": ((4, 8, 16),)}}, "judged at 1 and 2 too"),
        ({"profiles": {"batch": ((1, 1, 1),)}}, "judged at 1 and 2 too"),
        (
            {"profiles": {"batch": ((1, 1, 1), (4, 8, 32))}},
            "batch=4,8,32: batch 2 to 3 would be in neither",
        ),
        (
            {"profiles": {"batch": ((2, 8, 32), (2, 4, 8))}},
            "batch=2,8,32 --profile batch=2,4,8: artifacts are judged at 1",
        ),
        ({"profiles": {"batch": ((1, 1, 1), (2, 8, 300))}}, "--profile batch=2,8,300: .* takes batch 1 to 256"),
        ({"profiles": {"batch": ((1, 8, 32),)}, "cells": (Cell("fp32", "ort"),)}, "no target of this export is tuned"),
        ({"capabilities": (86,), "cells": (Cell("fp32", "ort"),)}, "--sm 86: no target of this export"),
    ],
)
def test_what_makes_no_sense_is_refused(original: Original, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_request(original, replace(REQUEST, **change))


def test_gpus_that_do_not_run_a_precision_are_refused() -> None:
    target = get_target("trt-rtx")
    wanted = replace(REQUEST, capabilities=(75, 86))
    assert capabilities_of(FP16, wanted, target) == (75, 86)
    with pytest.raises(UnsupportedError, match=r"builds no fp32 for SM 75; it does for SM 80,86,89,120,121"):
        capabilities_of(FP32, wanted, target)
    with pytest.raises(UnsupportedError, match="builds no bf16 for SM 75"):
        capabilities_of(Cell("bf16", "trt-rtx"), wanted, target)
    with pytest.raises(UnsupportedError, match=r"builds no fp8 for SM 86; it does for SM 89,120,121"):
        capabilities_of(Cell("fp8", "trt-rtx"), replace(REQUEST, capabilities=(86, 89)), target)
    with pytest.raises(UnsupportedError, match="builds no fp16 for SM 90"):
        capabilities_of(FP16, replace(REQUEST, capabilities=(90,)), target)


def test_all_that_can_run_it_is_built_for_where_nothing_is_named() -> None:
    target = get_target("trt-rtx")
    assert capabilities_of(FP16, REQUEST, target) == (75, 80, 86, 89, 120, 121)
    assert capabilities_of(FP32, REQUEST, target) == (80, 86, 89, 120, 121)
    assert capabilities_of(Cell("bf16", "trt-rtx"), REQUEST, target) == (80, 86, 89, 120, 121)
    assert capabilities_of(Cell("fp8", "trt-rtx"), REQUEST, target) == (89, 120, 121)
    assert capabilities_of(Cell("fp32", "ort"), replace(REQUEST, capabilities=(86,)), get_target("ort")) == ()


def test_a_profile_bounds_what_is_built_for_it_alone(original: Original) -> None:
    request = replace(REQUEST, profiles={"batch": ((1, 8, 32),)})
    assert axes_of(original, request, get_target("trt-rtx")) == {"batch": Axis("batch", 1, 8, 32)}
    assert axes_of(original, request, get_target("ort")) == {"batch": Axis("batch", 1, 1, 256)}
    assert axes_of(original, replace(REQUEST, dynamic=()), get_target("trt-rtx")) == {}


def test_an_axis_of_several_parts_is_open_from_the_least_to_the_largest_of_all(original: Original) -> None:
    family, request = get_family("convnext"), replace(REQUEST, profiles={"batch": ((2, 8, 32), (1, 1, 1))})
    parts = {"batch": (Axis("batch", 2, 8, 32), Axis("batch", 1, 1, 1))}
    assert axes_of(original, request, get_target("trt-rtx")) == {"batch": Axis("batch", 1, 8, 32)}
    assert ranges_of(family, request, get_target("trt-rtx")) == parts
    assert ranges_of(family, request, get_target("ort")) == {}
    assert ranges_of(family, replace(REQUEST, profiles={"batch": ((1, 8, 32),)}), get_target("trt-rtx")) == {}


def test_what_stays_float_of_int8_is_cast_where_the_target_says_so(original: Original) -> None:
    setting = plan.Setting(original, get_family("convnext"), REQUEST, "rewrite")
    nodes = {
        name: plan.PRECISIONS["int8"](setting, Cell("int8", name), get_target(name)) for name in ("ort", "trt-rtx")
    }
    quantized = plan.quantize_id(Cell("int8", "trt-rtx"))
    assert nodes["ort"].graph == plan.quantize_id(Cell("int8", "ort"))
    assert nodes["trt-rtx"].graph == f"cast-{quantized}"
    assert nodes["trt-rtx"].nodes[-1].inputs == {"graph": quantized, "ranges": "ranges"}


def test_bfloat16_is_computed_in_where_the_graph_decides_and_stored_where_the_run_does(original: Original) -> None:
    setting = plan.Setting(original, get_family("convnext"), REQUEST, "rewrite")
    last = {
        name: plan.PRECISIONS["bf16"](setting, Cell("bf16", name), get_target(name)).nodes[-1]
        for name in ("openvino", "trt-rtx", "trt-graph")
    }
    assert {name: node.stage.name for name, node in last.items()} == {
        "openvino": "store",
        "trt-rtx": "cast",
        "trt-graph": "cast",
    }
    assert last["trt-rtx"].options == last["trt-graph"].options
    assert isinstance(options := last["trt-rtx"].options, cast.CastOptions)
    assert "HardSwish" in options.without


def test_fp8_is_calibrated_like_int8_and_not_smoothed() -> None:
    dinov2 = resolve("tiny-dinov2")
    table = ranges.TableOptions("ranges.json", "0" * 64)
    cells = (Cell("int8", "trt-rtx"), Cell("fp8", "trt-rtx"))
    images = CalibrationRequest("rendered:calib", "0" * 64, 300, 0, False, 300)
    made = plan.make_plan(dinov2, replace(REQUEST, cells=cells, calibration=images), 4)
    nodes = {node.id: node for node in made.nodes}
    int8, fp8 = (nodes[plan.quantize_id(cell)] for cell in cells)
    assert int8.inputs == {"graph": "smooth-trt-rtx", "ranges": "ranges-trt-rtx"}
    assert fp8.inputs == {"graph": plan.hub_of(made), "ranges": plan.RANGES}
    with pytest.raises(UsageError, match="fp8 needs images"):
        check_request(dinov2, replace(REQUEST, cells=cells[1:]))
    check_request(dinov2, replace(REQUEST, cells=cells[1:], table=table))
    with pytest.raises(UnsupportedError, match="no fp8 for ONNX Runtime") as caught:
        check_request(dinov2, replace(REQUEST, cells=(Cell("fp8", "ort"),), table=table))
    assert "--cell fp8:trt-rtx" in [hint.action for hint in caught.value.hints]
