"""A Report as plain JSON values, for `--json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploykit.artifact import Artifact
from deploykit.serde import to_values
from deploykit.verdict import Report, Verdict


def report_record(report: Report) -> dict[str, Any]:
    """Return everything that a report holds, with its verdict."""
    return {
        "subject": report.subject,
        "verdict": report.verdict.value,
        "not_run": list(report.not_run),
        "judgements": to_values(report.judgements),
        "timings": to_values(report.timings),
        "latency": to_values(report.latency),
        "notes": list(report.notes),
        "recommendation": _recommendation(report),
    }


def export_record(root: Path, artifacts: Iterable[Artifact], report: Report) -> dict[str, Any]:
    """Return the result of an export: the bundle, its verdict, and each artifact with verdict and metrics.

    An artifact's verdict is the gravest of its runs; its metrics are those of the recommended run. `runs` has them all.
    """
    return {
        "bundle": str(root),
        "verdict": report.verdict.value,
        "not_run": list(report.not_run),
        "artifacts": [_artifact_record(root, artifact, report) for artifact in artifacts],
        "refused": to_values(report.refused),
        "timings": to_values(report.timings),
        "repairs": to_values(report.repairs),
        "notes": list(report.notes),
        "recommendation": _recommendation(report),
    }


def _recommendation(report: Report) -> dict[str, Any] | None:
    found = report.recommendation
    return None if found is None else {**to_values(found), "elsewhere": found.elsewhere}


def _artifact_record(root: Path, artifact: Artifact, report: Report) -> dict[str, Any]:
    runs = [judgement for judgement in report.judgements if judgement.artifact == artifact.name]
    return {
        "name": artifact.name,
        "path": str(root / artifact.main.path),
        "format": artifact.format,
        "target": artifact.target,
        "precision": artifact.precision,
        "bytes": artifact.bytes,
        "verdict": Verdict.worst(judgement.verdict for judgement in runs).value,
        "metrics": to_values(runs[0].metrics) if runs else {},
        "runs": to_values(runs),
    }
