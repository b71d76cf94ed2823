"""What TensorRT measured of its kernels on one GPU, kept from one build to the next.

A file is for one version of the library, one GPU and one driver, and begins with the SHA-256 of the rest: the library parses
what it is given, so nothing is given to it that isn't what it wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploykit.folders import cache_folder
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.tensorrt_library import Flavour

_FOLDER: Final = "timings"
_DIGEST: Final = hashlib.sha256().digest_size


@dataclass(frozen=True)
class TimingCache:
    """One such file.

    Attributes:
        path: Where it is, or will be.
    """

    path: Path

    def read(self) -> bytes:
        """Return what the library wrote last; nothing where there is none, or it has changed since."""
        try:
            whole = self.path.read_bytes()
        except OSError:
            return b""
        digest, kept = whole[:_DIGEST], whole[_DIGEST:]
        return kept if hashlib.sha256(kept).digest() == digest else b""

    def write(self, kept: bytes) -> None:
        """Keep what the library wrote, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(kept).digest() + kept)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def timing_cache(flavour: Flavour, version: str, device: str) -> TimingCache | None:
    """Return the cache for a version of a library on a device; None where it times nothing, or there is no cache folder.

    Raises:
        MissingComponentError: No driver, no GPU, or no such device.
    """
    if not flavour.times:
        return None
    name = re.sub(r"[^\w.]+", "-", f"{flavour.module} {version} {cuda.place(device)}")
    try:
        return TimingCache(cache_folder() / _FOLDER / name)
    except ImportError:
        return None
