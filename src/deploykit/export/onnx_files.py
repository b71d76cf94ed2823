"""What every stage does to ONNX files: read, save, clean, name axes, embed texts.

A graph that stages hand to one another lies in two files: `model.onnx`, a few hundred kilobytes of structure, and
`model.onnx.data`, the weights, which no stage needs to hold in memory and which may exceed the 2 GiB of a protobuf.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import BadInputError, InternalError, UnsupportedError

if TYPE_CHECKING:
    import onnx
    import onnx_ir


MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
MODULES = "modules.json"
PREFIX = "deploykit."
#: What an open dimension without a name is called.
UNNAMED = "?"
#: ONNX's inference loses the shape in this operator's body, and with it every one after it; it is that of the input.
GROUP_NORM = "GroupNormalization"
#: From this IR version on initializers need not be inputs too.
FREE_INITIALIZERS = 4
#: Tensors of fewer bytes stay in the graph's own file: shapes, axes and scalars, which shape inference reads.
INLINE_BELOW = 1024


def load(path: Path) -> onnx.ModelProto:
    """Read a model's structure. Weights that lie in a file beside it stay there.

    Raises:
        BadInputError: The file is no ONNX model.
    """
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own DecodeError, which has no public base
        raise BadInputError(f"{path} is no ONNX model: {str(error).splitlines()[0]}") from error


def load_whole(path: Path) -> onnx.ModelProto:
    """Read a model with all its weights.

    Raises:
        BadInputError: The file is no ONNX model, or its weights are missing.
    """
    import onnx

    model = load(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise BadInputError(f"{path}: its weights can't be read: {str(error).splitlines()[0]}") from error
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, the same bytes for the same model, and check it. Weights that it refers to must lie beside `path`.

    Raises:
        InternalError: The model breaks ONNX's own rules.
    """
    path.write_bytes(model.SerializeToString(deterministic=True))
    if broken := broken_rule(path):
        raise InternalError(f"the graph breaks ONNX's rules: {broken}")


def broken_rule(path: Path) -> str:
    """Return what ONNX's own checker has against the model at `path`; "" where that is nothing."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # noqa: BLE001 - its own, protobuf's, and those of texts that are no UTF-8
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return ""


def save_apart(model: onnx_ir.Model, folder: Path) -> onnx.ModelProto:
    """Write a model into `folder`, weights apart, tensor by tensor, and return its structure."""
    import onnx_ir

    onnx_ir.save(model, folder / MODEL, external_data=WEIGHTS, size_threshold_bytes=INLINE_BELOW)
    return load(folder / MODEL)


def write(model: onnx_ir.Model, folder: Path) -> onnx.ModelProto:
    """Write a changed graph into `folder` as stages hand it on, clean and checked, and return its structure.

    Raises:
        InternalError: The model breaks ONNX's own rules.
    """
    made = save_apart(model, folder)
    strip(made)
    save(made, folder / MODEL)
    return made


def bring_weights(source: Path, folder: Path) -> None:
    """Copy the weights of the graph at `source`, where they lie apart, into `folder`: runtimes and checkers refuse links."""
    weights = source.parent / WEIGHTS
    if weights.exists():
        shutil.copyfile(weights, folder / WEIGHTS)


def refer(model: onnx.ModelProto, name: str) -> None:
    """Let every weight that lies outside the graph's file be looked for in the file called `name`, in place."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes the initializers take, wherever they lie."""
    import onnx_ir

    sizes = (onnx_ir.DataType(tensor.data_type).itemsize * math.prod(tensor.dims) for tensor in model.graph.initializer)
    return int(sum(sizes))


def strip(model: onnx.ModelProto) -> None:
    """Remove, in place, what exporters and simplifiers note: stack traces, local paths, doc strings."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    holders: Iterable[Iterable[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]] = (
        graph.node,
        graph.input,
        graph.output,
        graph.value_info,
        graph.initializer,
    )
    for holder in holders:
        for entry in holder:
            entry.doc_string = ""
            del entry.metadata_props[:]


def fix_initializers(model: onnx.ModelProto) -> None:
    """Take initializers off the inputs, in place: before IR version 4 they had to be listed there, and later they may be."""
    constant = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constant]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, FREE_INITIALIZERS)


def embed(model: onnx.ModelProto, texts: Mapping[str, str]) -> None:
    """Write texts into `metadata_props`, in place, under the prefix "deploykit."."""
    for key, value in sorted(texts.items()):
        model.metadata_props.add(key=f"{PREFIX}{key}", value=value)


def name_axes(model: onnx.ModelProto, inputs: Mapping[str, tuple[int | str, ...]]) -> None:
    """Call dynamic dimensions by their axes' names everywhere in the graph, in place.

    Args:
        model: Its inputs carry the exporter's symbols.
        inputs: Per input, the size or the axis name of each dimension.
    """
    graph = model.graph
    renamed: dict[str, str] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, wanted in zip(dims, inputs[value.name], strict=True):
            if isinstance(wanted, str) and dim.HasField("dim_param"):
                renamed[dim.dim_param] = wanted
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def with_one_row(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose open batch is one row, with all shapes that follow: an open graph leaves most of them unknown."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    norms = {index: node for index, node in enumerate(model.graph.node) if node.op_type == GROUP_NORM}
    for index in norms:
        node = copy.graph.node[index]
        kept = onnx.helper.make_node("Identity", node.input[:1], node.output)
        node.CopyFrom(kept)
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    for index, node in norms.items():
        inferred.graph.node[index].CopyFrom(node)
    return inferred


def set_shape(model: onnx.ModelProto, name: str, shape: tuple[int | str, ...]) -> None:
    """Fix open dimensions of the input called `name` to sizes or call them by names, in place; infer the shapes after it anew.

    Dimensions that are fixed already stay as they are.
    """
    import onnx

    graph = model.graph
    value = next(value for value in graph.input if value.name == name)
    renamed: dict[str, int | str] = {}
    for dim, wanted in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if not dim.HasField("dim_value"):
            renamed[dim.dim_param] = wanted
            _set_dim(dim, wanted)
    del graph.value_info[:]
    for output in graph.output:
        for dim in output.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param in renamed:
                _set_dim(dim, renamed[dim.dim_param])
    model.CopyFrom(onnx.shape_inference.infer_shapes(model))


def _set_dim(dim: onnx.TensorShapeProto.Dimension, wanted: int | str) -> None:
    if isinstance(wanted, str):
        dim.dim_param = wanted
    else:
        dim.dim_value = wanted


def specs(values: Iterable[onnx.ValueInfoProto], axes: Mapping[str, Axis]) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs as TensorSpecs, dynamic dimensions as the axes of their names, "?" where they have none.

    Raises:
        UnsupportedError: One of them is no tensor.
    """
    import onnx

    found = []
    for value in values:
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "value of unknown type"
            raise UnsupportedError(f"{value.name!r} is a {kind}, no tensor")
        tensor = value.type.tensor_type
        shape = tuple(
            dim.dim_value
            if dim.HasField("dim_value")
            else axes.get(dim.dim_param, Axis.unbounded(dim.dim_param or UNNAMED))
            for dim in tensor.shape.dim
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found.append(TensorSpec(value.name, dtype, shape))
    return tuple(found)
