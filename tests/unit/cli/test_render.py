from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress
from tests.support import STAGE, Suffix

from deploykit.cli.render import Stages
from deploykit.export.cache import Made
from deploykit.export.stage import Item, Node


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
