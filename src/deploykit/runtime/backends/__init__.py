"""One file per inference runtime, each behind the protocol of `base`."""
