"""Files of the Hugging Face hub: from its local cache, else from the hub itself."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

#: Files that repositories keep a network's weights in, best first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Patience for the hub to answer at all.
CONNECT_SECONDS = 5.0


def fetch(repository: str, candidates: Sequence[str]) -> Path | None:
    """Find a file of a repository in the local cache, else on the hub.

    Args:
        repository: Such as "timm/resnet18.a1_in1k".
        candidates: Names of files, best first.

    Returns:
        The first of them that there is; None where the repository has none.

    Raises:
        ConnectionError: None is in the cache, and the hub can't be reached or doesn't give it.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for candidate in candidates:
        cached = huggingface_hub.try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    if huggingface_hub.constants.HF_HUB_OFFLINE or not _is_reachable(huggingface_hub.constants.ENDPOINT):
        raise ConnectionError
    for candidate in candidates:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, candidate))
        except LocalEntryNotFoundError as error:  # its name says "not found", its meaning is "not reached"
            raise ConnectionError from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise ConnectionError(str(error)) from error
    return None


def _is_reachable(endpoint: str) -> bool:
    """Tell at once what the hub's client finds out after half a minute of trying again: whether it, or its proxy, answers."""
    hub = urllib.parse.urlparse(endpoint)
    proxies = {} if urllib.request.proxy_bypass(hub.hostname or "") else urllib.request.getproxies()
    address = proxies.get(hub.scheme) or proxies.get("all") or endpoint
    host = urllib.parse.urlparse(address if "//" in address else f"//{address}")
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
