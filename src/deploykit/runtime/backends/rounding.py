"""Write into an ONNX graph where a half runtime rounds: half becomes float32 tensors that hold what half can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

#: Operators that make no new values: what they take is rounded already.
EXACT: Final = frozenset(
    {
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Gather", "GatherND"),
        *("GatherElements", "Expand", "Identity", "Pad", "Tile", "DepthToSpace", "SpaceToDepth", "Relu", "Max", "Min"),
        *("MaxPool", "GlobalMaxPool", "Neg", "Abs", "Where", "ReduceMax", "ReduceMin", "Dropout", "Constant", "TopK"),
        *("ConstantOfShape", "ScatterND", "ScatterElements", "Floor", "Ceil", "Sign"),
    }
)
#: Normalizations that say in which type they compute.
STASHED: Final = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})
#: Since this opset GroupNormalization says so too.
STASHED_GROUP_OPSET: Final = 21
#: Axes are an input since: of ReduceSum, and of all other reductions.
SUM_AXES_OPSET: Final = 13
AXES_OPSET: Final = 18
#: Operators that take squares within, and for which there are no steps here.
REFUSED: Final = frozenset({"LpNormalization", "MeanVarianceNormalization", "LRN", "LpPool", "GlobalLpPool"})


@dataclass(frozen=True)
class Types:
    """ONNX's element types of a graph's tensors.

    Attributes:
        known: Names of the tensors whose type is known.
        halves: Of the float16 and bfloat16 tensors, by name.
    """

    known: frozenset[str]
    halves: Mapping[str, int]


def types_of(model: onnx.ModelProto) -> Types:
    """Infer the types of a graph's tensors."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        types |= {name: kind for name, kind in _by_schema(node, types, _opset(model)).items() if name not in types}
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return Types(frozenset(types), {name: kind for name, kind in types.items() if kind in halves})


def _by_schema(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> dict[str, int]:
    """Return the types of outputs that share the type of an input; ONNX infers none where it finds no shape."""
    import onnx

    if all(name in types for name in node.output if name):
        return {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return {}
    formal = [(schema.inputs[min(i, len(schema.inputs) - 1)].type_str, name) for i, name in enumerate(node.input)]
    bound = {kind: types[name] for kind, name in formal if name in types}
    made = [(schema.outputs[min(i, len(schema.outputs) - 1)].type_str, name) for i, name in enumerate(node.output)]
    return {name: bound[kind] for kind, name in made if kind in bound}


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def write_roundings(model: onnx.ModelProto, types: Types, path: str) -> None:
    """Let a half graph compute in float32, and round what its operators make, in place.

    Args:
        model: Weights may lie apart; they stay as they are and become float32 as the graph runs.
        types: Of the same model.
        path: For messages.

    Raises:
        UnsupportedError: It holds a node whose steps in half are not known.
    """
    _Rounder(model, types, path).run()


class _Rounder:
    """Writes one graph anew.

    A half tensor is a float32 tensor of its own name; where that name must stay half, for an input, a weight or an output, its
    name ends in ".float32".
    """

    def __init__(self, model: onnx.ModelProto, types: Types, path: str) -> None:
        self._graph = model.graph
        self._types = types
        self._halves = types.halves
        self._path = path
        self._opset = _opset(model)
        fixed = (*self._graph.input, *self._graph.output, *self._graph.initializer)
        self._fixed = {value.name for value in fixed}
        self._nodes: list[onnx.NodeProto] = []
        self._kind = 0
        self._count = 0

    def run(self) -> None:
        import onnx

        graph = self._graph
        given = dict.fromkeys([*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)])
        for name in given:
            if name in self._halves:
                self._add("Cast", [name], self._inner(name), to=onnx.TensorProto.FLOAT)
        for node in graph.node:
            self._rewrite(node)
        for value in graph.output:
            if value.name in self._halves and value.name not in given:
                self._add("Cast", [self._inner(value.name)], value.name, to=self._halves[value.name])
        del graph.node[:]
        del graph.value_info[:]
        graph.node.extend(self._nodes)

    def _rewrite(self, node: onnx.NodeProto) -> None:
        import onnx

        outputs = [name for name in node.output if name in self._halves]
        if not outputs and not any(name in self._halves for name in node.input):
            self._nodes.append(node)
            return
        if any(
            attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS} for attribute in node.attribute
        ):
            raise self._refusal(node, "holds graphs of its own")
        if node.domain not in {"", "ai.onnx"}:
            raise self._refusal(node, f"is an operator of {node.domain!r}: how it rounds is not known")
        unknown = [name for name in node.output if name and name not in self._types.known]
        if unknown:
            raise self._refusal(node, f"makes {unknown[0]!r}, whose type is not known")
        self._kind = self._halves[outputs[0]] if outputs else 0
        steps = self._steps(node) if outputs else None
        if steps is not None:
            steps(node)
            return
        self._once(node)

    def _steps(self, node: onnx.NodeProto) -> Callable[[onnx.NodeProto], None] | None:
        """Return what writes out the steps of an operator that takes squares in half; None where it needs no steps."""
        import onnx

        if node.op_type in {"ReduceL2", "ReduceSumSquare"}:
            return self._sum_of_squares
        if node.op_type in REFUSED:
            raise self._refusal(node, "takes squares within; how it rounds is not known")
        if node.op_type == "InstanceNormalization":
            return self._group_norm
        if node.op_type not in STASHED:
            return None
        if node.op_type == "GroupNormalization" and self._opset < STASHED_GROUP_OPSET:
            return self._group_norm
        if _attribute(node, "stash_type", onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
            raise self._refusal(node, "computes in half within; how it rounds is not known")
        return None

    def _once(self, node: onnx.NodeProto) -> None:
        """Add a node that computes in float32, and round what it makes."""
        import onnx

        made = onnx.NodeProto()
        made.CopyFrom(node)
        del made.input[:]
        made.input.extend(self._inner(name) for name in node.input)
        for attribute in made.attribute:
            if attribute.name in {"to", "dtype", "output_dtype"} and attribute.i in set(self._halves.values()):
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in set(self._halves.values()):
                values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
        self._nodes.append(made)
        for index, name in enumerate(node.output):
            if name not in self._halves:
                continue
            if node.op_type in EXACT:
                made.output[index] = self._inner(name)
            else:
                made.output[index] = self._name()
                self._round(made.output[index], self._inner(name), self._halves[name])

    def _sum_of_squares(self, node: onnx.NodeProto) -> None:
        """ReduceL2 and ReduceSumSquare: squares, their sum, its root, each rounded."""
        value = self._inner(node.input[0])
        squares = self._step("Mul", [value, value])
        kept: dict[str, Any] = {"keepdims": _attribute(node, "keepdims", 1)}
        axes = list(node.input[1:])
        given = next((list(entry.ints) for entry in node.attribute if entry.name == "axes"), None)
        if self._opset >= SUM_AXES_OPSET:
            kept["noop_with_empty_axes"] = _attribute(node, "noop_with_empty_axes", 0)
            axes += [] if given is None else [self._constant(given)]
        elif given is not None:
            kept["axes"] = given
        total = self._step("ReduceSum", [squares, *axes], **kept)
        self._give(self._step("Sqrt", [total]) if node.op_type == "ReduceL2" else total, node)

    def _group_norm(self, node: onnx.NodeProto) -> None:
        """InstanceNormalization, and GroupNormalization that doesn't say in which type it computes: each step rounded."""
        value, scale, bias = (self._inner(name) for name in node.input)
        groups = _attribute(node, "num_groups", 0)
        rows = self._plain("Reshape", [value, self._constant([0, groups, -1])])
        column = self._constant([-1, 1])
        difference = self._step("Sub", [rows, self._mean(rows)])
        variance = self._mean(self._step("Mul", [difference, difference]))
        shifted = self._step("Add", [variance, self._scalar(_epsilon(node))])
        normal = self._step("Div", [difference, self._step("Sqrt", [shifted])])
        scaled = self._step("Mul", [normal, self._plain("Reshape", [scale, column])])
        moved = self._step("Add", [scaled, self._plain("Reshape", [bias, column])])
        self._give(self._plain("Reshape", [moved, self._plain("Shape", [value])]), node)

    def _mean(self, rows: str) -> str:
        if self._opset < AXES_OPSET:
            return self._step("ReduceMean", [rows], axes=[-1], keepdims=1)
        return self._step("ReduceMean", [rows, self._constant([-1])], keepdims=1)

    def _step(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:  # noqa: ANN401 - protobuf's
        rounded = self._name()
        self._round(self._plain(operator, inputs, **attributes), rounded, self._kind)
        return rounded

    def _plain(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:  # noqa: ANN401
        name = self._name()
        self._add(operator, inputs, name, **attributes)
        return name

    def _give(self, name: str, node: onnx.NodeProto) -> None:
        self._add("Identity", [name], self._inner(node.output[0]))

    def _round(self, raw: str, rounded: str, kind: int) -> None:
        import onnx

        self._add("Cast", [self._plain("Cast", [raw], to=kind)], rounded, to=onnx.TensorProto.FLOAT)

    def _constant(self, values: Sequence[int]) -> str:
        import numpy as np
        import onnx

        name = self._name()
        self._graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def _scalar(self, value: float) -> str:
        """Return the name of a number that is rounded to half."""
        import onnx

        name, rounded = self._name(), self._name()
        self._graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
        self._round(name, rounded, self._kind)
        return rounded

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:  # noqa: ANN401
        import onnx

        self._nodes.append(onnx.helper.make_node(operator, list(inputs), [output], **attributes))

    def _inner(self, name: str) -> str:
        return f"{name}.float32" if name in self._halves and name in self._fixed else name

    def _name(self) -> str:
        self._count += 1
        return f"deploykit.rounding.{self._count}"

    def _refusal(self, node: onnx.NodeProto, why: str) -> UnsupportedError:
        return UnsupportedError(f"{self._path}: {node.op_type} {node.output[0]!r} can't be emulated in half: it {why}")


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _epsilon(node: onnx.NodeProto) -> float:
    return next((float(entry.f) for entry in node.attribute if entry.name == "epsilon"), 1e-5)
