"""A Report as one HTML file for people: no script, nothing that would be fetched, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploykit import optional
from deploykit.runtime.report import terminal
from deploykit.verdict import GateResult, Judgement, Report

TEMPLATE: Final = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """What an artifact made.

    Attributes:
        title: Whose it is.
        png: The file.
        note: How far it is from the original's, or what it shows.
    """

    title: str
    png: bytes
    note: str


@dataclass(frozen=True)
class Extras:
    """What a page shows beside the report.

    Attributes:
        facts: Of the original and the bundle, label to text.
        sizes: Bytes of each artifact, by name.
        pictures: Side by side, the original's first.
        unpictured: Why pictures are missing, each with what they would be of.
    """

    facts: Mapping[str, str]
    sizes: Mapping[str, int]
    pictures: Sequence[Picture] = ()
    unpictured: Sequence[str] = ()


def page(report: Report, extras: Extras) -> str:
    """Return a report as HTML.

    Raises:
        MissingComponentError: Jinja is not installed.
    """
    optional.require("jinja2")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title, names = terminal.short_names([judgement.artifact for judgement in report.judgements])
    return environment.get_template(TEMPLATE).render(
        title=title if report.judgements else Path(report.subject).name,
        verdict=report.verdict.value,
        mark=_mark(report),
        summary=terminal.summary(report),
        conditions=terminal.conditions(report),
        facts=extras.facts,
        rows=list(_rows(report, names, extras.sizes)),
        complaints=list(terminal.complaints(report)),
        shipping=list(terminal.shipping(report)),
        power=list(terminal.power(report)),
        judgements=[_judgement(each, names) for each in report.judgements],
        pictures=[(each.title, base64.b64encode(each.png).decode("ascii"), each.note) for each in extras.pictures],
        unpictured=extras.unpictured,
    )


def _mark(what: Report | Judgement | GateResult) -> str:
    """Return a verdict in a sign and a word."""
    return terminal.MARKS[what.verdict][0]


def _rows(report: Report, names: Mapping[str, str], sizes: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """Yield the cells of each judgement's line."""
    for each in report.judgements:
        yield {
            "artifact": names[each.artifact],
            "size": terminal.megabytes(sizes[each.artifact]) if each.artifact in sizes else "",
            "run": terminal.run_text(each),
            "drift": terminal.drift_text(each),
            "spread": terminal.spread_text(each),
            "agreement": terminal.agreement_text(each),
            "mark": _mark(each),
            "verdict": each.verdict.value,
        }


def _judgement(each: Judgement, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a judgement rests on: where it ran, every gate, every number."""
    ran = each.ran
    where = [] if ran is None else [ran.backend, ran.version, ran.device, ran.precision]
    where += [f"{ran.threads} threads"] if ran is not None and ran.threads else []
    where += [each.processor] if each.processor else []
    return {
        "title": f"{names[each.artifact]}, {terminal.run_text(each)}",
        "mark": _mark(each),
        "verdict": each.verdict.value,
        "ran": " · ".join(where) or each.reason,
        "measured_at": each.measured_at,
        "gates": [_gate(gate) for gate in each.gates],
        "metrics": [(name, f"{value:.6g}") for name, value in each.metrics.items()],
    }


def _gate(gate: GateResult) -> dict[str, str]:
    value, lower, upper, bound = (
        terminal.value_text(gate, number) for number in (gate.value, gate.lower, gate.upper, gate.bound)
    )
    return {
        "metric": terminal.metric_text(gate),
        "reference": gate.reference,
        "value": value,
        "interval": "" if lower == upper else f"{lower} to {upper}",
        "n": f"{gate.n:,}",
        "bound": f"{'≥' if gate.higher_is_better else '≤'} {bound}",
        "mark": _mark(gate),
        "verdict": gate.verdict.value,
        "reason": gate.reason,
    }
