"""Small things that every stage does to an ONNX file: read, save, clean, name axes, embed texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import BadInputError, InternalError

if TYPE_CHECKING:
    import onnx


MODEL = "model.onnx"
MODULES = "modules.json"
PREFIX = "deploykit."


def load(path: Path) -> onnx.ModelProto:
    """Read a model.

    Raises:
        BadInputError: The file is no ONNX model.
    """
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf raises its own DecodeError, which has no public base
        raise BadInputError(f"{path} is no ONNX model: {str(error).splitlines()[0]}") from error


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check and write a model.

    Raises:
        InternalError: The model breaks ONNX's own rules.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"the graph breaks ONNX's rules: {str(error).splitlines()[0]}") from error
    path.write_bytes(model.SerializeToString(deterministic=True))


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


def specs(values: Iterable[onnx.ValueInfoProto], axes: Mapping[str, Axis]) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs as TensorSpecs, dynamic dimensions as the axes of their names."""
    import onnx

    found = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(
            axes.get(dim.dim_param, Axis.unbounded(dim.dim_param or "?"))
            if dim.HasField("dim_param")
            else dim.dim_value
            for dim in tensor.shape.dim
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found.append(TensorSpec(value.name, dtype, shape))
    return tuple(found)
