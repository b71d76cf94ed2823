"""A PyTorch original as a Session, through the same door as every runtime."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact import Axis, RunConfig
from deploykit.errors import MissingComponentError, UnsupportedError, UsageError
from deploykit.models.interface import BATCH, Input, Interface
from deploykit.models.sources import located, open_module
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.verdict import Ran

if TYPE_CHECKING:
    import torch


class TorchSession(Session):
    """An original in evaluation mode, float32, eager, on the CPU."""

    def __init__(self, module: torch.nn.Module, takes: Interface, ran: Ran) -> None:
        self._module: torch.nn.Module | None = module
        axes = {name: Axis.unbounded(name) for name in takes.axes}
        shapes = takes.at({})
        rows = _run(module, *(np.zeros(shapes[each.name], each.dtype) for each in takes.inputs))
        answer = takes.answer or (BATCH, *rows.shape[1:])
        output = Input(takes.output, rows.dtype.name, answer).spec(axes)
        super().__init__(tuple(each.spec(axes) for each in takes.inputs), (output,), ran)

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._module is not None, "infer() has checked that the session is open"  # noqa: S101
        return {self.outputs[0].name: _run(self._module, *feeds.values())}

    def _close(self) -> None:
        self._module = None
        gc.collect()  # modules refer to themselves, and another copy of the weights may come next


class TorchBackend(Backend):
    """PyTorch, eager. `model` is an original's locator, or a plain source.

    `threads` holds for the whole process: PyTorch has one setting.
    """

    name = "torch"
    module = "torch"
    suffixes = ()

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
        ran = Ran(self.name, torch.__version__, "cpu", "f32", torch.get_num_threads())
        return TorchSession(module, original.takes, ran)

    def code(self, file: str, config: RunConfig) -> str:
        """Return Python that opens the original `file` as `config` says and defines `infer(feeds)`.

        An original is code and weights that deploykit finds by its source, so this is the one snippet that imports deploykit.
        """
        _check(config)
        takes = located(file).takes
        feeds = ", ".join(f"torch.from_numpy(feeds[{each.name!r}])" for each in takes.inputs)
        threads = [] if config.threads is None else [f"torch.set_num_threads({config.threads})"]
        return "\n".join(
            [
                "import torch",
                "from deploykit.models.sources import located, open_module",
                "",
                *threads,
                f"module = open_module(located({file!r}))",
                "",
                "",
                "@torch.inference_mode()",
                "def infer(feeds):",
                f"    return {{{takes.output!r}: module({feeds}).numpy()}}",
                "",
            ]
        )


def _check(config: RunConfig) -> None:
    if config.device != "cpu":
        raise MissingComponentError(f"originals run on the cpu, not on {config.device!r}")
    if config.precision not in {"auto", "f32"}:
        raise UnsupportedError(f"originals are computed in f32, the reference, not in {config.precision!r}")
    if config.hints:
        raise UsageError(f"PyTorch takes no hints, found {dict(config.hints)}")


def _run(module: torch.nn.Module, *arrays: Tensor) -> Tensor:
    """Return a copy of the module's one output, as the caller's own array."""
    import torch

    with torch.inference_mode():
        result = module(*(torch.from_numpy(one if one.flags.writeable else one.copy()) for one in arrays))
    if not isinstance(result, torch.Tensor):
        raise UnsupportedError(f"{type(module).__name__} returns a {type(result).__name__}, not one tensor")
    owned: Tensor = result.numpy().copy()
    return owned


BACKEND = TorchBackend()
