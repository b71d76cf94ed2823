"""ConvNeXt v1 and v2: depthwise 7x7, LayerNorm, GELU, and LayerScale or GRN.

Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808.
"""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family

FAMILY = Family(
    name="convnext",
    title="ConvNeXt",
    matches=("convnext*", "convnextv2*"),
    opset=20,  # the first with a Gelu operator; at 18 it is five operators and ONNX Runtime is slower
    axes=BATCH,
    budgets=BUDGETS,
    rewrites=("fold-scales", "regroup-norms", "fold-shifts", "pointwise-convs", "identity-gathers"),
)
