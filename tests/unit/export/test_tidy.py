"""Tidying: constants folded, casts to the same type gone, successive clips whole, no weights remembered."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import onnx_ir
import pytest
import torch
from torch import nn

from deploykit.export.tidy import tidy

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of its own internals


class Attention(nn.Module):
    """Attention over heads, then successive clips."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take [batch, 6, 32], return [batch, 4, 6, 8]."""
        q, k, v = self.qkv(x).reshape(x.shape[0], 6, 3, 4, 8).permute(2, 0, 3, 1, 4)
        rows = nn.functional.scaled_dot_product_attention(q, k, v)
        return rows.clamp(-2.0, 2.0).clamp(-1.0, 1.0).clamp(-2.0, 0.5)


def exported(module: nn.Module) -> onnx_ir.Model:
    program = torch.export.export(module, (torch.zeros(2, 6, 32),))
    made = torch.onnx.export(program, (), opset_version=20, dynamo=True, optimize=False, verbose=False)
    assert made is not None
    return made.model


def test_a_tidy_graph_is_smaller_and_whole() -> None:
    model = exported(Attention().eval())
    before = sum(1 for _ in model.graph)
    tidy(model)
    kinds = Counter(node.op_type for node in model.graph)
    given = {*model.graph.inputs, *model.graph.initializers.values()}
    taken = [value for node in model.graph for value in node.inputs if value is not None]
    assert sum(kinds.values()) < before
    assert not {"CastLike", "Constant"} & set(kinds)
    assert not model.functions
    assert all(value.producer() is not None or value in given for value in taken)


def test_weights_are_let_go() -> None:
    module = Attention().eval()
    weights = weakref.ref(module.qkv.weight)
    model = exported(module)
    tidy(model)
    del model, module
    gc.collect()
    assert weights() is None
