"""The PyTorch originals: families as data, sources, and an original as a Session."""
