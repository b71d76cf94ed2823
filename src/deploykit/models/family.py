"""Family: all that the toolkit knows about a kind of model, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch

from deploykit import registry
from deploykit.errors import UsageError
from deploykit.models.precision import Int8Recipe
from deploykit.verdict import Budget

GROUP = "deploykit.families"
#: The family of models that no other one matches.
FALLBACK = "generic"


@dataclass(frozen=True)
class AxisRule:
    """A dimension of the inputs that an export may leave open.

    Attributes:
        min: Smallest size that the family's models take.
        max: Largest size that an export declares.
        step: Sizes are `min + k * step`.
        traced: The size that the graph is traced at: never 1, which exporters specialise.
        tried: Sizes that artifacts are judged at beside that of the golden inputs; none where golden rows can be repeated.
    """

    min: int
    max: int
    step: int
    traced: int
    tried: tuple[int, ...] = ()


#: Axes that models of any kind may leave open.
BATCH = {"batch": AxisRule(min=1, max=256, step=1, traced=2)}
#: Those of networks that see images of any size: they halve them five times and pool what is left.
IMAGES = {
    **BATCH,
    "height": AxisRule(min=32, max=1024, step=32, traced=96, tried=(64, 160)),
    "width": AxisRule(min=32, max=1024, step=32, traced=128, tried=(96, 192)),
}
#: Bounds that hold for models of any kind. bfloat16 rounds to 8 bits, three fewer than float16: 18 dB below its usual 46.
#: int8 weights alone: where the largest of a channel is 3.7 sigma, 127 steps, rounding leaves 41 dB per layer, and 28 dB after
#: twenty in a row. That is bfloat16's line, and so is the agreement; accuracy is held to float16's, the least that can be told
#: from 2,000 images. fp8 keeps four digits of a value whatever its size: 32 dB per tensor, 29 dB per layer (weights and data),
#: 16 dB after twenty in a row. That is int8's line, and so are the rest of its bounds.
BUDGETS = {
    "f32": Budget(relative_max=1e-4, sqnr_db=80.0, cosine=0.999999, untied_flips=0),
    "f16": Budget(sqnr_db=45.0, cosine=0.9995, agreement=0.99, accuracy_drop=0.005),
    "int8-weights": Budget(sqnr_db=28.0, cosine=0.998, agreement=0.98, accuracy_drop=0.005),
    "bf16": Budget(sqnr_db=28.0, cosine=0.998, agreement=0.98, accuracy_drop=0.01),
    "int8": Budget(sqnr_db=15.0, cosine=0.98, agreement=0.95, accuracy_drop=0.01, int8_share=0.8),
    "fp8": Budget(sqnr_db=15.0, cosine=0.98, agreement=0.95, accuracy_drop=0.01, int8_share=0.8),
}


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        name: As registered.
        title: As people write it.
        matches: Shell patterns of timm's names; of all families that match, the one with the longest pattern is taken.
        opset: ONNX opset that keeps the family's operators whole.
        axes: Dimensions that may be dynamic, by name.
        budgets: How far an artifact may drift, by grade: see `deploykit.verdict.GRADES`.
        rewrites: Names of exact rewrites of the simplified graph, in the order in which they are done.
        islands: Rules of `deploykit.export.islands.RULES`: what stays float32 in half precision.
        int8: How it is quantized.
    """

    name: str
    title: str
    matches: tuple[str, ...]
    opset: int
    axes: Mapping[str, AxisRule]
    budgets: Mapping[str, Budget]
    rewrites: tuple[str, ...] = ()
    islands: tuple[str, ...] = ()
    int8: Int8Recipe = field(default_factory=Int8Recipe)


def get_family(name: str) -> Family:
    """Return the family registered as `name`.

    Raises:
        UsageError: There is none.
    """
    return registry.load(GROUP, name, Family)


def family_name(asked: str | None, otherwise: str) -> str:
    """Return the family that was asked for, or the one that is taken where none was.

    Raises:
        UsageError: There is no such family.
    """
    if asked is not None and asked not in (known := registry.names(GROUP)):
        raise UsageError(f"--family {asked}: there are {', '.join(known)}")
    return asked or otherwise


def family_of(name: str) -> Family:
    """Return the family whose pattern fits a timm name most closely."""
    families = [get_family(known) for known in registry.names(GROUP)]
    fits = [(len(pattern), family) for family in families for pattern in family.matches if fnmatch(name, pattern)]
    return max(fits, key=lambda fit: fit[0])[1]
