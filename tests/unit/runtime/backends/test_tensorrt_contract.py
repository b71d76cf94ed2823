"""Every name of TensorRT that deploykit uses is one that both libraries have, RTX's own where it is alone."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
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


def test_what_was_dumped_is_what_is_installed() -> None:
    version = COMPONENTS["tensorrt_rtx"].version()
    if version != recorded("tensorrt_rtx")["version"]:
        pytest.skip(f"tensorrt-rtx {recorded('tensorrt_rtx')['version']} was dumped; here is {version or 'none'}")
    assert dump(importlib.import_module("tensorrt_rtx")) == recorded("tensorrt_rtx")


@pytest.fixture
def stubs(tmp_path: Path) -> list[str]:
    """Libraries of the names that the native bindings link to."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc here")
    made = []
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        path = tmp_path / f"lib{name}.so.11"
        source = str(Path(__file__).parent / "native_stubs.c")
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", source, "-o", str(path)], check=True)
        made.append(str(path))
    return made


NATIVE = """
import ctypes, json, sys
for path in sys.argv[1:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
import tensorrt_bindings
from tests.unit.runtime.backends.tensorrt_api import dump
try:
    tensorrt_bindings.Builder(tensorrt_bindings.Logger())
    refused = ""
except TypeError as error:
    refused = str(error)
print(json.dumps({"dump": dump(tensorrt_bindings), "refused": refused}))
"""


def test_what_was_dumped_of_the_native_library_is_what_its_bindings_have(stubs: list[str]) -> None:
    wanted = recorded("tensorrt")["version"]
    try:
        version = metadata.version("tensorrt-cu13-bindings")
    except metadata.PackageNotFoundError:
        version = "none"
    if version != wanted:
        pytest.skip(f"tensorrt-cu13-bindings {wanted} was dumped; here is {version}")
    done = subprocess.run([sys.executable, "-c", NATIVE, *stubs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["dump"] == recorded("tensorrt")
    assert "nullptr" in told["refused"], "there is no TensorRT behind the stubs"
