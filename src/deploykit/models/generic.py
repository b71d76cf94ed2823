"""Everything else."""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family

FAMILY = Family(
    name="generic",
    title="other",
    matches=("*",),
    opset=20,
    axes=BATCH,
    budgets=BUDGETS,
    islands=("grn", "decomposed-norms", "group-norm-before-21"),
)
