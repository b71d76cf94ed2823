"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244): Hardswish, squeeze and excitation, a conv head after the pool."""

from __future__ import annotations

from dataclasses import replace

from deploykit.models.family import BUDGETS, IMAGES, Family
from deploykit.models.precision import Int8Recipe
from deploykit.verdict import Budget

FAMILY = Family(
    name="mobilenetv3",
    title="MobileNetV3",
    matches=("mobilenetv3*", "tf_mobilenetv3*"),
    opset=20,
    axes=IMAGES,
    budgets={
        **BUDGETS,
        "int8": Budget(sqnr_db=15.0, cosine=0.985, agreement=0.94, accuracy_drop=0.01, int8_share=0.9),
        "fp8": replace(BUDGETS["fp8"], agreement=0.94),  # as int8: its depthwise layers leave no more
    },
    rewrites=("global-pools",),
    # Single images drive activations ten times as far as the others do; a grid for them leaves none for the rest.
    int8=Int8Recipe(method="percentile"),
)
