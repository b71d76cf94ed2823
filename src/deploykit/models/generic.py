"""Everything else."""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family
from deploykit.models.precision import Int8Recipe

FAMILY = Family(
    name="generic",
    title="other",
    matches=("*",),
    opset=20,
    axes=BATCH,
    budgets=BUDGETS,
    int8=Int8Recipe(strengths=(0.15, 0.5, 0.8)),
    islands=("grn", "decomposed-norms", "group-norm-before-21"),
)
