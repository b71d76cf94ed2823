"""Is a component here, which version is it, and how does a user get it?

Nothing is imported to answer: a component is looked for by its module's spec and its distribution's metadata, so asking is
cheap and safe. A component that is installed but broken is never reported as absent: the import error of the file that uses
it speaks for itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from deploykit.errors import Hint, MissingComponentError


@dataclass(frozen=True)
class Component:
    """An optional library.

    Attributes:
        title: The name that users know.
        module: The module that is imported.
        distributions: Packages that provide it, the usual one first.
        extra: deploykit's extra that brings it.
        purpose: What it is needed for, to finish the sentence "needed to ...".
    """

    title: str
    module: str
    distributions: tuple[str, ...]
    extra: str
    purpose: str

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install 'deploykit[{self.extra}]'"

    def is_here(self) -> bool:
        """Tell whether it is installed, whatever its version: without reading what its packages say of themselves."""
        return importlib.util.find_spec(self.module) is not None

    def version(self) -> str | None:
        """Return the installed version, or None where the component is absent."""
        if not self.is_here():
            return None
        for distribution in self.distributions:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return "unknown"

    def require(self) -> str:
        """Return the installed version.

        Raises:
            MissingComponentError: It is not installed; the message carries the install line.
        """
        self.check()
        return self.version() or "unknown"

    def check(self) -> None:
        """Check that it is installed, within a microsecond.

        Raises:
            MissingComponentError: As `require` does.
        """
        if not self.is_here():
            raise MissingComponentError(
                f"{self.title} is not installed here (needed to {self.purpose})", Hint(self.install)
            )


COMPONENTS: dict[str, Component] = {
    component.module: component
    for component in (
        Component("PyTorch", "torch", ("torch",), "export", "open PyTorch originals"),
        Component("timm", "timm", ("timm",), "export", "build timm models"),
        Component("safetensors", "safetensors", ("safetensors",), "export", "read weights"),
        Component("ONNX", "onnx", ("onnx",), "export", "write ONNX files"),
        Component("ONNX IR", "onnx_ir", ("onnx-ir",), "export", "edit ONNX graphs"),
        Component("onnxscript", "onnxscript", ("onnxscript",), "export", "translate PyTorch programs to ONNX"),
        Component("onnxsim", "onnxsim", ("onnxsim",), "export", "simplify ONNX graphs"),
        Component("ONNX Runtime", "onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "ort", "run ONNX files"),
        Component("OpenVINO", "openvino", ("openvino",), "openvino", "build and run OpenVINO models"),
        Component("TensorRT", "tensorrt", ("tensorrt",), "trt", "build and run TensorRT engines"),
        Component("TensorRT for RTX", "tensorrt_rtx", ("tensorrt-rtx",), "trt-rtx", "build and run RTX engines"),
        Component(
            "TensorRT for RTX in ONNX Runtime",
            "onnxruntime_ep_nv_tensorrt_rtx",
            ("onnxruntime-ep-nv-tensorrt-rtx",),
            "ort-rtx",
            "run ONNX files by TensorRT for RTX",
        ),
        Component("NVIDIA's management library", "pynvml", ("nvidia-ml-py",), "gpu", "read a GPU's clocks"),
        Component("transformers", "transformers", ("transformers",), "hf", "open models of transformers"),
        Component("diffusers", "diffusers", ("diffusers",), "diffusion", "open diffusion models"),
        Component("Pillow", "PIL", ("pillow",), "verify", "read images"),
        Component("SciPy", "scipy", ("scipy",), "verify", "put confidence bounds on task gates"),
        Component("Jinja", "jinja2", ("jinja2",), "verify", "write a report as HTML"),
        Component("platformdirs", "platformdirs", ("platformdirs",), "export", "find the cache folder"),
    )
}


def require(*modules: str) -> dict[str, str]:
    """Return the versions of `modules` (keys of `COMPONENTS`).

    Raises:
        MissingComponentError: The first one that is not installed.
    """
    return {module: COMPONENTS[module].require() for module in modules}


def check(*modules: str) -> None:
    """Check that `modules` are installed: for what is done thousands of times, since it reads no versions.

    Raises:
        MissingComponentError: The first one that is not.
    """
    for module in modules:
        COMPONENTS[module].check()


def installed(modules: Iterable[str] | None = None) -> dict[str, str]:
    """Return module name to version for those of `modules` (default: all known) that are installed."""
    names = COMPONENTS if modules is None else modules
    found = {name: COMPONENTS[name].version() for name in names}
    return {name: version for name, version in found.items() if version is not None}
