"""DINOv2, with and without registers: ViT, LayerScale, patch 14.

Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2023, arXiv:2309.16588. Position embeddings are resampled when the network
is built for an image size, so the graph holds them as constants: an antialiased Resize is not portable.
"""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family
from deploykit.models.precision import Int8Recipe
from deploykit.verdict import Budget

FAMILY = Family(
    name="dinov2",
    title="DINOv2",
    matches=("vit_*_dinov2*", "vit_*_reg4_dinov2*"),
    opset=20,  # at 23 attention becomes one operator, which not every runtime takes
    axes=BATCH,
    budgets={
        **BUDGETS,
        "f16": Budget(sqnr_db=40.0, cosine=0.9998, agreement=0.99, accuracy_drop=0.005),
        "int8": Budget(sqnr_db=20.0, cosine=0.993, agreement=0.97, accuracy_drop=0.01, int8_share=0.8),
    },
    islands=("decomposed-norms",),
    int8=Int8Recipe(strengths=(0.15, 0.5, 0.8)),
    rewrites=("fold-scales", "direct-transposes", "early-selections"),
)
