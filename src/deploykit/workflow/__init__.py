"""The only place that joins originals, stages and runtime."""
