"""ConvNeXt v1 and v2: depthwise 7x7, LayerNorm, GELU, and LayerScale or GRN.

Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808.
"""

from __future__ import annotations

from deploykit.models.family import BUDGETS, IMAGES, Family
from deploykit.verdict import Budget

FAMILY = Family(
    name="convnext",
    title="ConvNeXt",
    matches=("convnext*", "convnextv2*"),
    opset=20,  # the first with a Gelu operator; at 18 it is five operators and ONNX Runtime is slower
    axes=IMAGES,
    budgets={
        **BUDGETS,
        "f16": Budget(sqnr_db=42.0, cosine=0.9995, agreement=0.99, accuracy_drop=0.005),
        "int8": Budget(sqnr_db=20.0, cosine=0.995, agreement=0.97, accuracy_drop=0.01, int8_share=0.9),
    },
    islands=("grn", "decomposed-norms"),
    rewrites=("fold-scales", "regroup-norms", "fold-shifts", "pointwise-convs", "identity-gathers"),
)
