"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): depthwise 7x7, LayerNorm, GELU, LayerScale."""

from __future__ import annotations

from deploykit.models.family import AxisRule, Family
from deploykit.verdict import Budget

FAMILY = Family(
    name="convnext",
    title="ConvNeXt",
    task="logits",
    input_name="input",
    output_name="logits",
    opset=20,  # the first with a Gelu operator; at 18 it is five operators and ONNX Runtime is slower
    axes={"batch": AxisRule(dim=0, min=1, max=256, step=1, traced=2)},
    budgets={
        "f32": Budget(relative_max=1e-4, sqnr_db=80.0, cosine=0.999999, untied_flips=0),
        # bfloat16 rounds to 8 bits: three fewer than float16, so 18 dB below the 46 dB that float16 is held to.
        "bf16": Budget(sqnr_db=28.0, cosine=0.998, agreement=0.98, accuracy_drop=0.01),
    },
)
