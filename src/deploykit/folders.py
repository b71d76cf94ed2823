"""Where deploykit keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $DEPLOYKIT_CACHE, else deploykit's folder in the user's cache folder.

    Raises:
        ImportError: Neither is that variable set, nor is platformdirs installed.
    """
    chosen = os.environ.get("DEPLOYKIT_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("deploykit", appauthor=False))
