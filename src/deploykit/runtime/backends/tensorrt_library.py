"""TensorRT and TensorRT for RTX: two libraries with one API. What differs is said here, as data, and nowhere else.

TensorRT keeps the first logger that it is given for as long as anything of it lives, and crashes where Python has freed it.
So each library has one logger here that lives as long as the process; what it hears goes to whoever listens.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deploykit.optional import COMPONENTS

#: Where in a plan its magic lies, and the four bytes of the version that wrote it.
MAGIC_AT, VERSION_AT = slice(0, 4), slice(24, 28)
#: What TensorRT puts around what it has to say.
_WRAPPING: Final = re.compile(
    r"^I\w+::\w+: |^Error Code \d+: |^(API Usage|Internal|Myelin) ?(Error )?|^\(?\[[\w/.]+:\d+: \w+\] | In \w+ at \S+\)?$"
)


@dataclass(frozen=True)
class Flavour:
    """One of the libraries.

    Attributes:
        module: What is imported; key of `deploykit.optional.COMPONENTS`, and name of the backend.
        magic: The first bytes of its plans.
        suffixes: Of files that hold its plans.
        hint: The line that installs a version of it.
        ahead: It builds without a GPU, for architectures that are named.
        times: It chooses kernels by timing them on the GPU, and can be told what it measured before.
        portable: Its plans run under any operating system.
        opsets: By major version, the last ONNX opset that it is known to take.
        without_kernels: Operators with the type of their first input, in ONNX's names, that it can't build, whatever its
            parser says.
    """

    module: str
    magic: bytes
    suffixes: tuple[str, ...]
    hint: str
    ahead: bool
    times: bool
    portable: bool
    opsets: Mapping[str, int]
    without_kernels: frozenset[tuple[str, str]] = frozenset()

    @property
    def title(self) -> str:
        """As people write it."""
        return COMPONENTS[self.module].title


#: Seen of TensorRT for RTX 1.7; TensorRT's own parser is of the same make.
_NO_BFLOAT16: Final = frozenset((operator, "BFLOAT16") for operator in ("ConvTranspose", "HardSwish", "Mish"))
NATIVE: Final = Flavour(
    module="tensorrt",
    magic=b"ftrt",
    suffixes=(".trt.engine", ".engine", ".plan"),
    hint="pip install tensorrt=={}",
    ahead=False,
    times=True,
    portable=False,
    opsets={"10": 20, "11": 24},
    without_kernels=_NO_BFLOAT16,
)
RTX: Final = Flavour(
    module="tensorrt_rtx",
    magic=b"vtrt",
    suffixes=(".trt-rtx.engine",),
    hint="pip install tensorrt-rtx=={}",
    ahead=True,
    times=False,
    portable=True,
    opsets={"1": 24},
    without_kernels=frozenset({("Attention", "FLOAT")}) | _NO_BFLOAT16,
)
FLAVOURS: Final = (NATIVE, RTX)


class Heard(list[str]):
    """What a library said, in its own words.

    Attributes:
        interrupted: Ctrl-C came meanwhile.
    """

    interrupted = False


class Library:
    """An imported library and its logger.

    Attributes:
        opset: The last ONNX opset that this version is known to take; of a version newer than we know, the last known.
        building: Held while an engine is built: where two are built at once, the failure of one was seen to end the other.
    """

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.trt: Any = importlib.import_module(flavour.module)
        self.version: str = self.trt.__version__
        self.opset = flavour.opsets.get(self.version.partition(".")[0], max(flavour.opsets.values()))
        self.building = threading.Lock()
        self._listeners: list[list[str]] = []
        self.logger = _logger(self.trt, self._hear)

    def _hear(self, message: str) -> None:
        for heard in self._listeners:
            heard.append(message)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Heard]:
        """Yield a list that the library's errors and warnings are added to, in its own words.

        Raises:
            KeyboardInterrupt: Ctrl-C came meanwhile, and the library has come to its end.
        """
        heard = Heard()
        self._listeners.append(heard)
        try:
            with _interrupts_noted(heard):
                yield heard
        finally:
            self._listeners[:] = [one for one in self._listeners if one is not heard]


@contextlib.contextmanager
def _interrupts_noted(heard: Heard) -> Iterator[None]:
    """Let Ctrl-C wait for the library: what a signal raises inside its callbacks, it swallows or crashes of."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in {None, signal.SIG_IGN}:
        yield  # nothing of Python's is raised here
        return

    def note(_number: int, _frame: object) -> None:
        heard.interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard.interrupted:
            raise KeyboardInterrupt


_LOADED: dict[str, Library] = {}
_LOADING: Final = threading.Lock()


def library(flavour: Flavour) -> Library:
    """Import a library, once for the process, whichever thread asks first.

    Raises:
        MissingComponentError: It is not installed.
    """
    COMPONENTS[flavour.module].require()
    with _LOADING:
        if flavour.module not in _LOADED:
            _LOADED[flavour.module] = Library(flavour)
    return _LOADED[flavour.module]


def _logger(trt: Any, hear: Any) -> Any:  # noqa: ANN401 - the library has no types
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity <= trt.ILogger.Severity.ERROR:
                hear(message)
            elif severity <= trt.ILogger.Severity.WARNING:
                sys.stderr.write(f"{message}\n")

    return Logger()


def plain(message: str) -> str:
    """Return what a message of TensorRT says, without where in its sources that was said."""
    before = ""
    text = message.strip()
    while text != before:
        before, text = text, _WRAPPING.sub("", text).strip()
    return text.removeprefix("(").rstrip(".)") if text else message


def version_of(plan: bytes) -> str:
    """Return the version that a plan's header names."""
    return ".".join(str(number) for number in plan[VERSION_AT])
