"""Every name of TensorRT that deploykit uses is one that both libraries have, RTX's own where it is alone."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import deploykit
from deploykit.optional import COMPONENTS

from .tensorrt_api import dump, recorded

ROOT = Path(deploykit.__file__).parent
FILES = {
    ROOT / "export/engines/tensorrt_build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "profile": "IOptimizationProfile",
        "error": "ParserError",
    },
    ROOT / "runtime/backends/tensorrt.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "runtime_config": "IRuntimeConfig",
    },
    ROOT / "runtime/backends/tensorrt_library.py": {},
}
#: Functions that return at once, or are not called, for the native library.
RTX_ALONE = {"_aim", "_check_validity", "_runtime_config"}
#: What names stand for in these functions that is no TensorRT's.
OWN = {("_open", "engine"), ("_unbuilt", "error"), ("step_complete", "error"), ("unavailable", "error")}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def used(path: Path, names: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield function, class and attribute of every use; of the module itself the class is ""."""
    for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id == "trt":
                yield function.name, "", node.attr
            elif isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "trt":
                yield function.name, owner.attr, node.attr
            elif isinstance(owner, ast.Name) and owner.id in names and (function.name, owner.id) not in OWN:
                yield function.name, names[owner.id], node.attr


USES = sorted({use for path, names in FILES.items() for use in used(path, names)})


def test_the_scan_sees_what_is_used() -> None:
    seen = {(kind, attribute) for _, kind, attribute in USES}
    assert {
        ("", "OnnxParser"),
        ("BuilderFlag", "TF32"),
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "progress_monitor"),
        ("IOptimizationProfile", "set_shape"),
        ("ParserError", "node_name"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("IExecutionContext", "execute_async_v3"),
        ("", "ComputeCapability"),
    } <= seen
    assert len(seen) > 30


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_every_name_is_there(flavour: str) -> None:
    classes = recorded(flavour)["classes"]
    for function, kind, attribute in USES:
        if flavour == "tensorrt" and function in RTX_ALONE:
            continue
        names = classes if kind == "" else classes[kind]
        assert attribute in names, f"{flavour} has no {kind or 'module'}.{attribute}, which {function} uses"


def test_the_flags_that_once_set_a_precision_are_gone() -> None:
    for flavour in ("tensorrt", "tensorrt_rtx"):
        flags = set(recorded(flavour)["classes"]["BuilderFlag"])
        assert not flags & {"FP16", "BF16", "INT8", "FP8", "INT4"}
        assert "TF32" in flags


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_what_was_dumped_is_what_is_installed(flavour: str) -> None:
    version = COMPONENTS[flavour].version()
    if version != recorded(flavour)["version"]:
        pytest.skip(f"{flavour} {recorded(flavour)['version']} was dumped; here is {version or 'none'}")
    assert dump(importlib.import_module(flavour)) == recorded(flavour)
