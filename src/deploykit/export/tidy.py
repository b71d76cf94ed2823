"""Tidy what PyTorch's exporter wrote: inline its functions, fold its constants, drop what nothing uses.

The exporter's own optimizer does this too, and then applies rewrite rules. Those remember the last graph that they saw,
with all its weights, for as long as the process lives, and one of them (successive clips, onnxscript 0.7) leaves nodes
without their inputs. What they fuse, the simplifier fuses as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

#: Folding a constant may make others foldable.
ROUNDS = 2


def tidy(model: onnx_ir.Model) -> None:
    """Tidy a model, in place."""
    import onnx_ir
    import onnx_ir.passes.common as common
    import onnxscript.optimizer

    common.InlinePass()(model)
    for _ in range(ROUNDS):
        onnxscript.optimizer.fold_constants(model)
        common.ShapeInferencePass()(model)  # for the types that the next line compares
        _drop_equal_casts(model.graph)
        unused = (
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
        )
        onnx_ir.passes.Sequential(*unused)(model)
    onnx_ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _drop_equal_casts(graph: onnx_ir.Graph) -> None:
    """Let users of a CastLike that changes no type take its input."""
    import onnx_ir

    for node in graph:
        source, like = (*node.inputs, None, None)[:2]
        if (
            node.op_type == "CastLike"
            and source is not None
            and like is not None
            and source.dtype == like.dtype is not None
        ):
            onnx_ir.convenience.replace_all_uses_with(node.outputs[0], source)
