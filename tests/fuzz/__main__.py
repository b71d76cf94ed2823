"""`python -m tests.fuzz`: load damaged files for some minutes, one line for each loader; not 0 where anything went wrong."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.loaders import LOADERS, get_loader
from tests.fuzz.watch import FAILURES, Watched, run, until


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("loaders", nargs="*", help="which; all where none is named")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of them together")
    parser.add_argument("--cases", type=int, default=10_000, help="of each loader at most")
    parser.add_argument("--start", type=int, default=0, help="number of the first case; cases of one number are alike")
    asked = parser.parse_args()
    chosen = [get_loader(name) for name in asked.loaders] or list(LOADERS)
    end = time.monotonic() + asked.minutes * 60
    failed = False
    for index, loader in enumerate(chosen):
        share = (end - time.monotonic()) / (len(chosen) - index)  # what a light loader leaves, the others get
        with Watched() as watched:
            tally = run(loader, until(time.monotonic() + share, asked.cases, asked.start), watched)
        failed |= tally.failed
        sys.stdout.write(tally.text() + "\n")
        sys.stdout.flush()
    if failed:
        sys.stdout.write(f"failing inputs lie in {FAILURES}\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
