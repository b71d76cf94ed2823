"""Trace: a PyTorch original to an ONNX graph, by torch.export, with every node's module on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import heap
from deploykit.errors import BakedAxisError, Hint, InternalError, UnsupportedError
from deploykit.export import onnx_files, operators, provenance, tidy
from deploykit.export.stage import Facts, Inputs, Item, Stage, Workspace
from deploykit.models import sources
from deploykit.models.family import AxisRule, get_family
from deploykit.models.original import INPUT_NAME, Original

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
        batch: Rows of the input where the batch is static.
        dynamic: Names of the family's axes that stay open.
        opset: ONNX operator set.
    """

    batch: int
    dynamic: tuple[str, ...]
    opset: int


def _run(inputs: Inputs, options: TraceOptions, workspace: Workspace) -> Facts:
    import torch

    original = sources.located(inputs["original"].facts["locator"])
    family = get_family(original.family)
    rules = {name: family.axes[name] for name in options.dynamic}
    shape = [options.batch, *original.preprocess.input_size]
    for rule in rules.values():
        shape[rule.dim] = rule.traced
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    written = _write(original, example, rules, options.opset, workspace.folder)
    model = written.model
    heap.release()  # simplifying will hold the weights again
    modules = provenance.complete(model.graph, provenance.of_exporter(model.graph, written.paths))
    onnx_files.strip(model)
    by_dim = {rule.dim: name for name, rule in rules.items()}
    onnx_files.name_axes(model, {INPUT_NAME: tuple(by_dim.get(dim, size) for dim, size in enumerate(shape))})
    model.producer_name, model.producer_version = "deploykit", ""
    onnx_files.save(model, workspace.folder / onnx_files.MODEL)
    provenance.write(workspace.folder / onnx_files.MODULES, modules)
    exporter = ", ".join(["torch.export", *(f"{name} written out" for name in written.operators)])
    facts = {"nodes": len(model.graph.node), "opset": options.opset, "ir_version": model.ir_version}
    return {**facts, "exporter": exporter}


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
    original: Original, example: torch.Tensor, rules: Mapping[str, AxisRule], opset: int, folder: Path
) -> Written:
    """Export an original into `folder`.

    Gradients are switched off: attention with a trainable bias is traced by one kernel and taken apart by another, whose
    outputs lie in memory in another order.
    """
    module = sources.open_module(original).requires_grad_(requires_grad=False)
    program, changed = operators.write_out(_export(module, example, rules, original.id))
    model = onnx_files.save_apart(_to_onnx(program, original, opset), folder)
    return Written(model, {path for path, _ in module.named_modules()}, changed)


def _export(
    module: nn.Module, example: torch.Tensor, rules: Mapping[str, AxisRule], name: str
) -> torch.export.ExportedProgram:
    """Run torch.export. Where it fails only with open axes, the network fixes one: the error names them."""
    import torch

    dims = {rule.dim: torch.export.Dim(axis, min=rule.min, max=rule.max) for axis, rule in rules.items()}
    try:
        return torch.export.export(module, (example,), dynamic_shapes=(dims,) if dims else None)
    except UNTRACEABLE as error:
        reason = _reason(error)
        if not dims or not _is_traceable(module, example):
            raise UnsupportedError(f"{name} can't be traced: {reason}") from error
        raise BakedAxisError(
            f"{name}: axis {', '.join(rules)} can't be dynamic, the network fixes its size: {reason}",
            Hint("--batch N", "exports a static batch"),
        ) from error


def _is_traceable(module: nn.Module, example: torch.Tensor) -> bool:
    import torch

    try:
        torch.export.export(module, (example,))
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
    """Translate a program to ONNX, its output called after what it is."""
    import torch

    try:
        exported = torch.onnx.export(
            program,
            (),
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[original.task],
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
