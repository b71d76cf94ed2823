"""EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298): fused MBConv, SiLU, squeeze and excitation, BatchNorm."""

from __future__ import annotations

from deploykit.models.family import BUDGETS, IMAGES, Family
from deploykit.verdict import Budget

FAMILY = Family(
    name="efficientnetv2",
    title="EfficientNetV2",
    matches=("tf_efficientnetv2*", "efficientnetv2*"),
    opset=20,
    axes=IMAGES,
    budgets={
        **BUDGETS,
        "int8": Budget(sqnr_db=20.0, cosine=0.995, agreement=0.96, accuracy_drop=0.01, int8_share=0.9),
    },
    rewrites=("global-pools",),
)
