"""Operators that PyTorch's exporter or a runtime gets wrong, written out in others before they meet them.

- `scaled_dot_product_attention` of other ranks than 4: the exporter refuses them.
- `adaptive_avg_pool2d` to a size that doesn't divide: the exporter gathers windows and divides by a constant of their
  sizes, which OpenVINO 2026.4 folds into the next convolution's kernel where both have one shape. Two products with
  averaging matrices are as exact, and smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Written = Mapping[Any, Callable[..., Any]]


def written_out() -> Written:
    """Return operators and what stands for them; NotImplemented leaves a node as it is."""
    import torch

    aten = torch.ops.aten
    return {aten.scaled_dot_product_attention.default: attention, aten.adaptive_avg_pool2d.default: average_pool}


def write_out(program: torch.export.ExportedProgram) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Write out the operators in `written_out`.

    Returns:
        The program, the same object where nothing is to be written out, and the operators that were.
    """
    table = written_out()
    used = {node.target: table[node.target] for node in program.graph.nodes if _is_written_out(node, table)}
    if not used:
        return program, ()
    changed = tuple(str(operator.overloadpacket.__name__) for operator in used)
    return program.run_decompositions(dict(used)), changed


def _is_written_out(node: torch.fx.Node, table: Written) -> bool:
    """Tell whether the table's function takes a node, given the shapes that were traced.

    Asked of every node because taking a program apart, which would tell as well, lasts as long as tracing it.
    """
    from torch.fx.node import map_arg

    if node.target not in table:
        return False
    with node.meta["val"].fake_mode:
        arguments = map_arg(node.args, lambda of: of.meta["val"])
        named = {key: map_arg(value, lambda of: of.meta["val"]) for key, value in node.kwargs.items()}
        return table[node.target](*arguments, **named) is not NotImplemented


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - the operator's own signature
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention of any rank but 4 as matrix products.

    Args:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, V].
        mask: Broadcasts to [..., L, S]: true where a key is seen, or added to the scores.
        dropout: As the operator has it; attention with dropout is left whole.
        is_causal: The same.
        scale: Of the scores; None is 1 / sqrt(E).
        enable_gqa: As the operator has it; grouped queries are left whole.

    Returns:
        [..., L, V].
    """
    import torch

    if query.ndim == 4 or dropout or is_causal or enable_gqa:
        return NotImplemented  # type: ignore[no-any-return]
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if mask is None:
        return torch.matmul(scores.softmax(dim=-1), value)
    if mask.dtype != torch.bool:
        return torch.matmul((scores + mask).softmax(dim=-1), value)
    weights = scores.masked_fill(mask.logical_not(), float("-inf")).softmax(dim=-1)
    return torch.matmul(weights.masked_fill(mask.logical_not(), 0.0), value)  # a row that sees nothing is zero, not NaN


def average_pool(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Adaptive average pooling of [..., H, W] to `size` where that doesn't divide H and W: two matrix products."""
    import torch

    sides = values.shape[-2:]
    if not all(isinstance(one, int) for one in (*sides, *size)) or all(
        a % b == 0 for a, b in zip(sides, size, strict=True)
    ):
        return NotImplemented  # type: ignore[no-any-return]
    rows, columns = (_averages(side, bins).to(values) for side, bins in zip(sides, size, strict=True))
    return torch.matmul(torch.matmul(rows, values), columns.T)


def _averages(side: int, bins: int) -> torch.Tensor:
    """Return float32 [bins, side]: window i is the mean of floor(i side / bins) up to ceil((i + 1) side / bins)."""
    import torch

    index, place = torch.arange(bins)[:, None], torch.arange(side)[None]
    inside = (place >= index * side // bins) & (place < ((index + 1) * side + bins - 1) // bins)
    return inside.float() / inside.sum(dim=1, keepdim=True)
