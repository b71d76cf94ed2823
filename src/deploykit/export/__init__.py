"""From an original to artifacts: one file per stage, a plan that joins them, a pipeline that runs it."""
