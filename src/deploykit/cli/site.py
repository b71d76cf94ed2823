"""`deploykit site`: the processors that can be emulated here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deploykit.runtime.worker import Described
    from deploykit.workflow.sites import State

NAME = "site"
HELP = "Processors that aren't here, emulated by QEMU: which are ready, and what they need. `deploykit verify --on` uses them."
EXAMPLES = {
    "list": ("deploykit site list", "deploykit site list --json"),
    "add": (
        "deploykit site add avx2",
        "deploykit site add arm64",
        "deploykit site add arm64 --qemu ~/qemu/usr/bin/qemu-aarch64",
        "deploykit site add arm64 --sysroot ~/raspberry-pi",
    ),
    "remove": ("deploykit site remove arm64",),
}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the site, as `deploykit site list` has it.")]


def list_sites(as_json: Json = False) -> None:
    """List the processors that can be emulated, and what those that are not ready lack."""
    from deploykit.cli import render
    from deploykit.workflow.sites import states

    found = states()
    if as_json:
        render.print_json({"sites": [_record(state) for state in found]})
        return
    from rich.table import Table

    console = render.out()
    grid = Table("site", "class", "ready", "like", box=None)
    for state in found:
        grid.add_row(state.site.name, state.site.processor, "✔" if state.guest else "–", state.site.title)
    console.print(grid)
    for reason, names in _reasons(found).items():
        console.print(f"– {', '.join(names)}: {reason}", markup=False)
    for action, effect in dict.fromkeys(
        (hint.action, hint.effect) for state in found if state.error for hint in state.error.hints
    ):
        console.print(f"  use {action}   {effect}".rstrip(), markup=False)


def _reasons(found: tuple[State, ...]) -> dict[str, list[str]]:
    """Return the sites that are not ready by what they lack."""
    reasons: dict[str, list[str]] = {}
    for state in found:
        if state.error is not None:
            reasons.setdefault(state.error.message.replace(f"site {state.site.name} has", "there is"), []).append(
                state.site.name
            )
    return reasons


def _record(state: State) -> dict[str, Any]:
    from deploykit.cli import render
    from deploykit.serde import to_json

    guest = state.guest
    return {
        "name": state.site.name,
        "processor": state.site.processor,
        "architecture": state.site.architecture.name,
        "cpu": state.site.cpu,
        "title": state.site.title,
        "ready": guest is not None,
        "emulator": str(guest.emulator.path) if guest else None,
        "version": ".".join(map(str, guest.emulator.version)) if guest else None,
        "installed": to_json(guest.installed) if guest else None,
        **(render.error_record(state.error) if state.error else {"error": None}),
    }


def add(
    name: Name,
    sysroot: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A sysroot that is there already, with a Python: such as a device's, unpacked."
        ),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Of Debian's packages, else deb.debian.org.")
    ] = None,
    qemu: Annotated[
        Path | None, typer.Option(metavar="FILE", help="QEMU's user-mode program for it, else the one on PATH.")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Runtimes that it gets, else all that are installed here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put into place what a processor needs to be emulated, and try it.

    One with this machine's instruction set needs QEMU 9 or newer alone. Another needs a sysroot, made of Debian's packages
    and of wheels in the very versions that are installed here: about 300 MB in deploykit's cache folder. Exit code 5 where
    something can't be had; nothing half-made is left.
    """
    from deploykit.cli import render
    from deploykit.runtime.sites.table import SITES, get_site
    from deploykit.workflow.sites import AddOptions
    from deploykit.workflow.sites import add as add_site

    options = AddOptions(
        sysroot=str(sysroot) if sysroot else None,
        mirror=mirror,
        qemu=str(qemu) if qemu else None,
        runtimes=tuple(runtime or ()),
    )
    found = add_site(name, options, _steps(quiet=as_json))
    site = get_site(name)
    ready = [one.name for one in SITES if one.architecture == site.architecture]
    if as_json:
        from deploykit.serde import to_json

        render.print_json({"site": name, "ready": ready, "runs": to_json(found)})
        return
    console = render.out()
    console.print(f"added   {name}: {_told(found)}", markup=False)
    others = [one for one in ready if one != name]
    if others:
        console.print(f"also    {', '.join(others)}", markup=False)
    console.print(f"next    deploykit verify BUNDLE --on {','.join(ready)}", markup=False)


def _told(found: Described) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in found.libraries.items())
    return f"Python {found.python} on {found.arch} with {', '.join(found.flags) or 'no special units'}; {libraries}"


def _steps(*, quiet: bool) -> Callable[[str], None]:
    """Return what writes a line on stderr as something begins."""
    from deploykit.cli import render

    start = time.monotonic()

    def step(text: str) -> None:
        if not quiet:
            render.err().print(f"  {time.monotonic() - start:5.1f} s   {text}", markup=False)

    return step


def remove(name: Name, as_json: Json = False) -> None:
    """Remove what was put into place for a processor; a sysroot of yours stays where it is."""
    from deploykit.cli import render
    from deploykit.workflow.sites import remove as remove_site

    names = [site.name for site in remove_site(name)]
    if as_json:
        render.print_json({"removed": names})
        return
    render.out().print(f"removed what {', '.join(names)} had", markup=False)


COMMANDS = {"list": list_sites, "add": add, "remove": remove}
