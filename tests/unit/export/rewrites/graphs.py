"""Small graphs made by hand, and one way to rewrite them that checks what holds for every rewrite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper as make
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from deploykit.export.rewrite import get_rewrite
from deploykit.export.rewrites.editing import Rewritten

Array = NDArray[Any]
Shape = Sequence[int | str]

#: What an exact rewrite may cost: float32 rounds in another order.
ROUNDING = 2e-6
#: Size that open dimensions are run with: neither that of traced graphs nor the one that layouts are followed with.
ROWS = 3
ERRORS_ONLY = 3


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Make a node from comma-separated names."""
    return make.make_node(operator, inputs.split(","), output.split(","), **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, Array],
    opset: int = 20,
    known: Mapping[str, Shape] | None = None,
) -> onnx.ModelProto:
    """Make a float32 model.

    Args:
        nodes: In order.
        inputs: To their shapes; open dimensions by name. A weight that is an input too can be fed.
        outputs: Names.
        weights: Constants; those that no node uses are left out.
        opset: Of ONNX's own domain.
        known: Shapes that exporters note where inference doesn't find them; all others are inferred.
    """
    fed = [make.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    given = [make.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    used = {name for given in nodes for name in given.input}
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items() if name in used]
    noted = [make.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (known or {}).items()]
    built = make.make_graph(list(nodes), "g", fed, given, constants, value_info=noted)
    model = make.make_model(built, opset_imports=[make.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def random(seed: int, *shape: int) -> NDArray[np.float32]:
    """Return standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def run(model: onnx.ModelProto) -> dict[str, Array]:
    """Run a model on seeded inputs as it is written: ONNX Runtime's own rewrites are off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = {}
    for seed, value in enumerate(session.get_inputs()):
        feeds[value.name] = random(seed, *(dim if isinstance(dim, int) else ROWS for dim in value.shape))
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def apply(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, Rewritten]:
    """Rewrite a copy."""
    changed = ir.from_proto(model)
    done = get_rewrite(name).apply(changed)
    return ir.to_proto(changed), done


def rewrite(model: onnx.ModelProto, name: str, tolerance: float = ROUNDING) -> tuple[onnx.ModelProto, Rewritten]:
    """Rewrite a copy, and check that it is sound, computes the same, keeps its names, and is not rewritten twice.

    Args:
        model: Stays as it is.
        name: Of the rewrite.
        tolerance: Largest difference of any tensor that is still there, as a share of its largest value.
    """
    after, done = apply(model, name)
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for value in after.graph.output] == [value.name for value in model.graph.output]
    assert [value.name for value in after.graph.input] == [value.name for value in model.graph.input]
    expected, found = run(model), run(after)
    for key, array in expected.items():
        assert array.shape == found[key].shape
        assert np.abs(array - found[key]).max() <= tolerance * np.abs(array).max()
    _check_names(model, after, done, tolerance)
    assert apply(after, name)[1].places == 0
    assert bool(done.places) == (ir.to_proto(ir.from_proto(model)) != after)
    return after, done


def _check_names(model: onnx.ModelProto, after: onnx.ModelProto, done: Rewritten, tolerance: float) -> None:
    """Check that a tensor that kept its name kept its values, and that it is known where the others come from."""
    before = {output for given in model.graph.node for output in given.output}
    there = {output for given in after.graph.node for output in given.output}
    assert all(new in done.renames for new in there - before)
    assert set(done.renames.values()) <= before | {value.name for value in model.graph.input}
    weights = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    kept = [tensor for tensor in after.graph.initializer if tensor.name in weights]
    assert all(weights[tensor.name] == tensor.SerializeToString() for tensor in kept)
    everything = run(_exposed(model, before & there))
    for name, array in run(_exposed(after, before & there)).items():
        assert array.shape == everything[name].shape
        assert np.abs(array - everything[name]).max() <= tolerance * np.abs(everything[name]).max()


def _exposed(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return a copy that gives out the float32 tensors called `names` too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in model.graph.output}
    for value in model.graph.value_info:
        if value.name in names - given and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            copy.graph.output.append(value)
    return copy


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the nodes by operator."""
    return Counter(given.op_type for given in model.graph.node)


def weight(model: onnx.ModelProto, name: str) -> Array:
    """Return an initializer."""
    found: Array = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))
    return found
