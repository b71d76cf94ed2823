"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244): Hardswish, squeeze and excitation, a conv head after the pool."""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family

FAMILY = Family(
    name="mobilenetv3",
    title="MobileNetV3",
    matches=("mobilenetv3*", "tf_mobilenetv3*"),
    opset=20,
    axes=BATCH,
    budgets=BUDGETS,
    rewrites=("global-pools",),
)
