"""`python -m deploykit`."""

import os
import sys

# Python looks into the current folder first, which may be a stranger's: a numpy.py in it would be run. `py:` looks there too.
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - an entry of sys.path
    del sys.path[0]

from deploykit.cli.app import main

main()
