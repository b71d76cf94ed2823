"""Attention whose queries, keys and values are cut from the output of one layer, and how one grid can serve all three.

    x ─ Linear ─ moves ─┬─ q ─┐
                        ├─ k ─┴─ MatMul ─ Softmax ─ MatMul ─ moves ─ Linear
                        └─ v ─────────────────────────┘

Rounded together, before they are moved and cut, they leave the layer in 8 bits already: one kernel computes both. One grid for
all would waste bits on whichever is smallest. But channel j of q meets channel j of k alone, so q_j / f_j and
f_j k_j give the same product, and the last layer takes back what v was multiplied by. All of it goes into the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.calibration.ranges import RangeTable
from deploykit.export.rewrites import layout
from deploykit.export.rewrites.editing import Array, Editor, sizes
from deploykit.export.rewrites.linears import Linear, fold, linear_at, linear_of, replace

if TYPE_CHECKING:
    import onnx_ir as ir

#: Factors stay within this of 1, so that no weight leaves float32's or float16's comfortable range.
REACH: Final = 1e3


@dataclass(frozen=True)
class Joint:
    """A layer whose output is queries, keys and values and nothing else.

    Attributes:
        layer: It.
        queries: int [n], numbers of the channels that are queries.
        keys: int [n], number of the channel that each of those is multiplied by.
        values: int [m], numbers of those that are values.
        taker: The layer that takes what attention makes of the values.
        tensors: All that hold other values once queries, keys and values are scaled.
    """

    layer: Linear
    queries: Array
    keys: Array
    values: Array
    taker: Linear
    tensors: tuple[ir.Value, ...]


def joints_of(products: Collection[ir.Node]) -> Iterator[Joint]:
    """Yield the layers whose outputs only these products of two activations take, moved and cut."""
    starts = dict.fromkeys(layout.origin(value) for node in products for value in node.inputs if value is not None)
    for start in starts:
        linear = linear_at(start)
        found = None if linear is None else _joint(linear, products)
        if found is not None:
            yield found


def _joint(linear: Linear, products: Collection[ir.Node]) -> Joint | None:
    spread = layout.follow_channels(linear)
    if spread is None or any(leaf.node not in products for leaf in spread.leaves):
        return None
    nodes = dict.fromkeys(leaf.node for leaf in spread.leaves if leaf.node is not None)
    inner = [node for node in nodes if all(value in spread.arrays for value in node.inputs)]
    outer = [node for node in nodes if node.inputs[0] not in spread.arrays]
    if len(nodes) != 2 or len(inner) != 1 or len(outer) != 1:
        return None
    left, right, last = (spread.arrays[value] for value in (*inner[0].inputs, outer[0].inputs[1]) if value is not None)
    pairs, values, taken = _pairs(left, right), np.unique(last), _taken(outer[0])
    if pairs is None or taken is None:
        return None
    if not np.array_equal(np.sort([*pairs.reshape(-1), *values]), np.arange(linear.channels)):
        return None
    taker, further = taken
    return Joint(linear, pairs[0], pairs[1], values, taker, (linear.node.outputs[0], *spread.arrays, *further))


def _pairs(left: Array, right: Array) -> Array | None:
    """Return which channels meet in a product of [..., T, D] and [..., D, T]: int [2, n]; None where they do so unevenly."""
    queries, keys = left[..., 0, :], right[..., 0]
    still = (left == left[..., :1, :]).all() and (right == right[..., :1]).all()
    if not still or queries.shape != keys.shape:
        return None
    pairs = np.unique(np.stack([queries.reshape(-1), keys.reshape(-1)]), axis=1)
    alone = all(len(np.unique(side)) == len(side) for side in pairs)
    return pairs if alone else None


def _taken(node: ir.Node) -> tuple[Linear, tuple[ir.Value, ...]] | None:
    """Return the one layer that takes a node's output, moved or not, and what that output is on the way to it."""
    output = node.outputs[0]
    array = layout.lay(output, np.zeros((1,) * len(sizes(output) or ()), np.int8))
    spread = None if array is None else layout.follow(output, array)
    if spread is None or len(spread.leaves) != 1:
        return None
    leaf = spread.leaves[0]
    taker = linear_of(leaf.node)
    if taker is None or taker.node.inputs[0] is not leaf.value:
        return None
    return taker, tuple(spread.arrays)


def balance(editor: Editor, joint: Joint, table: RangeTable) -> bool:
    """Scale queries, keys and values so that all three are about as large, and nothing changes behind them.

    Args:
        editor: Of the layers' graph.
        joint: To change.
        table: Ranges of the graph.

    Returns:
        Whether it was done: it is not where float32 can't hold the new weights.
    """
    factor = factors(joint, absmax_of(joint.layer, table))
    values = float(factor[joint.values[0]])
    if not fold(editor, joint.layer, factor):
        return False
    replace(editor, joint.taker.node, 1, joint.taker.weight / values)
    for tensor in joint.tensors:
        editor.changed(tensor)
    return True


def factors(joint: Joint, absmax: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each channel of the layer's output is multiplied by: float64 [channels], the values' all the same.

    Args:
        joint: The layer.
        absmax: float64 [channels], largest magnitude of each.
    """
    made = np.ones(len(absmax))
    queries, keys = absmax[joint.queries], absmax[joint.keys]
    usable = (queries > 0.0) & (keys > 0.0)
    even = np.sqrt(np.where(usable, keys, 1.0) / np.where(usable, queries, 1.0))
    made[joint.queries] = np.clip(even, 1 / REACH, REACH)
    made[joint.keys] = 1 / made[joint.queries]
    largest = (absmax * made)[[*joint.queries, *joint.keys]].max()
    values = absmax[joint.values].max()
    made[joint.values] = np.clip(largest / values, 1 / REACH, REACH) if largest > 0.0 and values > 0.0 else 1.0
    return made


def absmax_of(linear: Linear, table: RangeTable) -> NDArray[np.float64]:
    """Return the largest magnitude of each channel of a layer's output, bias and all: float64 [channels]."""
    seen = table.of(str(linear.node.outputs[0].name))
    bias = linear.bias_values if linear.bias is not None and linear.bias[0] is not linear.node else 0.0
    made: NDArray[np.float64] = np.maximum(np.abs(seen.channel_min + bias), np.abs(seen.channel_max + bias))
    return made
