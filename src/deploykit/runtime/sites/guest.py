"""Guests: the Python that an emulated processor runs, with deploykit and the runtimes for its instruction set.

A processor with this machine's own instruction set runs this environment's Python and libraries. Any other needs a sysroot: a
folder with that Python and what it is linked with, and wheels beside it. Both are kept in deploykit's cache folder, made by
`deploykit site add`; what isn't whole isn't there, for the record of it is moved into place with them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from deploykit import serde
from deploykit.artifact import RunConfig
from deploykit.errors import BadInputError, Hint, MissingComponentError
from deploykit.folders import cache_folder
from deploykit.runtime import processors
from deploykit.runtime.backends.base import Session, Tensor
from deploykit.runtime.child import Interpreter
from deploykit.runtime.processors import Processor
from deploykit.runtime.sites import qemu
from deploykit.runtime.sites.table import SITES, Architecture, Site
from deploykit.runtime.worker import Described, WorkerSession, describe, open_in_worker
from deploykit.verdict import Executed

RECORD: Final = "site.json"
#: Parts of a sysroot's folder: its root where it was made, wheels, what its Python compiled.
ROOT, PACKAGES, COMPILED = "root", "packages", "compiled"
#: Where a root may have its Python.
_BINARIES: Final = ("usr/bin", "usr/local/bin")
_PYTHON: Final = re.compile(r"python3\.(\d{1,2})")
_OLDEST: Final = 10


@dataclass(frozen=True)
class Installed:
    """What `deploykit site add` has put into place for an architecture.

    Attributes:
        qemu: The emulator that the user named; "" for the one on PATH.
        root: Folder of the sysroot; "" where none is needed. Relative to the record's folder where it was made there.
        libraries: Versions of what was installed into `PACKAGES`, by distribution.
        origin: What the sysroot was made of, for people.
    """

    qemu: str = ""
    root: str = ""
    libraries: Mapping[str, str] | None = None
    origin: str = ""


@dataclass(frozen=True)
class Guest:
    """An emulated processor that can run.

    Attributes:
        site: Which.
        emulator: What runs it.
        installed: What there is for its architecture.
        folder: Of the record.
    """

    site: Site
    emulator: qemu.Emulator
    installed: Installed
    folder: Path

    @property
    def processor(self) -> Processor:
        """Its class."""
        return next(one for one in processors.CLASSES if one.name == self.site.processor)

    @property
    def root(self) -> Path | None:
        """The sysroot; None where this machine's own libraries are used."""
        return self.folder / self.installed.root if self.installed.root else None

    def interpreter(self, limit_s: float | None = None) -> Interpreter:
        """Return what runs a worker in it."""
        words = [str(self.emulator.path), "-cpu", self.site.cpu]
        title, remedy = (
            f"the Python of site {self.site.name}",
            Hint(f"deploykit site add {self.site.name}", "makes it anew"),
        )
        if self.root is None:
            own = Interpreter.own()
            apart = {key: value for key, value in own.environment.items() if not key.startswith("QEMU_")}
            return Interpreter(title, (*words, *own.words), apart, (), limit_s)
        apart = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(self.folder / PACKAGES), str(_own_code())]),
            "PYTHONPYCACHEPREFIX": str(self.folder / COMPILED),
            "PYTHONNOUSERSITE": "1",
        }
        return Interpreter(title, (*words, "-L", str(self.root), str(python_of(self.root))), apart, (remedy,), limit_s)

    def describe(self, limit_s: float | None = None) -> Described:
        """Return what its worker says of itself, where that is what the site promises. Raises what it and `admit` do."""
        found = describe(self.interpreter(limit_s))
        self.admit(found)
        return found

    def admit(self, found: Described) -> None:
        """Refuse a worker on another processor than this site's.

        Raises:
            MissingComponentError: It answers to have other features.
        """
        answered = next(one for one in processors.CLASSES if one.is_of(found.arch, found.flags))
        if answered.name != self.site.processor:
            raise MissingComponentError(
                f"site {self.site.name} promises a processor of class {self.site.processor}; {self.emulator.path} "
                f"-cpu {self.site.cpu} answers as {answered.name} ({found.arch}, {', '.join(found.flags) or 'no features'})"
            )

    def open(self, path: Path, run: RunConfig, limit_s: float | None, progress: Callable[[int], None]) -> GuestSession:
        """Open a file in a worker on it.

        Args:
            path: The file.
            run: How to run it.
            limit_s: Seconds after which the worker is ended.
            progress: Called with the rows that were inferred so far.

        Raises:
            DeploykitError: What `open_in_worker` and `admit` raise.
        """
        interpreter = self.interpreter(limit_s)
        return GuestSession(
            open_in_worker(str(path.resolve()), run, interpreter=interpreter, admit=self.admit), progress
        )


class GuestSession(Session):
    """A session of a worker, which tells how far it is."""

    def __init__(self, worker: WorkerSession, progress: Callable[[int], None]) -> None:
        super().__init__(worker.inputs, worker.outputs, worker.ran)
        self._worker = worker
        self._progress = progress
        self._rows = 0

    @property
    def metadata(self) -> Mapping[str, str]:
        """As the worker has it."""
        return self._worker.metadata

    @property
    def overdue(self) -> str:
        """As the worker has it."""
        return self._worker.overdue

    def executed(self, feeds: Mapping[str, Tensor]) -> tuple[Executed, ...]:
        """Do what the worker does."""
        return self._worker.executed(feeds)

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answered = self._worker.infer(feeds)
        self._rows += next((array.shape[0] for array in feeds.values() if array.shape), 1)
        self._progress(self._rows)
        return answered

    def _close(self) -> None:
        self._worker.close()


def folder_of(architecture: Architecture) -> Path:
    """Return where what an architecture needs is kept.

    Raises:
        MissingComponentError: Nothing says where caches are kept.
    """
    return sites_folder() / architecture.name


def sites_folder() -> Path:
    """Return the folder of all of them. Raises what `folder_of` does."""
    try:
        return cache_folder().absolute() / "sites"
    except ImportError as error:
        raise MissingComponentError(
            "nothing says where deploykit may keep files: platformdirs is not installed",
            Hint("DEPLOYKIT_CACHE=DIR", "names a folder"),
        ) from error


def installed_for(architecture: Architecture) -> Installed | None:
    """Return what was put into place for an architecture; None where nothing was.

    Raises:
        MissingComponentError: Its record can't be read, or nothing says where caches are kept.
    """
    path = folder_of(architecture) / RECORD
    try:
        return serde.from_json(Installed, serde.parse(path.read_bytes()), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, BadInputError) as error:
        told = error.message if isinstance(error, BadInputError) else str(error)
        raise MissingComponentError(
            f"the record of what was made for {architecture.name} can't be read: {told}",
            *(
                Hint(f"deploykit site add {site.name}", "makes it anew")
                for site in SITES
                if site.architecture == architecture
            ),
        ) from error


def guest_of(site: Site) -> Guest:
    """Return a site as it can run here.

    Raises:
        MissingComponentError: QEMU or the sysroot is not here; the hints get it.
    """
    installed = installed_for(site.architecture)
    chosen = Path(installed.qemu) if installed is not None and installed.qemu else None
    emulator = qemu.find(site.architecture, chosen)
    folder = folder_of(site.architecture)
    if site.architecture.is_own:
        return Guest(site, emulator, Installed(qemu=installed.qemu if installed else ""), folder)
    if installed is None or not installed.root:
        raise MissingComponentError(
            f"site {site.name} has no Python and no libraries for {site.architecture.name} yet",
            Hint(f"deploykit site add {site.name}", "makes them of Debian's packages and wheels, about 300 MB"),
        )
    guest = Guest(site, emulator, installed, folder)
    if guest.root is not None:
        python_of(guest.root)
    return guest


def python_of(root: Path) -> Path:
    """Return the newest Python in a sysroot.

    Raises:
        MissingComponentError: There is none that runs deploykit.
    """
    found: list[tuple[int, Path]] = []
    for folder in _BINARIES:
        for path in (root / folder).glob("python3.*"):
            match = _PYTHON.fullmatch(path.name)
            if match and path.is_file() and int(match[1]) >= _OLDEST:
                found.append((int(match[1]), path))
    if not found:
        raise MissingComponentError(
            f"{root} has no Python 3.{_OLDEST} or newer in {' or '.join(_BINARIES)}: it is no sysroot, or not whole"
        )
    return max(found)[1]


def _own_code() -> Path:
    """Return a folder with this deploykit alone: what else lies beside it is for another processor.

    Its name tells its content, so that what a guest's Python compiles is found again.
    """
    source = Path(__file__).resolve().parents[2]
    found = metadata.distribution("deploykit")
    texts = {name: found.read_text(name) or "" for name in ("METADATA", "entry_points.txt")}
    mark = hashlib.sha256("\0".join([str(source), *texts.values()]).encode()).hexdigest()[:16]
    folder = sites_folder() / "code" / mark
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        (made / "deploykit").symlink_to(source, target_is_directory=True)
        info = made / f"deploykit-{found.version}.dist-info"
        info.mkdir()
        for name, text in texts.items():
            (info / name).write_text(text, encoding="utf-8")
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was first
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder
