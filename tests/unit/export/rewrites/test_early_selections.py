"""One token of many: what needs them all, and how far up one is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.export.rewrites.graphs import Array, Shape, graph, ints, node, operators, random, rewrite

NAME = "early-selections"
TOKENS, WIDTH = 5, 8
SHAPE = ("batch", TOKENS, WIDTH)
WEIGHTS: Mapping[str, Array] = {
    "w": random(1, WIDTH, 12),
    "b": random(2, 12),
    "v": random(3, 12, WIDTH),
    "c": random(4, WIDTH),
    "scale": random(5, WIDTH),
    "shift": random(6, WIDTH),
    "index": np.array(0),
    "all": ints(0),
}
BLOCK = [
    node("LayerNormalization", "x,scale,shift", "norm"),
    node("MatMul", "norm,w", "p1"),
    node("Add", "p1,b", "fc1"),
    node("Gelu", "fc1", "act"),
    node("MatMul", "act,v", "p2"),
    node("Add", "p2,c", "fc2"),
    node("Add", "x,fc2", "sum"),
]
SELECT = node("Gather", "sum,index", "y", axis=1)


def mlp(
    nodes: Sequence[onnx.NodeProto] = (*BLOCK, SELECT),
    outputs: Sequence[str] = ("y",),
    shape: Shape = SHAPE,
    **more: Array,
) -> onnx.ModelProto:
    return graph(nodes, {"x": shape}, outputs, {**WEIGHTS, **more})


def widths(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, 0 for open dimensions."""
    found = next(value for value in (*model.graph.value_info, *model.graph.output) if value.name == name)
    return tuple(dim.dim_value for dim in found.type.tensor_type.shape.dim)


@pytest.mark.parametrize(
    "nodes",
    [
        [*BLOCK, node("Gather", "sum,all", "y", axis=1)],
        [*BLOCK, node("Gather", "sum,index", "y", axis=2)],
        [*BLOCK, node("Gather", "sum,index", "y", axis=0)],
        [*BLOCK, node("ReduceMean", "sum,all", "y")],
        [
            *BLOCK,
            *(node("Gather", f"sum,{name}", name[0], axis=1) for name in ("index", "last")),
            node("Add", "i,l", "y"),
        ],
        [*BLOCK, node("Softmax", "sum", "mixed", axis=1), node("Gather", "mixed,index", "y", axis=1)],
        [BLOCK[0], node("Gather", "norm,index", "y", axis=1)],
    ],
    ids=["a-list", "of-channels", "of-the-batch", "mean", "two-tokens", "mixed-tokens", "no-layer"],
)
def test_what_needs_all_tokens_gets_them(nodes: list[onnx.NodeProto]) -> None:
    assert rewrite(mlp(nodes, last=np.array(-1)), NAME)[1].places == 0


def test_the_sum_is_given_out_too() -> None:
    assert rewrite(mlp(outputs=["y", "sum"]), NAME)[1].places == 0


def test_one_token_needs_no_selection() -> None:
    assert rewrite(mlp(shape=("batch", 1, WIDTH)), NAME)[1].places == 0


def test_an_open_number_of_tokens_is_left_alone() -> None:
    assert rewrite(mlp(shape=("batch", "tokens", WIDTH)), NAME)[1].places == 0


@pytest.mark.parametrize("index", [0, 3, -1])
@pytest.mark.parametrize("shape", [SHAPE, (2, TOKENS, WIDTH)])
def test_the_block_computes_one_token(index: int, shape: Shape) -> None:
    after, done = rewrite(mlp(shape=shape, index=np.array(index)), NAME)
    assert done.places == 1
    assert operators(after)["Gather"] == 2
    assert widths(after, "fc1.rewritten")[1:] == (1, 12)
    assert "fc1" not in {output for given in after.graph.node for output in given.output}
    assert done.renames["fc1.rewritten"] == "fc1"
    assert done.renames["x.rewritten"] == "x"


@pytest.mark.parametrize("inside", ["act", "fc1", "p1"])
def test_above_a_tensor_that_is_given_out_all_stays(inside: str) -> None:
    after, done = rewrite(mlp(outputs=["y", inside]), NAME)
    assert done.places == 1
    assert widths(after, inside)[1:] == (TOKENS, 12)
    assert widths(after, "p2.rewritten")[1:] == (1, WIDTH)


@pytest.mark.parametrize("shape", [(TOKENS, WIDTH), (1, TOKENS, 1)])
def test_a_constant_that_tells_tokens_apart_ends_it(shape: tuple[int, ...]) -> None:
    nodes = [*BLOCK[:3], node("Add", "fc1,places", "placed"), node("Gelu", "placed", "act"), *BLOCK[4:], SELECT]
    shape = (*shape[:-1], 12) if shape[-1] == WIDTH else shape
    after, done = rewrite(mlp(nodes, places=random(9, *shape)), NAME)
    assert done.places == 1
    assert widths(after, "fc1")[1:] == (TOKENS, 12)
    assert widths(after, "act.rewritten")[1:] == (1, 12)


def rows(two_users: bool = False, static: bool = False, vector: bool = False) -> onnx.ModelProto:
    """As simplifiers write the block: layers on a matrix of all rows of the batch."""
    first = [node("Gemm", "rows,w", "product"), node("Mul", "b,product", "p1")]
    nodes = [
        BLOCK[0],
        node("Reshape", "norm,flat", "rows"),
        *(first if vector else [node("Gemm", "rows,w,b", "p1")]),
        node("Reshape", "p1,apart", "fc1"),
        node("Gelu", "fc1", "act"),
        node("Reshape", "act,flat12", "rows12"),
        node("Gemm", "rows12,v,c", "p2"),
        node("Reshape", "p2,back", "fc2"),
        *BLOCK[6:],
        SELECT,
    ]
    if two_users:
        nodes.append(node("Relu", "rows12", "z"))
    batch = 2 if static else -1
    flat = 2 * TOKENS if static else -1
    weights = {"flat": ints(flat, WIDTH), "apart": ints(batch, TOKENS, 12), "flat12": ints(flat, 12)}
    weights["back"] = ints(batch, TOKENS, WIDTH)
    shape = (2 if static else "batch", TOKENS, WIDTH)
    known = {"fc1": (*shape[:2], 12), "fc2": shape}
    return graph(nodes, {"x": shape}, ["y", "z"] if two_users else ["y"], {**WEIGHTS, **weights}, known=known)


@pytest.mark.parametrize("static", [False, True])
def test_a_matrix_of_all_rows_holds_one_per_image(static: bool) -> None:
    after, done = rewrite(rows(static=static), NAME)
    assert done.places == 1
    assert widths(after, "p1.rewritten") == (2 if static else 0, 12)
    assert widths(after, "fc1.rewritten")[1:] == (1, 12)


def test_one_token_cannot_be_picked_from_a_matrix_of_all_rows() -> None:
    """All that is left is the sum: too little to begin."""
    assert rewrite(rows(two_users=True), NAME)[1].places == 0


def test_a_tensor_that_is_asked_and_looked_at_keeps_all_tokens() -> None:
    """The norm's output is query, key and value at once."""
    nodes = [
        *BLOCK[:1],
        node("MatMul", "norm,wq", "query"),
        node("Transpose", "norm", "keys", perm=[0, 2, 1]),
        node("MatMul", "query,keys", "scores"),
        node("MatMul", "scores,norm", "sum"),
        SELECT,
    ]
    after, done = rewrite(mlp(nodes, wq=random(9, WIDTH, WIDTH)), NAME)
    assert done.places == 1
    assert widths(after, "norm")[1:] == (TOKENS, WIDTH)
    assert widths(after, "query.rewritten")[1:] == (1, WIDTH)


def test_a_matrix_of_all_rows_in_a_sum_with_a_vector() -> None:
    model = rows(vector=True)
    after, done = rewrite(model, NAME)
    assert done.places == 1
    assert widths(after, "p1.rewritten") == (0, 12)


def attention(heads: int, shape: Shape, index: int) -> onnx.ModelProto:
    """One block of a ViT, of which one token is given out."""
    width = WIDTH // heads
    nodes = [node("LayerNormalization", "x,scale,shift", "n0")]
    for name in "qkv":
        nodes += [node("MatMul", f"n0,w{name}", f"{name}0"), node("Reshape", f"{name}0,heads", f"{name}1")]
        nodes.append(node("Transpose", f"{name}1", name, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]))
    nodes += [
        node("MatMul", "q,k", "scores"),
        node("Mul", "scores,number", "scaled"),
        node("Softmax", "scaled", "weights", axis=-1),
        node("MatMul", "weights,v", "mixed"),
        node("Transpose", "mixed", "by_token", perm=[0, 2, 1, 3]),
        node("Reshape", "by_token,merged", "flat"),
        node("MatMul", "flat,wo", "projected"),
        node("Add", "x,projected", "sum"),
        node("Gather", "sum,index", "y", axis=1),
    ]
    square = {f"w{name}": random(seed, WIDTH, WIDTH) for seed, name in enumerate("qkvo")}
    batch = -1 if shape[0] == "batch" else 2
    moves = {"heads": ints(batch, TOKENS, heads, width), "merged": ints(batch, TOKENS, WIDTH)}
    number = {"number": np.array(0.1, np.float32), "index": np.array(index)}
    known = {"flat": shape, "q1": (*shape[:2], heads, width)}
    norm = {"scale": WEIGHTS["scale"], "shift": WEIGHTS["shift"]}
    return graph(nodes, {"x": shape}, ["y"], {**norm, **square, **moves, **number}, known=known)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([SHAPE, (2, TOKENS, WIDTH)]), st.integers(-TOKENS, TOKENS - 1))
def test_attention_asks_for_one_token_and_looks_at_all(heads: int, shape: Shape, index: int) -> None:
    after, done = rewrite(attention(heads, shape, index), NAME)
    assert done.places == 1
    assert widths(after, "scores.rewritten")[1:] == (heads, 1, TOKENS)
    assert widths(after, "q0.rewritten")[1:] == (1, WIDTH)
    assert widths(after, "k0")[1:] == (TOKENS, WIDTH)
    assert widths(after, "v")[1:] == (heads, TOKENS, WIDTH // heads)
