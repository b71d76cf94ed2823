"""Operators written out: the same values, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from deploykit.export import operators

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of its own internals


class Network(nn.Module):
    """Applies a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return whatever the function does."""
        return self.function(x)


def written(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[str, ...]:
    """Export, write out, compare at another batch, and return what was written out."""
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(Network(function), (x,), dynamic_shapes=dims)
    after, names = operators.write_out(program)
    assert names or after is program, "a program that nothing is written out of was taken apart for nothing"
    other = torch.randn((5, *x.shape[1:]), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(after.module()(other), function(other), rtol=1e-5, atol=1e-6)
    return names


def test_attention_of_three_axes_is_written_out() -> None:
    assert written(lambda x: functional.scaled_dot_product_attention(x, x, x), torch.randn(2, 7, 8)) == (
        "scaled_dot_product_attention",
    )


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks_hide_keys(kind: torch.dtype) -> None:
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    mask = seen if kind == torch.bool else torch.zeros(7, 7).masked_fill(~seen, -3.0)
    names = written(
        lambda x: functional.scaled_dot_product_attention(x, x, x, mask, scale=0.3), torch.randn(2, 3, 2, 7, 8)
    )
    assert names == ("scaled_dot_product_attention",)


def test_a_query_that_sees_nothing_answers_with_zero() -> None:
    x = torch.randn(2, 4, 8)
    mask = torch.tensor([[True], [False], [True], [True]]).expand(4, 4)
    found = operators.attention(x, x, x, mask)
    assert torch.equal(found[:, 1], torch.zeros(2, 8))
    torch.testing.assert_close(found, functional.scaled_dot_product_attention(x, x, x, mask))


def test_usual_attention_and_other_operators_stay_whole() -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        rows = functional.scaled_dot_product_attention(x, x, x)
        return functional.gelu(functional.group_norm(rows, 2))

    assert written(network, torch.randn(2, 4, 6, 8)) == ()


def test_pools_that_divide_stay_whole() -> None:
    assert written(lambda x: functional.adaptive_avg_pool2d(x, (2, 3)), torch.randn(2, 3, 8, 9)) == ()


def test_pools_that_do_not_divide_are_two_products() -> None:
    assert written(lambda x: functional.adaptive_avg_pool2d(x, (7, 7)), torch.randn(2, 3, 8, 10)) == (
        "adaptive_avg_pool2d",
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12))
def test_any_pool_has_the_values_of_the_operator(height: int, width: int, rows: int, columns: int) -> None:
    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(height * 100 + width))
    found = operators.average_pool(x, (rows, columns))
    if found is not NotImplemented:
        torch.testing.assert_close(found, functional.adaptive_avg_pool2d(x, (rows, columns)), rtol=1e-5, atol=1e-6)
    else:
        assert height % rows == width % columns == 0
