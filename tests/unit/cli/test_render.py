from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress
from tests.support import STAGE, Suffix, gate, judgement

from deploykit.cli.render import Stages, print_json
from deploykit.export.cache import Made
from deploykit.export.stage import Item, Node
from deploykit.runtime.report.records import report_record
from deploykit.verdict import Report, Verdict


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"nodes": 120, "verdict": "pass"}, "120 nodes, pass"),
        ({"nodes_before": 120, "nodes": 90, "relative_max": 2e-6}, "120 → 90 nodes, outputs equal to 2e-06"),
        (
            {"nodes": {"float16": 88}, "weight_bytes_before": 4_200_000, "weight_bytes": 2_100_000},
            "weights 4.2 → 2.1 MB",
        ),
    ],
)
def test_a_finished_stage_tells_what_it_made(facts: dict[str, Any], words: str, tmp_path: Any) -> None:
    """A cast counts its nodes by type: that is no number to print."""
    text = io.StringIO()
    console = Console(file=text, width=120)
    watcher = Stages(console, Progress(console=console))
    node = Node("n", STAGE, Suffix(), {"text": "source"})
    watcher.started(node)
    watcher.finished(node, Made(Item("graph", tmp_path, (), facts), key="k", libraries={}, seconds=1.5, cached=False))
    assert text.getvalue().strip().endswith(words)


def test_json_on_stdout_holds_no_infinity_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    equal = replace(judgement(Verdict.PASS, gate()), metrics={"sqnr_db": math.inf, "cosine": 1.0})
    print_json(report_record(Report("bundle", (equal,))))
    found = json.loads(capsys.readouterr().out)
    assert found["judgements"][0]["metrics"] == {"sqnr_db": None, "cosine": 1.0}
    assert found["not_finite"] == {"judgements[0].metrics.sqnr_db": "Infinity"}
    print_json(report_record(Report("bundle", (judgement(Verdict.PASS, gate()),))))
    assert "not_finite" not in json.loads(capsys.readouterr().out)
