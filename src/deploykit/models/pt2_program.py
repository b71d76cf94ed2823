"""What a program of torch.export may say: a copy of its JSON with nothing left but what a plain program of tensors needs.

PyTorch's reader looks operators up by any dotted path below `torch`, evaluates shape expressions as Python, and imports what a
tree of containers names. So every text that it may evaluate is compared with what may stand there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, Final

#: Operators that are plain functions of numbers.
_PLAIN_OPERATOR: Final = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(int|float|max|min|not|sum)"
)
#: Operators with graphs of their own.
_HIGHER_ORDER: Final = re.compile(
    r"torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
_ATEN: Final = re.compile(r"torch\.ops\.(aten|prims)\.([A-Za-z_]\w*)\.(\w+)")
#: Operators of ATen that answer with no tensor, and belong to plain programs.
_WITHOUT_TENSORS: Final = re.compile(
    r"sym_(size|numel|stride|storage_offset|constrain_range|constrain_range_for_size|is_contiguous)|item|_local_scalar_dense"
    r"|_assert_(async|scalar|tensor_metadata)"
)
#: Names of arguments of ATen's operators that are words. The others are names of files and the like.
_WORDS: Final = frozenset(
    {
        *(
            "reduce",
            "approximate",
            "mode",
            "norm",
            "ord",
            "driver",
            "rounding_mode",
            "pad_mode",
            "interpolation",
            "side",
        ),
        *("padding", "UPLO", "assert_msg", "equation", "indexing", "padding_side", "p", "activation"),
    }
)
#: What shape expressions call; any other name may be a function of Python's own.
_FUNCTIONS: Final = frozenset(
    {
        *(
            "Symbol",
            "Integer",
            "Rational",
            "Float",
            "Add",
            "Mul",
            "Pow",
            "Min",
            "Max",
            "Abs",
            "Mod",
            "floor",
            "ceiling",
        ),
        *("And", "Or", "Not", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "LessThan", "GreaterThan"),
        *("StrictLessThan", "StrictGreaterThan", "Piecewise", "ExprCondPair", "BooleanTrue", "BooleanFalse"),
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
        *("PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator"),
        *("TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
    }
)
_POWERS: Final = frozenset({"Pow", "PowByNatural", "FloatPow"})
#: Names that stand by themselves.
_SYMBOL: Final = re.compile(r"[suz]\w*\d+|true|false")
_SYNTAX: Final = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
#: Characters of an expression, the largest number in one, the largest exponent, and how many powers there may be.
_LONGEST, _LARGEST, _EXPONENT, _MOST_POWERS = 4000, 2**63, 8, 4
#: Names of tensors, parameters and symbols.
_NAME: Final = re.compile(r"[\w.]*")
#: Values of arguments that are words: a reduction, an equation of einsum.
_WORD: Final = re.compile(r"[\w., >-]*")
#: Containers that inputs and outputs may be arranged in.
_TREES: Final = frozenset(
    {
        *("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"),
        *("torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict"),
    }
)
#: What is kept of the notes on a node: the modules that it lies in, which are split at commas and no more.
_NOTES: Final = frozenset({"nn_module_stack"})
#: What is left out: checks that would be compiled, and PyTorch's version, which nothing reads.
_LEFT_OUT: Final[Mapping[str, Any]] = {"guards_code": [], "torch_version": ""}


class UnsafeProgramError(ValueError):
    """It asks for more than a plain program needs; the text says what."""


def clean(value: object, key: str = "") -> Any:  # noqa: ANN401 - JSON
    """Return a copy of a program's JSON without anything that its reader could be led astray by.

    Args:
        value: As `json.loads` returns it.
        key: That it stands at.

    Raises:
        UnsafeProgramError: It says what a plain program has no need to say.
    """
    if isinstance(value, str):
        return _checked_text(key, value)
    if isinstance(value, list):
        return [clean(entry, key) for entry in value]
    if not isinstance(value, dict):
        return value
    if key == "metadata":
        return {name: str(value[name]) for name in value.keys() & _NOTES}
    if any(not _NAME.fullmatch(name) for name in value):
        raise UnsafeProgramError(f"its name {next(name for name in value if not _NAME.fullmatch(name))[:80]!r}")
    return {name: _LEFT_OUT[name] if name in _LEFT_OUT else clean(entry, name) for name, entry in value.items()}


def _checked_text(key: str, text: str) -> str:
    check = {"target": _is_operator, "expr_str": _is_expression, "in_spec": _is_tree, "out_spec": _is_tree}.get(key)
    pattern = _WORD if key in {"as_string", "as_strings"} else _NAME
    if not (check(text) if check is not None else pattern.fullmatch(text)):
        raise UnsafeProgramError(f"its {key} {text[:80]!r}")
    return text


def _is_operator(text: str) -> bool:
    """Tell whether it is an operator that makes numbers of numbers, and neither reads nor writes anything else."""
    import torch

    if _PLAIN_OPERATOR.fullmatch(text) or _HIGHER_ORDER.fullmatch(text):
        return True
    named = _ATEN.fullmatch(text)
    if named is None:
        return False
    packet = getattr(getattr(torch.ops, named[1]), named[2], None)
    overload = getattr(packet, named[3], None)
    if not isinstance(overload, torch._ops.OpOverload):  # noqa: SLF001 - PyTorch tells types of arguments nowhere else
        return False
    schema = overload._schema  # noqa: SLF001
    words = {argument.name for argument in schema.arguments if "str" in str(argument.type)}
    answers = any("Tensor" in str(answer.type) for answer in schema.returns)
    return words <= _WORDS and (answers or _WITHOUT_TENSORS.fullmatch(named[2]) is not None)


def _is_expression(text: str) -> bool:
    """Tell whether it is arithmetic of symbols and small numbers, which is evaluated within no time."""
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = [exponent for node in ast.walk(tree) for exponent in _exponents(node)]
    return (
        len(powers) <= _MOST_POWERS
        and all(map(_is_small, powers))
        and all(isinstance(node, _SYNTAX) and _is_plain(node) for node in ast.walk(tree))
    )


def _exponents(node: ast.AST) -> list[ast.expr | None]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift, ast.RShift)):
        return [node.right if isinstance(node.op, ast.Pow) else None]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS:
        return [node.args[1] if len(node.args) == 2 else None]
    return []


def _is_small(exponent: ast.expr | None) -> bool:
    if isinstance(exponent, ast.UnaryOp):
        return _is_small(exponent.operand)
    if isinstance(exponent, ast.Call):
        return len(exponent.args) == 1 and _is_small(exponent.args[0])
    return isinstance(exponent, ast.Constant) and isinstance(exponent.value, int) and exponent.value <= _EXPONENT


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.keyword):
        return node.arg is not None and isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _SYMBOL.fullmatch(node.value) is not None
        return isinstance(node.value, (bool, int, float)) and abs(node.value) <= _LARGEST
    return True


def _is_tree(text: str) -> bool:
    """Tell whether it is a tree of plain containers. Others name modules and functions, which are imported."""
    if not text:
        return True
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and len(found) == 2 and isinstance(found[0], int) and _is_branch(found[1])


def _is_branch(node: object) -> bool:
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        return False
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list):
        return False
    if kind is None:
        return context is None and not children
    return isinstance(kind, str) and kind in _TREES and _is_context(context) and all(map(_is_branch, children))


def _is_context(context: object) -> bool:
    """Tell whether it is what a plain container keeps beside its entries: nothing, or the keys of a dict."""
    if context is None:
        return True
    try:
        found = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        return False
    return found is None or (isinstance(found, list) and all(isinstance(key, (str, int)) for key in found))
