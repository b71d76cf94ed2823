"""int8 in the graph: which tensors, on which grid, with which corrections, and how each target wants it written."""
