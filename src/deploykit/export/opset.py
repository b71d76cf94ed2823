"""Opset: the graph in the operator set that was asked for, for devices whose runtime takes no newer one.

A traced graph is exported in that set where the exporter can, and converted by ONNX's own converter where it can't. The file's
IR version comes down with it: a runtime that is too old for one is too old for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deploykit.errors import Hint, InternalError, UnsupportedError
from deploykit.export import equal, onnx_files, provenance
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace

if TYPE_CHECKING:
    import onnx

#: The oldest set that can be asked for, and the oldest that the exporter writes by itself.
OLDEST: Final = 7
EXPORTED: Final = 18
#: Operators that a message names.
NAMED: Final = 8


@dataclass(frozen=True)
class OpsetOptions:
    """What to convert to.

    Attributes:
        opset: ONNX operator set of the default domain.
    """

    opset: int


def opset_of(model: onnx.ModelProto) -> int:
    """Return a model's operator set of the default domain."""
    return max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def check_expressible(model: onnx.ModelProto, opset: int, modules: provenance.Modules) -> None:
    """Refuse operators that came later.

    Raises:
        UnsupportedError: There are; it names them, with the first set that has them and a module that they come from.
    """
    import onnx

    lacking: dict[str, str] = {}
    for node in _nodes(model.graph):
        if node.domain in {"", "ai.onnx"} and node.op_type not in lacking:
            try:
                onnx.defs.get_schema(node.op_type, opset, "")
            except onnx.defs.SchemaError:
                lacking[node.op_type] = modules.get(node.output[0], "")
    if lacking:
        told = [
            f"{name} (since {_since(name)}{f', module {module!r}' if module else ''})"
            for name, module in lacking.items()
        ]
        rest = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        least = max(map(_since, lacking))
        raise UnsupportedError(
            f"opset {opset} has no {', '.join(told[:NAMED])}{rest}",
            Hint(f"--opset {least}", "is the first that has them"),
        )


def _since(operator: str) -> int:
    import onnx

    known = (
        one.since_version for one in onnx.defs.get_all_schemas_with_history() if one.name == operator and not one.domain
    )
    return min(known, default=0)


def _without_later_defaults(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a copy without attributes that an older set doesn't know and that say what is so without them."""
    import onnx

    copy, now = onnx.ModelProto(), opset_of(model)
    copy.CopyFrom(model)
    for node in _nodes(copy.graph):
        if node.domain not in {"", "ai.onnx"}:
            continue
        known = onnx.defs.get_schema(node.op_type, opset, "").attributes
        defaults = onnx.defs.get_schema(node.op_type, now, "").attributes
        for attribute in [one for one in node.attribute if one.name not in known and one.name in defaults]:
            default = defaults[attribute.name].default_value
            if default.type == attribute.type and onnx.helper.get_attribute_value(
                default
            ) == onnx.helper.get_attribute_value(attribute):
                node.attribute.remove(attribute)
    return copy


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _run(inputs: Inputs, options: OpsetOptions, workspace: Workspace) -> Facts:
    import onnx
    from onnx import version_converter

    source = inputs["graph"].path(onnx_files.MODEL)
    modules = provenance.read(inputs["graph"].path(onnx_files.MODULES))
    before = onnx_files.load(source)
    check_expressible(before, options.opset, modules)
    try:
        after = before
        if opset_of(before) != options.opset:
            after = version_converter.convert_version(_without_later_defaults(before, options.opset), options.opset)
        after.ir_version = min(after.ir_version, onnx.helper.find_min_ir_version_for(after.opset_import))
        after.producer_name, after.producer_version = before.producer_name, before.producer_version
        onnx_files.bring_weights(source, workspace.folder)
        onnx_files.strip(after)
        onnx_files.save(after, workspace.folder / onnx_files.MODEL)
        equal.check_interface(before, after, f"conversion to opset {options.opset}")
        provenance.write(workspace.folder / onnx_files.MODULES, provenance.complete(after.graph, modules))
        doing = f"conversion to opset {options.opset}"
        error = equal.check_outputs(source, workspace.folder / onnx_files.MODEL, equal.probe(inputs["golden"]), doing)
    except (InternalError, RuntimeError) as failure:  # the converter raises what its library does
        raise UnsupportedError(
            f"the graph can't be written in opset {options.opset}: {str(failure).strip().splitlines()[-1]}",
            Hint("--opset N", f"a newer one; without it the graph has opset {opset_of(before)}"),
        ) from failure
    return {
        "opset": options.opset,
        "ir_version": after.ir_version,
        "nodes": len(after.graph.node),
        "relative_max": error,
    }


def _ensure(_inputs: Inputs, options: OpsetOptions, made: Item) -> None:
    found = opset_of(onnx_files.load(made.path(onnx_files.MODEL)))
    if found != options.opset:
        raise InternalError(f"asked for opset {options.opset}, the graph has {found}")


STAGE = Stage(
    name="opset",
    version=1,
    takes={"graph": "graph", "golden": "tensors"},
    makes="graph",
    libraries=("onnx", "onnxruntime"),
    run=_run,
    ensure=_ensure,
)
