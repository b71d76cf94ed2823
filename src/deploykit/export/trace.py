"""Trace: a PyTorch original to an ONNX graph, by torch.export, with every node's module on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import heap
from deploykit.errors import BakedAxisError, Hint, InternalError, UnsupportedError
from deploykit.export import onnx_files, operators, provenance, tidy
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace
from deploykit.models import sources
from deploykit.models.family import AxisRule, get_family
from deploykit.models.interface import BATCH, Interface
from deploykit.models.original import Original

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    import torch
    from torch import nn


#: What networks raise that torch.export can't follow: its own errors, and theirs when they are given symbols.
UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, NotImplementedError)


@dataclass(frozen=True)
class TraceOptions:
    """How to trace.

    Attributes:
        batch: Rows of the inputs where the batch is static.
        dynamic: Names of the family's axes that stay open.
        opset: ONNX operator set.
    """

    batch: int
    dynamic: tuple[str, ...]
    opset: int


def _run(inputs: Inputs, options: TraceOptions, workspace: Workspace) -> Facts:

    original = sources.located(inputs["original"].identity)
    family, takes = get_family(original.family), original.takes
    rules = {name: family.axes[name] for name in options.dynamic}
    traced = takes.at({BATCH: options.batch, **{name: rule.traced for name, rule in rules.items()}})
    written = _write(original, _examples(takes, traced), rules, options.opset, workspace.folder)
    model = written.model
    heap.release()  # simplifying will hold the weights again
    modules = provenance.complete(model.graph, provenance.of_exporter(model.graph, written.paths))
    onnx_files.strip(model)
    named = {each.name: each.places(rules) for each in takes.inputs}
    axes = {name: tuple(named[name].get(place, size) for place, size in enumerate(traced[name])) for name in traced}
    onnx_files.name_axes(model, axes)
    model.producer_name, model.producer_version = "deploykit", ""
    onnx_files.save(model, workspace.folder / onnx_files.MODEL)
    provenance.write(workspace.folder / onnx_files.MODULES, modules)
    exporter = ", ".join(["torch.export", *(f"{name} written out" for name in written.operators)])
    facts = {"nodes": len(model.graph.node), "opset": options.opset, "ir_version": model.ir_version}
    return {**facts, "exporter": exporter}


def _examples(takes: Interface, shapes: Mapping[str, tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
    """Return what the network is traced with: noise, and zeros where integers may be indices."""
    import torch

    generator = torch.Generator().manual_seed(0)
    kinds = {each.name: getattr(torch, each.dtype) for each in takes.inputs}
    return tuple(
        torch.randn(shapes[name], generator=generator, dtype=kind)
        if kind.is_floating_point
        else torch.zeros(shapes[name], dtype=kind)
        for name, kind in kinds.items()
    )


@dataclass(frozen=True)
class Written:
    """An exported graph.

    Attributes:
        model: Its structure.
        paths: Of the network's modules.
        operators: Those that were written out in others.
    """

    model: onnx.ModelProto
    paths: set[str]
    operators: tuple[str, ...]


def _write(
    original: Original,
    examples: tuple[torch.Tensor, ...],
    rules: Mapping[str, AxisRule],
    opset: int,
    folder: Path,
) -> Written:
    """Export an original into `folder`.

    Gradients are switched off: attention with a trainable bias is traced by one kernel and taken apart by another, whose
    outputs lie in memory in another order.
    """
    module = sources.open_module(original).requires_grad_(requires_grad=False)
    places = tuple(each.places(rules) for each in original.takes.inputs)
    program, changed = operators.write_out(_export(module, examples, Open(rules, places), original.id))
    model = onnx_files.save_apart(_to_onnx(program, original, opset), folder)
    return Written(model, {path for path, _ in module.named_modules()}, changed)


@dataclass(frozen=True)
class Open:
    """Axes that stay open.

    Attributes:
        rules: By name.
        places: Of each input, the dimensions at which they lie.
    """

    rules: Mapping[str, AxisRule]
    places: tuple[Mapping[int, str], ...]

    def dims(self) -> tuple[dict[int, Any], ...]:
        """Return them as torch.export takes them: an axis is one symbol wherever it lies, one of `step` a multiple of one."""
        import torch

        dims: dict[str, Any] = {}
        for name, rule in self.rules.items():
            if rule.step == 1:
                dims[name] = torch.export.Dim(name, min=rule.min, max=rule.max)
            else:
                dims[name] = rule.step * torch.export.Dim(
                    f"_{name}", min=rule.min // rule.step, max=rule.max // rule.step
                )
        return tuple({place: dims[name] for place, name in each.items()} for each in self.places)


def _export(
    module: nn.Module, examples: tuple[torch.Tensor, ...], opened: Open, name: str
) -> torch.export.ExportedProgram:
    """Run torch.export. Where it fails only with open axes, the network fixes one: the error names them."""
    import torch

    try:
        return torch.export.export(module, examples, dynamic_shapes=opened.dims() if opened.rules else None)
    except UNTRACEABLE as error:
        reason = _reason(error)
        if not opened.rules or not _is_traceable(module, examples):
            raise UnsupportedError(f"{name} can't be traced: {reason}") from error
        raise BakedAxisError(
            f"{name}: axis {', '.join(opened.rules)} can't be dynamic, the network fixes its size: {reason}",
            Hint("--batch N", "exports a static batch"),
        ) from error


def _is_traceable(module: nn.Module, examples: tuple[torch.Tensor, ...]) -> bool:
    import torch

    try:
        torch.export.export(module, examples)
    except UNTRACEABLE:
        return False
    return True


def _reason(error: BaseException) -> str:
    """Return the first line of what began it: the exporter wraps errors in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _to_onnx(program: torch.export.ExportedProgram, original: Original, opset: int) -> onnx_ir.Model:
    """Translate a program to ONNX, inputs and outputs called as the original declares them."""
    import torch

    try:
        exported = torch.onnx.export(
            program,
            (),
            opset_version=opset,
            input_names=[each.name for each in original.takes.inputs],
            output_names=list(original.takes.outputs),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(f"{original.id} can't be written as ONNX opset {opset}: {_reason(error)}") from error
    if exported is None:
        raise InternalError(f"{original.id}: the exporter returned nothing")
    tidy.tidy(exported.model)
    return exported.model


def _ensure(_inputs: Inputs, options: TraceOptions, made: Item) -> None:
    model = onnx_files.load(made.path(onnx_files.MODEL))
    declared = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    baked = [axis for axis in options.dynamic if axis not in declared]
    if baked:
        raise BakedAxisError(
            f"axis {baked[0]!r} was declared dynamic but the traced graph has it fixed",
            Hint("--batch N", "exports a static batch"),
        )


STAGE = Stage(
    name="trace",
    version=3,
    takes={"original": "original"},
    makes="graph",
    libraries=("torch", "timm", "safetensors", "onnx", "onnx_ir", "onnxscript"),
    run=_run,
    ensure=_ensure,
)
