"""Virtual sites: processors that aren't here, emulated by QEMU, so that the real runtimes' kernels for them run."""
