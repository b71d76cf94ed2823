"""A PyTorch original as a Session, through the same door as every runtime.

On a GPU it is what artifacts are timed against there; what they are judged by was computed on a CPU.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import MissingComponentError, UnsupportedError
from deploykit.models.answers import named_tensors
from deploykit.models.interface import BATCH, Input, Interface
from deploykit.models.sources import located, open_module
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import CPU, Backend, Layer, Session, Tensor
from deploykit.runtime.backends.cuda import Lane
from deploykit.runtime.backends.gpu import GpuSession, Place
from deploykit.runtime.batches import grown_axis
from deploykit.verdict import Ran

if TYPE_CHECKING:
    import torch


#: Shape and type of each output.
Looks = Sequence[tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Asked:
    """How an original is asked: what it takes and gives, and the rows that its batch is fixed to, where it is."""

    takes: Interface
    fixed_batch: int | None


class TorchSession(Session):
    """An original in evaluation mode, float32, eager, on the CPU."""

    def __init__(self, module: torch.nn.Module, asked: Asked, ran: Ran) -> None:
        self._module: torch.nn.Module | None = module

        def look(rows: int) -> Looks:
            return [(one.shape, one.dtype.name) for one in _run(module, *_examples(asked.takes, rows).values())]

        super().__init__(*_specs(asked, look), ran)

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._module is not None, "infer() has checked that the session is open"  # noqa: S101
        return self._named(_run(self._module, *feeds.values()))

    def _named(self, found: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip((spec.name for spec in self.outputs), found, strict=True))

    def infer_float64(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once in float64. Weights come back as they were: float64 holds every float32."""
        assert self._module is not None, "whoever asks has the session open"  # noqa: S101
        wide = {k: a.astype(np.float64) if a.dtype == np.float32 else a for k, a in self._checked(feeds).items()}
        module = self._module.double()
        try:
            return self._named(_run(module, *wide.values()))
        except (RuntimeError, TypeError) as error:  # constants that forward makes are float32
            raise UnsupportedError(f"this module computes in float32 alone: {str(error).splitlines()[0]}") from error
        finally:
            module.float()

    def layers(self) -> tuple[Layer, ...]:
        """Return convolutions and linear layers, each weight once."""
        from torch import nn

        assert self._module is not None, "whoever asks has the session open"  # noqa: S101
        convolutions = nn.Conv1d, nn.Conv2d, nn.Conv3d
        transposed = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        found: dict[str, Layer] = {}
        for module in self._module.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(module, (*convolutions, *transposed, nn.Linear)) and id(weight) in names:
                axis = 1 if isinstance(module, transposed) else 0
                found.setdefault(names[id(weight)], Layer(names[id(weight)], axis, names.get(id(bias), "")))
        return tuple(found.values())

    def weights(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return copies of parameters."""
        assert self._module is not None, "whoever asks has the session open"  # noqa: S101
        known = dict(self._module.named_parameters())
        return {name: known[name].detach().cpu().numpy().copy() for name in names}

    def infer_with(self, feeds: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once with other values for some parameters, and put back those that were there."""
        import torch

        assert self._module is not None, "whoever asks has the session open"  # noqa: S101
        known = dict(self._module.named_parameters())
        kept = {name: known[name].detach().clone() for name in changed}
        try:
            with torch.no_grad():
                for name, array in changed.items():
                    known[name].copy_(torch.from_numpy(array))
            return self.infer(feeds)
        finally:
            with torch.no_grad():
                for name, before in kept.items():
                    known[name].copy_(before)

    def _close(self) -> None:
        self._module = None
        gc.collect()  # modules refer to themselves, and another copy of the weights may come next


class TorchGpuSession(GpuSession):
    """An original in evaluation mode, float32, eager, on an NVIDIA GPU; memory is PyTorch's, the stream is the lane's."""

    def __init__(self, module: torch.nn.Module, asked: Asked, ran: Ran, lane: Lane, index: int) -> None:
        import torch

        self._module: torch.nn.Module | None = module.to(f"cuda:{index}")
        self._stream = torch.cuda.ExternalStream(lane.stream, device=index)  # type: ignore[no-untyped-call]
        self._feeds: dict[str, torch.Tensor] = {}
        self._found: tuple[torch.Tensor, ...] = ()
        super().__init__((), (), ran, lane)

        def look(rows: int) -> Looks:
            feeds = _examples(asked.takes, rows)
            self._feeds = {name: torch.from_numpy(one).to(f"cuda:{index}") for name, one in feeds.items()}
            lane.enter()
            self._enqueue()
            lane.wait()
            return [(tuple(one.shape), _numpy_name(one)) for one in self._found]

        self.inputs, self.outputs = _specs(asked, look)

    def _prepare(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        import torch

        for name, array in feeds.items():
            there = self._feeds[name]
            if there.shape != array.shape:
                self._feeds[name] = torch.empty(array.shape, dtype=there.dtype, device=there.device)
        return {name: tensor.data_ptr() for name, tensor in self._feeds.items()}

    def _enqueue(self) -> None:
        import torch

        assert self._module is not None, "infer() has checked that the session is open"  # noqa: S101
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            found = _tensors(self._module, self._module(*self._feeds.values()))
            self._found = tuple(tensor.contiguous() for tensor in found)

    def _results(self) -> dict[str, Place]:
        places = (Place(one.data_ptr(), tuple(one.shape), _numpy_name(one)) for one in self._found)
        return dict(zip((spec.name for spec in self.outputs), places, strict=True))

    def _close(self) -> None:
        import torch

        self._module = None
        self._feeds, self._found = {}, ()
        gc.collect()
        torch.cuda.empty_cache()
        super()._close()


class TorchBackend(Backend):
    """PyTorch, eager. `model` is an original's locator, or a plain source.

    `threads` holds for the whole process: PyTorch has one setting. So does that it multiplies in f32 on a GPU, not in TF32.
    """

    name = "torch"
    module = "torch"
    suffixes = ()
    devices = (CPU, cuda.FIRST)

    def unavailable(self, config: RunConfig) -> str:
        """Return why there is no such device to run on, or ""."""
        return super().unavailable(config) or ("" if config.device == CPU else _lacking(config.device))

    def place(self, config: RunConfig) -> str:
        """Return what the device of `config` is, or why there is none."""
        return self.unavailable(config) or (CPU if config.device == CPU else cuda.place(config.device))

    def _open(self, model: str, config: RunConfig) -> Session:
        import torch

        _check(config)
        original = located(model)
        module = open_module(original)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        matmul = torch.get_float32_matmul_precision()
        if matmul != "highest":
            raise UnsupportedError(
                f"this process lets PyTorch multiply float32 with {matmul!r} precision: that isn't f32"
            )
        asked = Asked(original.takes, original.fixed_batch)
        if config.device != CPU:
            return _on_gpu(module, asked, config)
        ran = Ran(self.name, torch.__version__, CPU, "f32", torch.get_num_threads())
        return TorchSession(module, asked, ran)

    def code(self, file: str, config: RunConfig) -> str:
        """Return Python that opens the original `file` as `config` says and defines `infer(feeds)`.

        An original is code and weights that deploykit finds by its source, so this is the one snippet that imports deploykit.
        """
        _check(config)
        takes, on_gpu = located(file).takes, config.device != CPU
        feeds = ", ".join(f"torch.from_numpy(feeds[{each.name!r}]).to({config.device!r})" for each in takes.inputs)
        threads = [] if config.threads is None else [f"torch.set_num_threads({config.threads})"]
        return "\n".join(
            [
                "import torch",
                "from deploykit.models.answers import named_tensors",
                "from deploykit.models.sources import located, open_module",
                "",
                *threads,
                f"module = open_module(located({file!r})).to({config.device!r})",
                *(["torch.backends.cudnn.allow_tf32 = False  # f32 is meant"] if on_gpu else []),
                "",
                "",
                "@torch.inference_mode()",
                "def infer(feeds):",
                f"    found = named_tensors(module({feeds}), {takes.output!r}).values()",
                f"    return {{name: one.cpu().numpy() for name, one in zip({list(takes.outputs)!r}, found)}}",
                "",
            ]
        )


def _check(config: RunConfig) -> None:
    if config.precision not in {"auto", "f32"}:
        raise UnsupportedError(f"originals are computed in f32, the reference, not in {config.precision!r}")


def _lacking(device: str) -> str:
    """Return why PyTorch can't run on this GPU here, or ""."""
    import torch

    if reason := cuda.lacking(device):
        return reason
    return "" if torch.cuda.is_available() else f"this PyTorch ({torch.__version__}) can't use the GPU"


def _on_gpu(module: torch.nn.Module, asked: Asked, config: RunConfig) -> Session:
    import torch

    if reason := _lacking(config.device):
        raise MissingComponentError(reason)
    torch.backends.cudnn.allow_tf32 = False
    index, gpu = cuda.gpu_at(config.device)
    lane = Lane(cuda.driver(), index)
    try:
        ran = Ran("torch", torch.__version__, f"{config.device} {gpu.name}", "f32", torch.get_num_threads())
        return TorchGpuSession(module, asked, ran, lane, index)
    except BaseException:
        lane.close()
        raise


def _specs(asked: Asked, look: Callable[[int], Looks]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs as examples show them: where the rows of an output lie, those of one and of two rows tell.

    A network that takes no second row has a batch of one.
    """
    takes, rows = asked.takes, asked.fixed_batch or 1
    one, two = look(rows), None
    if len(one) != len(takes.outputs):
        raise UnsupportedError(f"the original answers with {len(one)} tensors, not with {', '.join(takes.outputs)}")
    if asked.fixed_batch is None and not (takes.answer and len(one) == 1):
        with contextlib.suppress(Exception):
            two = look(2)
    is_open = two is not None or bool(takes.answer and asked.fixed_batch is None)
    axes: dict[str, Axis | int] = {name: Axis.unbounded(name) for name in takes.axes}
    axes |= {} if is_open else {BATCH: rows}
    outputs = []
    for place, (name, (shape, dtype)) in enumerate(zip(takes.outputs, one, strict=True)):
        grown = grown_axis(shape, two[place][0]) if two is not None else None
        dims = tuple(BATCH if axis == grown else size for axis, size in enumerate(shape))
        outputs.append(Input(name, dtype, takes.answer if takes.answer and not place else dims).spec(axes))
    return tuple(each.spec(axes) for each in takes.inputs), tuple(outputs)


def _examples(takes: Interface, rows: int) -> dict[str, Tensor]:
    shapes = takes.at({BATCH: rows})
    return {each.name: np.zeros(shapes[each.name], each.dtype) for each in takes.inputs}


def _run(module: torch.nn.Module, *arrays: Tensor) -> tuple[Tensor, ...]:
    """Return copies of what a module answers with, as the caller's own arrays."""
    import torch

    with torch.inference_mode():
        result = module(*(torch.from_numpy(one if one.flags.writeable else one.copy()) for one in arrays))
    return tuple(tensor.numpy().copy() for tensor in _tensors(module, result))


def _tensors(module: torch.nn.Module, result: object) -> tuple[torch.Tensor, ...]:
    return tuple(named_tensors(result, type(module).__name__).values())


def _numpy_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


BACKEND = TorchBackend()
