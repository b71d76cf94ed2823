"""`python -m deploykit`."""

from deploykit.cli.app import main

main()
