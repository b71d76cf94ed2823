"""Build one TensorRT-RTX engine in a process of its own and tell what that took; `trt_builds.py` runs this.

    python benchmarks/trt_build_process.py GRAPH.onnx ORDER.json OUT.engine

Prints one line of JSON: seconds of the build and of asking the parser before it, and anonymous memory in bytes: of the process
with the library imported and nothing done, and the most that it held since, together with the process that it has the engine
built in. Pages of files that are mapped are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Final

from deploykit.export.engines.tensorrt_build import options_of, refusals
from deploykit.export.engines.tensorrt_process import build_ordered
from deploykit.runtime.backends.tensorrt_library import RTX, library
from deploykit.runtime.backends.tensorrt_record import BuildOrder

#: Between two looks at the memory: the shortest that leaves the build alone.
PERIOD_S: Final = 0.002


def anonymous() -> int:
    """Return the anonymous memory of this process and those that it has started, in bytes."""
    started = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return sum(map(_anonymous, ["self", *started]))


def _anonymous(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


class Peak(threading.Thread):
    """Looks at the memory until it is stopped; the library lets other threads run while it builds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = anonymous()
        self._ended = threading.Event()

    def run(self) -> None:
        """Look."""
        while not self._ended.wait(PERIOD_S):
            self.most = max(self.most, anonymous())

    def stop(self) -> int:
        """End looking; returns the most that was seen, bytes."""
        self._ended.set()
        self.join()
        return max(self.most, anonymous())


def main() -> None:
    """Build and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("order", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    order = BuildOrder.read(given.order)
    library(RTX)
    bare = anonymous()
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    refused = refusals(RTX, given.graph)
    asked = time.perf_counter()
    plan, _ = build_ordered(given.graph, order, RTX, options_of(order))
    built = time.perf_counter()
    most = peak.stop()
    given.out.write_bytes(plan)
    told = {"build_s": built - asked, "parser_s": asked - started, "bare": bare, "peak": most, "refused": len(refused)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
