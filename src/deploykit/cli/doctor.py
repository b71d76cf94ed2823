"""`deploykit doctor`: what this machine can build and run, and how to get the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deploykit.runtime.backends.base import Backend

EXAMPLES = (
    "deploykit doctor",
    "deploykit doctor --json",
)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Tell which components are here, what they allow, and the line that installs each missing one."""
    from deploykit.cli import render

    found = _findings()
    if as_json:
        render.print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    console = render.out()
    machine = found["machine"]
    console.print(f"{machine['cpu']} · {machine['cores']} cores · {', '.join(machine['flags']) or 'no special units'}")
    grid = Table("component", "version", "needed to", "get it with", box=None)
    for entry in found["components"]:
        install = Text("" if entry["version"] else entry["install"])
        grid.add_row(entry["title"], entry["version"] or "–", entry["purpose"], install)
    console.print(grid)
    for title, ready in (("export to", found["targets"]), ("run with", found["backends"])):
        words = [f"{name} ✔" if reason is None else f"{name} – {reason}" for name, reason in ready.items()]
        console.print(f"{title:<10} {' · '.join(words)}", markup=False)
    also = [name for name, reason in found["devices"].items() if reason is None]
    console.print(f"also on    {' · '.join(also) or 'no other device'}", markup=False)
    console.print(f"GPUs       {' · '.join(found['gpus'])}", markup=False)
    sums = [entry["text"] for entry in found["int8"]["runtimes"]]
    none = f"no runtime here to ask ({found['int8']['processor']})"
    console.print(f"int8 arithmetic   {' · '.join(sums) or none}", markup=False)
    console.print(f"cache      {found['cache']}", markup=False)
    for note in found["notes"]:
        console.print(f"note       {note}", markup=False)


COMMAND = doctor


def _findings() -> dict[str, Any]:
    from deploykit.manifest import Machine
    from deploykit.optional import COMPONENTS
    from deploykit.runtime.backends.base import backend_names, get_backend
    from deploykit.runtime.processors import here
    from deploykit.runtime.saturation import probe
    from deploykit.serde import to_json

    components = [
        {
            "title": component.title,
            "module": component.module,
            "version": component.version(),
            "purpose": component.purpose,
            "install": component.install,
        }
        for component in COMPONENTS.values()
    ]
    backends = {name: _lacking(get_backend(name)) for name in backend_names()}
    sums = probe()
    return {
        "machine": to_json(Machine.here()),
        "components": components,
        "targets": _targets(),
        "backends": backends,
        "devices": _devices(),
        "gpus": _gpus(),
        "int8": {
            "processor": here().name,
            "runtimes": [
                {**to_json(found), "contradicts": found.contradicts, "text": found.text, "warning": found.warning}
                for found in sums
            ],
        },
        "cache": _cache(),
        "notes": [*_notes(), *(found.warning for found in sums if found.warning)],
    }


def _lacking(backend: Backend) -> str | None:
    """Return why a backend can't run here, None where it can."""
    if backend.component.version() is None:
        return f"needs {backend.component.title}"
    return backend.unavailable(backend.default_run()) or None


def _devices() -> dict[str, str | None]:
    """Return each way to run on a further device that an installed backend has, and what it lacks."""
    from deploykit.runtime.backends.base import backend_names, get_backend

    backends = [backend for backend in map(get_backend, backend_names()) if backend.component.version()]
    return {
        " ".join([backend.name, way.device, *(f"{key}={value}" for key, value in way.hints.items())]): (
            backend.unavailable(way) or None
        )
        for backend in backends
        for device in backend.devices[1:]
        for way in backend.ways(backend.default_run(), device)
    }


def _gpus() -> list[str]:
    """Return NVIDIA's GPUs, or why there are none."""
    from deploykit.errors import MissingComponentError
    from deploykit.runtime.backends import cuda

    try:
        driver = cuda.driver()
    except MissingComponentError as error:
        return [error.message]
    return [f"{gpu.name} SM {gpu.capability}, {gpu.memory / 1e9:.0f} GB" for gpu in driver.gpus]


def _targets() -> dict[str, str | None]:
    """Return each target and what an export to it lacks first."""
    from deploykit.export.target import get_target, target_names
    from deploykit.optional import COMPONENTS

    if COMPONENTS["onnx"].version() is None:
        return dict.fromkeys(target_names(), f"needs {COMPONENTS['onnx'].title}")
    found: dict[str, str | None] = {}
    for name in target_names():
        needed = ("torch", "timm", "onnxscript", "onnxsim", *get_target(name).stage.libraries)
        lacking = [COMPONENTS[module].title for module in needed if COMPONENTS[module].version() is None]
        found[name] = f"needs {lacking[0]}" if lacking else None
    return found


def _cache() -> str:
    from deploykit.optional import COMPONENTS

    if COMPONENTS["platformdirs"].version() is None:
        return "none: needs platformdirs"
    from deploykit.export.cache import Cache

    root = Cache.default().root
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) if root.is_dir() else 0
    return f"{root} ({size / 1e6:.0f} MB; delete it at any time, DEPLOYKIT_CACHE=DIR moves it)"


def _notes() -> list[str]:
    from importlib import metadata

    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            both.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(both) > 1:
        return [f"{' and '.join(both)} own the same module and break one another: uninstall both, install one"]
    return []
