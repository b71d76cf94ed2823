"""Preflight: what TensorRT would refuse or misread is found at once, with module and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.unit.export.cast_support import Array, model, node

from deploykit.errors import UnsupportedError
from deploykit.export.engines.tensorrt_build import BuildOptions, build, refusals
from deploykit.export.preflight import SHOWN, Demands, Finding, Refusal, check, require
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends.tensorrt_library import RTX

needs_rtx = pytest.mark.skipif(
    COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here"
)
DEMANDS = Demands("TensorRT", 24, (80, 89))
KERNEL = np.ones((2, 4, 1, 1), np.float32)
MODULES = {"q": "blocks.0.quant", "y": "head"}


def found(made: onnx.ModelProto, demands: Demands = DEMANDS) -> list[tuple[str, str]]:
    return [(finding.rule, finding.where) for finding in check(made, MODULES, demands)]


def rounded(zero: Any) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x,s,z", "q", name="q1"),
        node("DequantizeLinear", "q,s,z", "d", name="d1"),
        node("Conv", "d,k", "y", name="c1"),
    ]
    return model(nodes, {"s": np.asarray(0.1, np.float32), "z": zero, "k": KERNEL}, (1, 4, 8, 8), opset=21)


def test_a_sound_graph_has_no_findings() -> None:
    assert found(rounded(np.int8(0))) == []
    require((), "TensorRT")


@pytest.mark.parametrize(
    ("zero", "rule"),
    [(np.uint8(0), "uint8"), (np.uint8(7), "uint8"), (np.int8(3), "zero-point"), (np.int16(0), "int16")],
)
def test_grids_that_are_refused_or_misread_are_found_at_both_ends(zero: Any, rule: str) -> None:
    assert found(rounded(zero)) == [(rule, "QuantizeLinear 'q1'"), (rule, "DequantizeLinear 'd1'")]
    (first, _) = check(rounded(zero), MODULES, DEMANDS)
    assert "of module 'blocks.0.quant'" in first.text


def test_without_a_zero_point_codes_are_uint8() -> None:
    nodes = [node("QuantizeLinear", "x,s", "q"), node("DequantizeLinear", "q,s", "y")]
    made = model(nodes, {"s": np.asarray(0.1, np.float32)}, (1, 4, 8, 8))
    assert [rule for rule, _ in found(made)] == ["uint8", "uint8"]


def test_an_integer_bias_is_found() -> None:
    nodes = [node("DequantizeLinear", "b,s", "bias", name="b1"), node("Conv", "x,k,bias", "y")]
    weights = {"b": np.zeros(2, np.int32), "s": np.asarray(0.1, np.float32), "k": KERNEL}
    assert found(model(nodes, weights, (1, 4, 8, 8))) == [("int32", "DequantizeLinear 'b1'")]


def test_an_opset_beyond_what_is_known_is_found() -> None:
    made = model([node("Relu", "x", "y")], {}, (1, 4, 8, 8), opset=21)
    assert found(made, replace(DEMANDS, opset=20)) == [("opset", "opset 21")]
    assert found(made, replace(DEMANDS, opset=21)) == []


def test_an_open_axis_without_a_range_is_found() -> None:
    made = model([node("Relu", "x", "y")], {}, ("batch", 4, "height", 8))
    demands = replace(DEMANDS, axes=frozenset({"batch"}))
    assert found(made, demands) == [("axis", "axis 'height' of 'x'")]


@pytest.mark.parametrize(("kind", "capabilities", "is_found"), [
    (onnx.TensorProto.BFLOAT16, (75, 89), True),
    (onnx.TensorProto.BFLOAT16, (80,), False),
    (onnx.TensorProto.FLOAT8E4M3FN, (86, 120), True),
    (onnx.TensorProto.FLOAT8E4M3FN, (89,), False),
    (onnx.TensorProto.FLOAT16, (75,), False),
    (onnx.TensorProto.BFLOAT16, (), False),
])  # fmt: skip
def test_types_that_an_architecture_lacks_are_found_once(
    kind: int, capabilities: tuple[int, ...], is_found: bool
) -> None:
    nodes = [node("Cast", "x", "a", to=kind), node("Cast", "a", "b", to=1), node("Cast", "b", "c", to=kind)]
    made = model([*nodes, node("Cast", "c", "y", to=1)], {}, (1, 4, 8, 8))
    assert [rule for rule, _ in found(made, replace(DEMANDS, capabilities=capabilities))] == ["type"] * is_found


def test_float_products_on_turing_are_found_each(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x,w", "a", name="one"), node("MatMul", "a,w", "y", name="two")]
    made = model(nodes, {"w": np.eye(8, dtype=np.float32)}, (1, 8, 8))
    turing = replace(DEMANDS, capabilities=(75,))
    assert found(made, turing) == [("float-product", "MatMul 'one'"), ("float-product", "MatMul 'two'")]
    assert found(made) == []


def test_an_operator_without_a_kernel_for_its_type_is_found() -> None:
    made = model([node("Relu", "x", "y", name="r")], {}, (1, 8, 8))
    demands = replace(DEMANDS, without_kernels=frozenset({("Relu", "FLOAT")}))
    assert found(made, demands) == [("kernel", "Relu 'r'")]


def test_what_the_parser_says_is_told_once_and_with_the_module() -> None:
    made = rounded(np.uint8(7))
    demands = replace(DEMANDS, refusals=(Refusal(0, "Non-zero zero point"), Refusal(2, "")))
    assert found(made, demands)[-1] == ("parser", "Conv 'c1'")
    assert len(found(made, demands)) == 3
    last = check(made, MODULES, demands)[-1]
    assert last.text == "Conv 'c1' of module 'head': TensorRT has no such operator"


def test_all_findings_are_told_at_once_each_remedy_once() -> None:
    nodes: list[onnx.NodeProto] = []
    for index in range(SHOWN + 5):
        nodes += [
            node("QuantizeLinear", f"{'x' if index == 0 else f'd{index - 1}'},s,z", f"q{index}", name=f"q{index}")
        ]
        nodes += [node("DequantizeLinear", f"q{index},s,z8", f"d{index}", name=f"d{index}")]
    made = model(
        [*nodes, node("Relu", f"d{SHOWN + 4}", "y")],
        {"s": np.ones((), np.float32), "z": np.zeros((), np.uint8), "z8": np.zeros((), np.uint8)},
        (1, 8),
    )
    findings = check(made, {}, DEMANDS)
    with pytest.raises(UnsupportedError) as caught:
        require(findings, "TensorRT")
    assert caught.value.exit_code == 8
    lines = caught.value.message.splitlines()
    assert lines[0] == f"{len(findings)} things in the graph TensorRT can't build:"
    assert lines[-1] == f"  and {len(findings) - SHOWN} more"
    assert len(lines) == SHOWN + 2
    assert [hint.action for hint in caught.value.hints] == ["deploykit export MODEL --int8 --trt-rtx"]


def graph(folder: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], opset: int = 21) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model(nodes, weights, (1, 4, 8, 8), opset=opset).SerializeToString())
    return path


@needs_rtx
def test_the_real_parser_names_every_node_that_it_refuses(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Det", "a", "d", name="first"),
        node("Unique", "a", "u", name="second"),
        node("Relu", "a", "y"),
    ]
    path = graph(tmp_path, nodes, {})
    assert refusals(RTX, path) == (Refusal(1, ""), Refusal(2, ""))
    made = onnx.load(path)
    (one, two) = check(made, {"d": "blocks.7"}, replace(DEMANDS, refusals=refusals(RTX, path)))
    assert one.text == "Det 'first' of module 'blocks.7': TensorRT has no such operator"
    assert isinstance(two, Finding)


@needs_rtx
def test_the_real_parser_has_nothing_against_a_sound_graph(tmp_path: Path) -> None:
    nodes = [node("Conv", "x,k", "c"), node("Gelu", "c", "y")]
    path = graph(tmp_path, nodes, {"k": np.random.default_rng(0).standard_normal((64, 4, 3, 3)).astype(np.float32)})
    assert refusals(RTX, path) == ()
    made = onnx.load(path)
    onnx.save(made, tmp_path / "apart.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert refusals(RTX, tmp_path / "apart.onnx") == ()


@needs_rtx
@pytest.mark.parametrize("zero", [np.int8(3), np.int16(0)])
def test_the_rules_find_what_the_real_library_refuses(tmp_path: Path, zero: Any) -> None:
    from deploykit.artifact import TensorSpec

    path = tmp_path / "net.onnx"
    path.write_bytes(rounded(zero).SerializeToString())
    with pytest.raises(UnsupportedError):
        build(RTX, path, BuildOptions((TensorSpec("x", "float32", (1, 4, 8, 8)),), (89,)))
    assert check(onnx.load(path), {}, DEMANDS)
