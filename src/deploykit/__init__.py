"""deploykit: export PyTorch vision models and prove what came out.

    import deploykit

    exported = deploykit.export_model("tiny-convnext", deploykit.ExportOptions(cells=("fp32:ort", "fp32:openvino")))
    exported.report.verdict                              # Verdict.PASS
    deploykit.verify(exported.bundle.root)               # judge it again, here or on another machine, without PyTorch
    with deploykit.load(exported.bundle.root) as session:
        session.infer({"input": images})                 # float32 [1, 3, 64, 64] in, {"logits": float32 [1, 12]} out

Names are loaded when they are first used: importing deploykit imports no heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.artifact import Artifact as Artifact
    from deploykit.artifact import Axis as Axis
    from deploykit.artifact import Preprocess as Preprocess
    from deploykit.artifact import RunConfig as RunConfig
    from deploykit.artifact import TensorSpec as TensorSpec
    from deploykit.bundle import Bundle as Bundle
    from deploykit.errors import DeploykitError as DeploykitError
    from deploykit.manifest import Manifest as Manifest
    from deploykit.runtime.backends.base import Session as Session
    from deploykit.runtime.latency import BenchOptions as BenchOptions
    from deploykit.verdict import GateResult as GateResult
    from deploykit.verdict import Judgement as Judgement
    from deploykit.verdict import Report as Report
    from deploykit.verdict import Timing as Timing
    from deploykit.verdict import Verdict as Verdict
    from deploykit.workflow.bench import LatencyBudget as LatencyBudget
    from deploykit.workflow.bench import bench as bench
    from deploykit.workflow.export import Exported as Exported
    from deploykit.workflow.export import export_model as export_model
    from deploykit.workflow.load import load as load
    from deploykit.workflow.options import ExportOptions as ExportOptions
    from deploykit.workflow.options import VerifyOptions as VerifyOptions
    from deploykit.workflow.verify import verify as verify

_HOMES = {
    "Artifact": "artifact",
    "Axis": "artifact",
    "BenchOptions": "runtime.latency",
    "Bundle": "bundle",
    "DeploykitError": "errors",
    "ExportOptions": "workflow.options",
    "Exported": "workflow.export",
    "GateResult": "verdict",
    "Judgement": "verdict",
    "LatencyBudget": "workflow.bench",
    "Manifest": "manifest",
    "Preprocess": "artifact",
    "Report": "verdict",
    "RunConfig": "artifact",
    "Session": "runtime.backends.base",
    "TensorSpec": "artifact",
    "Timing": "verdict",
    "Verdict": "verdict",
    "VerifyOptions": "workflow.options",
    "bench": "workflow.bench",
    "export_model": "workflow.export",
    "load": "workflow.load",
    "verify": "workflow.verify",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the table is the one place that lists the public names


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
