"""Family: all that the toolkit knows about a kind of model, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit import registry
from deploykit.errors import InternalError
from deploykit.verdict import Budget

GROUP = "deploykit.families"


@dataclass(frozen=True)
class AxisRule:
    """A dimension of the input that an export may leave open.

    Attributes:
        dim: Its index in the input's shape.
        min: Smallest size that the family's models take.
        max: Largest size that an export declares.
        step: Sizes are `min + k * step`.
        traced: The size that the graph is traced at: never 1, which exporters specialise.
    """

    dim: int
    min: int
    max: int
    step: int
    traced: int


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        name: As registered.
        title: As people write it.
        task: "logits".
        input_name: Name of the image input.
        output_name: Name of the output.
        opset: ONNX opset that keeps the family's operators whole.
        axes: Dimensions that may be dynamic, by name.
        budgets: How far an artifact may drift, by the precision that it ran in ("f32", "bf16", ...).
    """

    name: str
    title: str
    task: str
    input_name: str
    output_name: str
    opset: int
    axes: Mapping[str, AxisRule]
    budgets: Mapping[str, Budget]


def get_family(name: str) -> Family:
    """Return the family registered as `name`.

    Raises:
        UsageError: There is none.
    """
    family = registry.load(GROUP, name)
    if not isinstance(family, Family):
        raise InternalError(f"entry point {name!r} in {GROUP} is a {type(family).__name__}, not a Family")
    return family
