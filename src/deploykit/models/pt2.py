"""Programs of torch.export in .pt2 files, opened without running a byte that they bring.

PyTorch's own reader is for files that one trusts: it unpickles without restriction where the archive says so, looks operators
up by any dotted path below `torch`, and evaluates shape expressions and guards as Python. So an archive is read by us
first, and only what a plain program of tensors and ATen operators needs is let through.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import MAX_SIZE, Axis, TensorSpec
from deploykit.errors import BadInputError, UnsupportedError
from deploykit.optional import require

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

#: Operators by the path that they are looked up by.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|higher_order)\.[A-Za-z_]\w*(\.\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(int|float|max|min|not|sum)"
)
#: What shape expressions call; any other name may be a function of Python's own.
_FUNCTIONS = (
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Min", "Max", "Abs", "Mod", "floor", "ceiling"),
    *("And", "Or", "Not", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "LessThan", "GreaterThan"),
    *("StrictLessThan", "StrictGreaterThan", "Piecewise", "ExprCondPair", "BooleanTrue", "BooleanFalse"),
    *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift"),
    *("RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator"),
    *("TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
)
#: Shape expressions: those calls, assumptions about symbols, symbols, numbers and arithmetic.
_EXPRESSION = re.compile(
    rf"(?:(?:{'|'.join(_FUNCTIONS)})\(|[a-z]+=(?:True|False)|'[su]\d+'|\b[su]\d+\b|true|false"
    r"|\d+(?:\.\d+)?|[-+*/<>=!&|~(), ])*"
)
#: Names of tensors, parameters and symbols.
_NAME = re.compile(r"[\w.]*")
#: Values that are never evaluated: notes, trees of containers, guards, which are not built.
_NOT_EVALUATED = {"metadata", "in_spec", "out_spec", "guards_code", "torch_version", "stack_trace"}
_UNSAFE_MEMBER = re.compile(r"[^/]+/(?:data/weights/[^/]+\.pt|data/constants/[^/]+\.pt|data/aotinductor/.*)")


@dataclass(frozen=True)
class Program:
    """What a program takes, answers with and holds."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int


def load(path: Path) -> nn.Module:
    """Return a program as a module.

    Raises:
        BadInputError: Damaged, or more than a plain program of tensors; nothing of it was run.
    """
    return _read(path).module(check_guards=False)


def describe(path: Path) -> Program:
    """Return the interface of a program.

    Raises:
        BadInputError: As `load` does.
    """
    program = _read(path)
    ranges = {str(symbol): (int(bounds.lower), bounds.upper) for symbol, bounds in program.range_constraints.items()}
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    sides = (signature.user_inputs, signature.user_outputs)
    inputs, outputs = (tuple(_spec(path, str(name), nodes.get(str(name)), ranges) for name in side) for side in sides)
    return Program(inputs, outputs, sum(parameter.numel() for parameter in program.parameters()))


def _read(path: Path) -> ExportedProgram:
    require("torch")
    import torch

    _check_archive(path)
    try:
        return torch.export.load(path)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{path} is no program that this PyTorch reads: {line[:200]}") from error


def _spec(path: Path, name: str, value: object, ranges: dict[str, tuple[int, Any]]) -> TensorSpec:
    import torch

    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"{path}: {name!r} is no tensor")
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(_dim(dim, ranges) for dim in value.shape))


def _dim(dim: int | torch.SymInt, ranges: dict[str, tuple[int, Any]]) -> int | Axis:
    if isinstance(dim, int):
        return dim
    lower, upper = ranges.get(str(dim), (1, MAX_SIZE))
    least = max(1, lower)
    return Axis(str(dim), least, least, min(int(upper), MAX_SIZE) if upper.is_finite else MAX_SIZE)


def _check_archive(path: Path) -> None:
    """Look through everything that PyTorch's reader would evaluate.

    Raises:
        BadInputError: No archive, or it asks for something that a plain program does not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if _UNSAFE_MEMBER.fullmatch(name):
                    raise _unsafe(path, f"it holds {name}")
                if name.endswith("_config.json"):
                    _check_payloads(path, json.loads(archive.read(name)))
                elif "/models/" in name:
                    _check_program(path, json.loads(archive.read(name)))
                elif "/sample_inputs/" in name:
                    _check_pickle(path, archive, name)
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError, KeyError, NotImplementedError) as error:
        raise BadInputError(f"{path} is no intact .pt2 archive: {error}") from error


def _unsafe(path: Path, what: str) -> BadInputError:
    return BadInputError(f"{path} holds more than a program of tensors, and nothing of it was run: {what}")


def _check_payloads(path: Path, config: Any) -> None:  # noqa: ANN401 - JSON
    for name, payload in dict(config.get("config", {})).items():
        file = str(payload.get("path_name", ""))
        if payload.get("use_pickle") or not file.startswith(("weight_", "tensor_")):
            raise _unsafe(path, f"{name!r} is pickled")


def _check_pickle(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    import torch

    with archive.open(name) as stream:
        try:
            torch.load(stream, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, TypeError, AttributeError) as error:
            raise _unsafe(
                path, f"its sample inputs are no plain tensors ({str(error).splitlines()[0][:80]})"
            ) from error


def _check_program(path: Path, program: object) -> None:
    for key, text in _strings("", program):
        rule = {"target": _OPERATOR, "expr_str": _EXPRESSION}.get(key, _NAME)
        if not rule.fullmatch(text):
            raise _unsafe(path, f"its {key} {text[:80]!r}")


def _strings(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield every text that the reader may evaluate or build code from, with the key that it stands at."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(key, entry)
    elif isinstance(value, dict):
        for name, entry in value.items():
            if name not in _NOT_EVALUATED:
                yield "name", str(name)
                yield from _strings(name, entry)
