"""DINOv2, with and without registers: ViT, LayerScale, patch 14.

Oquab et al. 2023, arXiv:2304.07193; Darcet et al. 2023, arXiv:2309.16588. Position embeddings are resampled when the network
is built for an image size, so the graph holds them as constants: an antialiased Resize is not portable.
"""

from __future__ import annotations

from deploykit.models.family import BATCH, BUDGETS, Family

FAMILY = Family(
    name="dinov2",
    title="DINOv2",
    matches=("vit_*_dinov2*", "vit_*_reg4_dinov2*"),
    opset=20,  # at 23 attention becomes one operator, which not every runtime takes
    axes=BATCH,
    budgets=BUDGETS,
    rewrites=("fold-scales", "direct-transposes", "early-selections"),
)
