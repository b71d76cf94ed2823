"""Sites: put into place what emulated processors need, tell what is there, and take it away."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from deploykit import optional, paths, serde
from deploykit.errors import DeploykitError, Hint, MissingComponentError, ResourceError, UsageError
from deploykit.runtime.backends.base import CPU, backend_names, get_backend
from deploykit.runtime.sites import qemu
from deploykit.runtime.sites.guest import (
    COMPILED,
    PACKAGES,
    RECORD,
    ROOT,
    Guest,
    Installed,
    folder_of,
    guest_of,
    installed_for,
    sites_folder,
)
from deploykit.runtime.sites.table import SITES, Architecture, Site, get_site
from deploykit.runtime.worker import Described

MIRROR: Final = "http://deb.debian.org/debian"
#: Debian's releases, with the minor version of their Python 3. A guest has the first that isn't older than this one.
SUITES: Final = (("bookworm", 11), ("trixie", 13))
#: What a guest's Python needs beside what its own package does, as the runtimes' wheels are linked with it.
LINKED: Final = ("libgomp1", "libstdc++6")
#: Least glibc that wheels for Arm are built for.
_OLDEST_GLIBC: Final = 17
_MIRRORS: Final = re.compile(r"(https?|file)://[!-~]+")
#: Seconds: for a whole download, for a guest's Python to start and import everything.
_DOWNLOAD_SECONDS: Final = 1800
_START_SECONDS: Final = 300
_TAIL_LINES: Final = 12
#: What a guest's Python is asked before there are libraries for it.
_ASK: Final = "import json, os, sys; print(json.dumps([*sys.version_info[:2], os.confstr('CS_GNU_LIBC_VERSION')]))"

Step = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AddOptions:
    """How a site is put into place.

    Attributes:
        sysroot: Folder of a sysroot that is there already; None makes one.
        mirror: Of Debian's packages.
        qemu: The emulator; None takes the one that was named before, or the one on PATH.
        runtimes: Backends that the guest gets; () gives it all that are installed here and run on processors.
    """

    sysroot: str | None = None
    mirror: str | None = None
    qemu: str | None = None
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """A site, and whether it can run here.

    Attributes:
        site: Which.
        guest: What runs; None where something is missing.
        error: What is missing, and what gets it.
    """

    site: Site
    guest: Guest | None
    error: DeploykitError | None


def states() -> tuple[State, ...]:
    """Return every site, and whether it is ready."""
    return tuple(map(_state, SITES))


def _state(site: Site) -> State:
    try:
        return State(site, guest_of(site), None)
    except MissingComponentError as error:
        return State(site, None, error)


def add(name: str, options: AddOptions | None = None, step: Step = lambda _: None) -> Described:
    """Put into place what a site needs, and try it.

    Args:
        name: Of the site.
        options: How.
        step: Called with what is done next.

    Returns:
        What a worker on it says of itself.

    Raises:
        UsageError: No such site, or options that it can't have.
        MissingComponentError: QEMU, mmdebstrap or pip is not here, or what was made doesn't run.
        ResourceError: Packages can't be had, or nothing can be written.
    """
    options, site = options or AddOptions(), get_site(name)
    architecture = site.architecture
    _check(options, architecture)
    emulator = _emulator(architecture, options.qemu)
    told = str(emulator.path) if options.qemu or emulator.path != _on_path(architecture) else ""
    with _made_beside(architecture) as made:
        installed = Installed(qemu=told)
        if not architecture.is_own:
            installed = _sysroot(Guest(site, emulator, installed, made), options, step)
        step(f"starts on {site.name} ({emulator.path.name} {'.'.join(map(str, emulator.version))}, -cpu {site.cpu})")
        found = Guest(site, emulator, installed, made).describe(_START_SECONDS)
        if not found.libraries:
            raise MissingComponentError(
                f"the Python of site {name} finds no runtime: {installed.origin or 'nothing installed'}"
            )
        (made / RECORD).write_text(json.dumps(serde.to_json(installed), indent=2) + "\n", encoding="utf-8")
    return found


def remove(name: str) -> tuple[Site, ...]:
    """Remove what was put into place for a site; a sysroot that a user named stays.

    Returns:
        The sites that it was there for.

    Raises:
        UsageError: No such site, or nothing is kept for it.
    """
    architecture = get_site(name).architecture
    folder = folder_of(architecture)
    if not folder.exists():
        raise UsageError(f"nothing is kept for site {name}: there is no {folder}")
    _delete(folder)
    return tuple(site for site in SITES if site.architecture == architecture)


def _check(options: AddOptions, architecture: Architecture) -> None:
    """Refuse options that would be ignored, or can't be."""
    given = [field for field in ("sysroot", "mirror", "runtimes") if getattr(options, field)]
    if architecture.is_own and given:
        raise UsageError(
            f"{' and '.join(given)}: {architecture.name} is this machine's own instruction set, whose sites run this "
            "environment's Python and libraries"
        )
    if options.sysroot and options.mirror:
        raise UsageError("a sysroot that is there and a mirror to make one from: it is one or the other")
    if options.sysroot is not None and not Path(options.sysroot).is_dir():
        raise UsageError(f"{paths.shown(options.sysroot)} is no folder")
    if options.mirror is not None and not _MIRRORS.fullmatch(options.mirror):
        raise UsageError(f"{options.mirror[:80]!r} is no address of a mirror: expected http://, https:// or file://")
    known = [name for name in backend_names() if _is_portable(name)]
    strange = [name for name in options.runtimes if name not in known]
    if strange:
        raise UsageError(
            f"{strange[0][:80]!r} is no runtime for processors that is installed here: there are {', '.join(known)}"
        )


def _is_portable(name: str) -> bool:
    """Tell whether a backend is here and runs files on processors."""
    backend = get_backend(name)
    return (
        CPU in backend.devices
        and bool(backend.suffixes)
        and not backend.stands_in
        and bool(backend.component.version())
    )


def _emulator(architecture: Architecture, chosen: str | None) -> qemu.Emulator:
    """Return the emulator that is named, the one that was named before, or the one on PATH."""
    if chosen is not None:
        return qemu.find(architecture, Path(chosen))
    with contextlib.suppress(MissingComponentError):
        before = installed_for(architecture)
        if before is not None and before.qemu:
            return qemu.find(architecture, Path(before.qemu))
    return qemu.find(architecture)


def _on_path(architecture: Architecture) -> Path | None:
    try:
        return qemu.find(architecture).path
    except MissingComponentError:
        return None


def _sysroot(guest: Guest, options: AddOptions, step: Step) -> Installed:
    """Make a sysroot in a guest's folder, or take the one that is named; give it libraries where it has none."""
    architecture = guest.site.architecture
    if options.sysroot is None:
        suite, minor = next((one for one in SUITES if one[1] >= sys.version_info.minor), SUITES[-1])
        mirror = options.mirror or MIRROR
        origin = f"Debian {suite} from {mirror}"
        step(f"sysroot: {origin}")
        _debootstrap(architecture, suite, minor, guest.folder / ROOT, mirror)
        installed = replace(guest.installed, root=ROOT, origin=origin)
    else:
        root = Path(options.sysroot).resolve()
        installed = replace(guest.installed, root=str(root), origin=str(root))
    guest = replace(guest, installed=installed)
    if options.sysroot is not None and _brings_libraries(guest):
        return installed
    wanted = _libraries(options.runtimes)
    step(f"wheels for {architecture.wheels}: {', '.join(f'{key} {version}' for key, version in wanted.items())}")
    _install(guest, wanted)
    return replace(installed, libraries=wanted)


def _brings_libraries(guest: Guest) -> bool:
    """Tell whether a sysroot's Python finds numpy and a runtime by itself."""
    try:
        return bool(guest.describe(_START_SECONDS).libraries)
    except MissingComponentError:
        return False


def _libraries(runtimes: Sequence[str]) -> dict[str, str]:
    """Return what a guest needs, by distribution, in the versions that are here."""
    chosen = runtimes or [name for name in backend_names() if _is_portable(name)]
    components = [get_backend(name).component for name in chosen]
    numpy = optional.Component("numpy", "numpy", ("numpy",), "", "")
    return {one.distributions[0]: one.require() for one in (numpy, *components)}


def _debootstrap(architecture: Architecture, suite: str, minor: int, root: Path, mirror: str) -> None:
    """Unpack Debian's packages of a Python and what it is linked with. Nothing of them runs."""
    program, *mode = qemu.unpacking()
    if shutil.which(program) is None:
        raise MissingComponentError(
            "mmdebstrap is not installed here (needed to unpack Debian's packages for another processor)",
            Hint("apt-get install mmdebstrap debian-archive-keyring"),
            Hint("deploykit site add NAME --sysroot DIR", "takes a folder that has a Python for it"),
        )
    include = ",".join((f"python3.{minor}", *LINKED))
    words = [program, *mode, "--format=directory", f"--arch={architecture.debian}"]
    _run([*words, f"--include={include}", suite, str(root), mirror], f"Debian's packages of {mirror}")


def _install(guest: Guest, wanted: Mapping[str, str]) -> None:
    """Install wheels for a guest's Python and libc, without a part of them running."""
    if importlib.util.find_spec("pip") is None:
        raise MissingComponentError(
            f"{sys.executable} has no pip (needed to get wheels for {guest.site.architecture.wheels})",
            Hint(f"{sys.executable} -m ensurepip"),
        )
    (major, minor), glibc = _asked(guest)
    suffix = guest.site.architecture.wheels
    tags = [f"manylinux_2_{number}_{suffix}" for number in range(glibc, _OLDEST_GLIBC - 1, -1)]
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-compile",
    ]
    words += ["--no-deps", "--only-binary=:all:", "--target", str(guest.folder / PACKAGES)]
    words += ["--implementation=cp", f"--python-version={major}.{minor}"]
    words += [f"--platform={tag}" for tag in (*tags, f"manylinux2014_{suffix}")]
    words += [f"--abi={abi}" for abi in (f"cp{major}{minor}", "abi3", "none")]
    _run([*words, *(f"{name}=={version}" for name, version in wanted.items())], f"wheels for {suffix}")


def _asked(guest: Guest) -> tuple[tuple[int, int], int]:
    """Return the version of a guest's Python, and the minor version of its glibc."""
    root = guest.root
    command = [*guest.interpreter().words, "-c", _ASK]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=_START_SECONDS,
        stdin=subprocess.DEVNULL,
        env=dict(guest.interpreter().environment),
    )
    try:
        major, minor, libc = json.loads(done.stdout)
        return (int(major), int(minor)), int(libc.removeprefix("glibc ").split(".")[1])
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise MissingComponentError(
            f"the Python in {root} doesn't run: {_tail(done.stderr) or done.returncode}"
        ) from error


def _run(words: Sequence[str], what: str) -> None:
    """Run a program to its end, with all that it starts.

    Raises:
        ResourceError: It fails, or takes too long; the message has the end of what it said.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=pipe, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=_DOWNLOAD_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ResourceError(f"{what}: not there after {_DOWNLOAD_SECONDS} s") from error
            raise
    if process.returncode:
        raise ResourceError(f"{what} can't be had: {Path(words[0]).name} ends with {process.returncode}\n{_tail(said)}")


def _tail(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines)


@contextlib.contextmanager
def _made_beside(architecture: Architecture) -> Iterator[Path]:
    """Yield a folder that takes the place of an architecture's once it is whole, and is gone where it doesn't become so."""
    final = folder_of(architecture)
    sites_folder().mkdir(parents=True, exist_ok=True)
    for left in sites_folder().glob(f".{architecture.name}-*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{architecture.name}-", dir=sites_folder()))
    try:
        yield made
        # What was compiled is filed under the path of its source.
        compiled = made / COMPILED / made.relative_to(made.anchor)
        if compiled.is_dir():
            compiled.rename(compiled.with_name(final.name))
        made.chmod(0o755)
        if final.exists():
            _delete(final)
        made.rename(final)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _delete(folder: Path) -> None:
    """Take a folder away at once, and then remove it: half of it never counts."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)
