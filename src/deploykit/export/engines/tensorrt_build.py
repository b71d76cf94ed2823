"""From an ONNX file to a TensorRT engine, by either library: it runs where there is neither PyTorch nor ONNX.

Precision is the graph's: networks are strongly typed, and no flag lowers it. TF32, which would change it behind the graph's
back, is switched off. A dynamic input has one optimization profile, its axes' bounds, or one for each part of them.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from deploykit.artifact import Axis, TensorSpec
from deploykit.errors import Hint, InternalError, UnsupportedError, UsageError
from deploykit.export.engines.timing_cache import TimingCache
from deploykit.export.preflight import Refusal
from deploykit.runtime.backends.tensorrt_library import Flavour, Heard, Library, library, plain
from deploykit.runtime.backends.tensorrt_record import SUFFIX, BuildOrder

#: The GPU that engines are built on and for, where their library doesn't build ahead.
DEVICE: Final = "cuda:0"
#: A node's name in a complaint.
_NAMED: Final = re.compile(r"'([^']+)'|\[ONNX Layer: ([^\]]+)\]")
#: What builders say, to what may be done about it.
_REMEDIES: Final[Mapping[str, tuple[Hint, ...]]] = {
    "FP32 GEMM is not supported": (Hint("--fp16"), Hint("--sm 80,86,89,120", "leaves Turing out")),
    "HW-specific datatypes": (Hint("--sm", "of GPUs that have this type"),),
    "no optimization profile": (Hint("--dynamic AXIS", "gives the axis a range"),),
}


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        inputs: Of the graph, with the bounds of their axes.
        capabilities: Compute capabilities, as 86 for 8.6, where the library builds ahead; else none, for the GPU that is here.
        modules: Names of nodes to the nn.Module paths that they come from, for complaints.
        ranges: Of axes that are tuned for in several parts: the parts, by name.
    """

    inputs: tuple[TensorSpec, ...]
    capabilities: tuple[int, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)

    @property
    def profiles(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """The inputs of each optimization profile: one for every choice of parts; none where all sizes are fixed."""
        return profiles_of(self.inputs, self.ranges)


def build(
    flavour: Flavour,
    graph: Path,
    options: BuildOptions,
    progress: Callable[[int, int], None] | None = None,
    timings: TimingCache | None = None,
) -> bytes:
    """Build the engine of the ONNX file at `graph`, whose weights may lie beside it.

    Args:
        flavour: Which library builds.
        graph: The file.
        options: What for.
        progress: Called with steps done and steps known so far. What it raises ends the build, as Ctrl-C does.
        timings: What the library measured before; what it measures is added.

    Returns:
        The engine, as the library serialized it: of fixed shapes the same bytes for the same file, options and
            version of RTX.

    Raises:
        MissingComponentError: The library is not installed.
        UsageError: The library doesn't know a capability.
        UnsupportedError: The parser refuses a node, or the builder can't build.
    """
    loaded = library(flavour)
    trt = loaded.trt
    with loaded.building, loaded.listening() as heard:
        builder = _made(trt.Builder(loaded.logger), "builder", heard)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, loaded.logger)
        if not parser.parse_from_file(str(graph)):
            raise _refused(loaded, parser, options.modules)
        config = _configured(loaded, builder, options)
        config.progress_monitor = monitor = _monitor(trt, progress, heard)
        if timings is not None:
            _recall(config, timings)
        serialized = builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if serialized is None:
            raise _unbuilt(loaded, heard, options.modules)
        if timings is not None:
            timings.write(bytes(config.get_timing_cache().serialize()))
        return bytes(serialized)


def _recall(config: Any, timings: TimingCache) -> None:  # noqa: ANN401 - the library has no types
    """Give a build what was measured before; of another GPU or version the library takes nothing, and begins anew."""
    if not config.set_timing_cache(config.create_timing_cache(timings.read()), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def endings_of(flavour: Flavour) -> tuple[str, str]:
    """Return the endings of an engine and its record."""
    engine = flavour.suffixes[0]
    return engine, engine.removesuffix(".engine") + SUFFIX


def trtexec(graph: str, engine: str, options: BuildOptions) -> str:
    """Return the line of TensorRT's own tool that builds the same; the graph says the precision."""
    words = ["trtexec", f"--onnx={graph}", f"--saveEngine={engine}", "--noTF32", "--stronglyTyped"]
    several = len(options.profiles) > 1
    for number, inputs in enumerate(options.profiles):
        words += [f"--profile={number}"] if several else []
        ranged = [(spec.name, shapes_of(spec)) for spec in inputs if spec.axes]
        for index, option in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = (f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in ranged)
            words.append(f"--{option}={','.join(shapes)}")
    return shlex.join(words)


def options_of(order: BuildOrder, modules: Mapping[str, str] | None = None) -> BuildOptions:
    """Return what an order asks for, with the modules that its graph's nodes come from, where they are known."""
    return BuildOptions(order.inputs, order.capabilities, modules or {}, order.ranges)


def profiles_of(
    inputs: tuple[TensorSpec, ...], ranges: Mapping[str, tuple[Axis, ...]]
) -> tuple[tuple[TensorSpec, ...], ...]:
    """Return `inputs` for every choice of one part of each axis, the first choice first; nothing where no axis is open."""
    axes = {axis.name: axis for spec in inputs for axis in spec.axes}
    parts = [ranges.get(name, (axis,)) for name, axis in axes.items()]
    choices = [dict(zip(axes, choice, strict=True)) for choice in itertools.product(*parts)] if axes else []
    return tuple(tuple(_within(spec, choice) for spec in inputs) for choice in choices)


def _within(spec: TensorSpec, axes: Mapping[str, Axis]) -> TensorSpec:
    return replace(spec, shape=tuple(axes[dim.name] if isinstance(dim, Axis) else dim for dim in spec.shape))


def refusals(flavour: Flavour, graph: Path) -> tuple[Refusal, ...]:
    """Ask the parser which nodes of an ONNX file it doesn't take; it needs no GPU for that.

    Raises:
        MissingComponentError: The library is not installed.
    """
    loaded = library(flavour)
    trt = loaded.trt
    with loaded.building, loaded.listening() as heard:
        builder = _made(trt.Builder(loaded.logger), "builder", heard)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, loaded.logger)
        parser.supports_model_v2(graph.read_bytes(), str(graph))
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return tuple(
            Refusal(error.node(), "" if error.code() == trt.ErrorCode.UNSUPPORTED_NODE else plain(error.desc()))
            for error in errors
            if error.node() >= 0
        )


def _made(made: Any, what: str, heard: list[str]) -> Any:  # noqa: ANN401 - the library has no types
    if made is None:
        raise UnsupportedError(f"TensorRT makes no {what}: {'; '.join(map(plain, heard)) or 'it does not say why'}")
    return made


def _configured(loaded: Library, builder: Any, options: BuildOptions) -> Any:  # noqa: ANN401
    trt = loaded.trt
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for inputs in options.profiles:
        profile = builder.create_optimization_profile()
        for spec in inputs:
            profile.set_shape(spec.name, *shapes_of(spec))
        if config.add_optimization_profile(profile) < 0:
            raise UnsupportedError(f"{loaded.flavour.title} refuses the profile {[spec.text for spec in inputs]}")
    if loaded.flavour.ahead:
        _aim(loaded, config, options.capabilities)
    return config


def shapes_of(spec: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the least, the usual and the largest shape of an input."""
    dims = [(dim.min, dim.opt, dim.max) if isinstance(dim, Axis) else (dim, dim, dim) for dim in spec.shape]
    least, usual, most = zip(*dims, strict=True) if dims else ((), (), ())
    return least, usual, most


def _aim(loaded: Library, config: Any, capabilities: Iterable[int]) -> None:  # noqa: ANN401
    trt = loaded.trt
    wanted = tuple(capabilities)
    known = {name.removeprefix("SM") for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    for number in wanted:
        if str(number) not in known:
            builds = ", ".join(sorted(known, key=int))
            raise UsageError(f"{loaded.flavour.title} {loaded.version} builds for SM {builds}, not for SM {number}")
    config.num_compute_capabilities = len(wanted)
    for index, number in enumerate(wanted):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index):
            raise InternalError(f"{loaded.flavour.title} took no SM {number} as number {index} of {wanted}")


def _monitor(trt: Any, progress: Callable[[int, int], None] | None, heard: Heard) -> Any:  # noqa: ANN401
    """Return TensorRT's view of `progress`; it swallows what its callbacks raise, so that is kept in `error`.

    Ctrl-C ends the build too; whoever listens raises it then.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.done = 0
            self.known = 0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:  # noqa: ARG002 - TensorRT's signature
            self.known += steps

        def step_complete(self, name: str, step: int) -> bool:  # noqa: ARG002
            self.done += 1
            try:
                if self.error is None and progress is not None:
                    progress(min(self.done, self.known), self.known)
            except BaseException as error:  # noqa: BLE001 - Ctrl-C too: raised again when the library has let go
                self.error = error
            return self.error is None and not heard.interrupted

        def phase_finish(self, name: str) -> None:
            """Need nothing done."""

    return Monitor()


def _refused(loaded: Library, parser: Any, modules: Mapping[str, str]) -> UnsupportedError:  # noqa: ANN401
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name(), error.node_operator()
        where = f"{operator} {name!r}{_of_module(name, modules)}: " if operator else ""
        told.append(where + plain(error.desc()))
    return UnsupportedError(f"{loaded.flavour.title} refuses the graph: {'; '.join(told) or 'it does not say why'}")


def _unbuilt(loaded: Library, heard: list[str], modules: Mapping[str, str]) -> UnsupportedError:
    said = next((plain(message) for message in heard if message.strip()), "it does not say why")
    names = [first or second for first, second in _NAMED.findall(said)]
    where = next((_of_module(name, modules) for name in names if name in modules), "")
    hints = next((remedies for words, remedies in _REMEDIES.items() if words in said), ())
    return UnsupportedError(f"{loaded.flavour.title} can't build the engine: {said}{where}", *hints)


def _of_module(name: str, modules: Mapping[str, str]) -> str:
    return f" of module {modules[name]!r}" if modules.get(name) else ""
