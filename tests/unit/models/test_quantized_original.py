"""An original that is a graph in 8 bits stands for what its Q/DQ say, on every processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tests.cases.nets import Bright

from deploykit.export.own_run import open_graph
from deploykit.models import sources
from deploykit.models.original import SourceOptions
from deploykit.runtime import drift, processors
from deploykit.runtime.backends.base import get_backend

Array = NDArray[Any]
IMAGES = np.random.default_rng(0).uniform(0.0, 1.0, (3, 1, 3, 32, 32)).astype(np.float32)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """What the quantizer measures on."""

    def __init__(self) -> None:
        self.rows = iter(IMAGES)

    def get_next(self) -> dict[str, Array] | None:
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def bright(path: Path) -> Path:
    """Write the network as float32 ONNX."""
    net = Bright()
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    nodes = [
        make.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], strides=[4, 4]),
        make.make_node("Relu", ["a"], ["ar"]),
        make.make_node("Conv", ["ar", "b.weight", "b.bias"], ["b"]),
        make.make_node("Relu", ["b"], ["br"]),
        make.make_node("GlobalAveragePool", ["br"], ["pooled"]),
        make.make_node("Flatten", ["pooled"], ["flat"]),
        make.make_node("Gemm", ["flat", "h.weight", "h.bias"], ["y"], transB=1),
    ]
    graph = make.make_graph(
        nodes,
        "bright",
        [make.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32))],
        [make.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 19)], ir_version=9), path)
    return path


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=["s8s8", "u8s8"])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["QDQ", "QOperator"])
@pytest.mark.filterwarnings("ignore")
def test_its_answers_are_those_of_numpy(form: QuantFormat, kind: QuantType, tmp_path: Path) -> None:
    made = tmp_path / "q.onnx"
    quantize_static(
        bright(tmp_path / "bright.onnx"),
        made,
        Images(),
        quant_format=form,
        activation_type=kind,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
    )
    numpy_answers = ReferenceEvaluator(onnx.load(made))
    expected = np.concatenate([numpy_answers.run(None, {"x": row})[0] for row in IMAGES])
    original = sources.resolve(str(made), SourceOptions())
    with sources.open_original(original) as session, open_graph(made) as graph:
        found, measured = (np.concatenate([one.infer({"x": row})["y"] for row in IMAGES]) for one in (session, graph))
    assert np.array_equal(found, measured)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    model, usual = original.usual
    with get_backend(usual.backend).open(model, usual) as session:
        stock = np.concatenate([session.infer({"x": row})["y"] for row in IMAGES])
    saturates = processors.here().saturates and not (form is QuantFormat.QOperator and kind is QuantType.QInt8)
    assert (drift.sqnr_db(found, stock) < 20.0) == saturates
