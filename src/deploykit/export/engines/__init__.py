"""One file per target: what it accepts, and the stage that makes its files."""
