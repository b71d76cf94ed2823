"""What the real binding modules offer of the classes that deploykit uses.

    python tests/unit/runtime/backends/tensorrt_api.py tensorrt_rtx > tests/unit/runtime/backends/tensorrt_rtx_api.json

The native bindings can't be imported without TensorRT's libraries; stubs of the functions that they link to are enough.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

CLASSES = (
    *(
        "Builder",
        "BuilderFlag",
        "DataType",
        "ErrorCode",
        "ExecutionContextAllocationStrategy",
        "IBuilderConfig",
        "ICudaEngine",
    ),
    *("IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor"),
    *("IRuntimeConfig", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime"),
    *("TensorIOMode", "ComputeCapability", "DynamicShapesKernelSpecializationStrategy", "EngineInvalidityDiagnostics"),
    *("CudaGraphStrategy", "EngineValidity", "Logger"),
)


def dump(module: Any) -> dict[str, Any]:
    """Return the version, and each class that is there with its public attributes."""
    return {
        "version": module.__version__,
        "classes": {
            name: [attribute for attribute in sorted(dir(getattr(module, name))) if not attribute.startswith("_")]
            for name in sorted(CLASSES)
            if hasattr(module, name)
        },
        "functions": sorted(name for name in ("nptype", "volume", "init_libnvinfer_plugins") if hasattr(module, name)),
    }


def recorded(flavour: str) -> dict[str, Any]:
    """Return what was dumped of "tensorrt" or "tensorrt_rtx"."""
    path = Path(__file__).parent / f"{flavour}_api.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dump(importlib.import_module(sys.argv[1])), indent=1) + "\n")
