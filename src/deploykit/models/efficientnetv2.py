"""EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298): fused MBConv, SiLU, squeeze and excitation, BatchNorm."""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family

FAMILY = Family(
    name="efficientnetv2",
    title="EfficientNetV2",
    matches=("tf_efficientnetv2*", "efficientnetv2*"),
    opset=20,
    axes=BATCH,
    budgets=BUDGETS,
    rewrites=("global-pools",),
)
