"""Nothing that deploykit does tells anybody: the reporting of the libraries below it is switched off before they are imported.

- ONNX Runtime (1.29 and later, official builds) uploads events from native code unless ORT_DISABLE_TELEMETRY is set before it
  is initialized; its own API comes too late for the first event.
- OpenVINO reports its mere import from Python. Where the package `openvino_telemetry` is absent it uses a stub of its own: in
  this process it is absent.
- huggingface_hub, which timm and diffusers use, honours HF_HUB_DISABLE_TELEMETRY.

A choice that the surrounding program has made already is left as it is.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Final, cast

VARIABLES: Final = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
ABSENT_MODULE: Final = "openvino_telemetry"


def switch_off() -> None:
    """Switch it off in this process and those that it starts. Call it before a runtime is imported; twice is harmless."""
    for name in VARIABLES:
        os.environ.setdefault(name, "1")
    sys.modules.setdefault(ABSENT_MODULE, cast("ModuleType", None))
