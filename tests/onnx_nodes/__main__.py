"""Write `refusals.json`: the models that are refused, by why."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

from tests.onnx_nodes.passes import REFUSALS, cases, pass_through, reason_of


def main() -> int:
    refused: dict[str, list[str]] = {}
    failed = 0
    for case in cases():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = pass_through(case, Path(folder))
        if result.kind == "refused":
            refused.setdefault(reason_of(result), []).append(case.name)
        if result.kind == "failed":
            failed += 1
            sys.stdout.write(f"{result.name} {result.at}: {result.told}\n")
    ordered = {reason: sorted(names) for reason, names in sorted(refused.items())}
    REFUSALS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    for reason, names in ordered.items():
        sys.stdout.write(f"{len(names):>5} {reason}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
