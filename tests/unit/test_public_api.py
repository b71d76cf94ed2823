"""The public names: listed once, all importable, none hiding a subpackage."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import deploykit


@pytest.mark.parametrize("name", deploykit.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    assert (getattr(deploykit, name).__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deploykit.nothing


def test_no_public_name_is_a_submodule() -> None:
    assert not set(deploykit.__all__) & {module.name for module in pkgutil.iter_modules(deploykit.__path__)}


def test_importing_deploykit_imports_nothing_heavy() -> None:
    program = "import sys, deploykit; print(sorted({'numpy', 'torch', 'onnx', 'rich', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
