"""From cells to a plan: what is refused, what is shared, and what needs images."""

from __future__ import annotations

import pytest

from deploykit import ExportOptions
from deploykit.errors import UnsupportedError, UsageError
from deploykit.export import plan
from deploykit.export.stage import Plan
from deploykit.workflow.export import prepare

ALL = ("fp32", "fp16", "bf16", "int8", "int8-weights")


def planned(*cells: str) -> Plan:
    made = prepare("tiny-dinov2", ExportOptions(cells=cells, verify=False, bench=False)).plan
    made.check()
    return made


def test_a_precision_that_a_target_refuses_is_told_with_the_one_that_takes_it() -> None:
    with pytest.raises(UnsupportedError, match="no bf16 for ONNX Runtime: its processor kernels") as caught:
        planned("fp32:ort", "bf16:ort")
    others = ["openvino", "trt", "trt-graph", "trt-rtx"]
    assert [hint.action for hint in caught.value.hints] == [f"--cell bf16:{name}" for name in others]


def test_an_unknown_precision_is_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=f"unknown precision 'int4'; there are: {', '.join(plan.PRECISIONS)}"):
        planned("int4:ort")


def test_all_precisions_go_into_one_plan_and_share_what_they_can() -> None:
    assert {*ALL, "fp8"} == set(plan.PRECISIONS), "fp8 is TensorRT's alone"
    made = planned(*(f"{precision}:openvino" for precision in ALL))
    stages = [node.stage.name for node in made.nodes]
    assert (stages.count("trace"), stages.count("ranges"), stages.count("store")) == (
        1,
        2,
        2,
    )  # smoothed, ranges are others
    assert stages.count("package-openvino") == len(ALL)


def test_two_targets_share_stored_weights() -> None:
    made = planned("int8-weights:ort", "int8-weights:openvino")
    assert [node.id for node in made.nodes if node.stage.name == "store"] == ["store-int8-weights"]


@pytest.mark.parametrize("cell", ["int8-weights:ort", "int8-weights:openvino", "bf16:openvino"])
def test_stored_weights_need_no_images(cell: str) -> None:
    assert not {plan.CALIBRATION, plan.RANGES} & {node.id for node in planned(cell).nodes}
