"""A PyTorch original as a Session, through the same door as every runtime."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import MissingComponentError, UnsupportedError, UsageError
from deploykit.models.original import INPUT_NAME
from deploykit.models.sources import located, open_module
from deploykit.runtime.backends.base import Backend, Session, Tensor
from deploykit.verdict import Ran

if TYPE_CHECKING:
    import torch


class TorchSession(Session):
    """An original in evaluation mode, float32, eager, on the CPU."""

    def __init__(self, module: torch.nn.Module, inputs: tuple[TensorSpec, ...], output_name: str, ran: Ran) -> None:
        self._module: torch.nn.Module | None = module
        rows = _run(module, _example(inputs[0]))
        shape = (Axis.unbounded("batch"), *rows.shape[1:])
        super().__init__(inputs, (TensorSpec(output_name, rows.dtype.name, shape),), ran)

    def _infer(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._module is not None, "infer() has checked that the session is open"  # noqa: S101
        return {self.outputs[0].name: _run(self._module, feeds[self.inputs[0].name])}

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
        spec = TensorSpec(INPUT_NAME, "float32", (Axis.unbounded("batch"), *original.preprocess.input_size))
        ran = Ran(self.name, torch.__version__, "cpu", "f32", torch.get_num_threads())
        return TorchSession(module, (spec,), original.task, ran)

    def code(self, file: str, config: RunConfig) -> str:
        """Return Python that opens the original `file` as `config` says and defines `infer(feeds)`.

        An original is code and weights that deploykit finds by its source, so this is the one snippet that imports deploykit.
        """
        _check(config)
        task = located(file).task
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
                f"    return {{{task!r}: module(torch.from_numpy(feeds[{INPUT_NAME!r}])).numpy()}}",
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


def _example(spec: TensorSpec) -> Tensor:
    return np.zeros([dim.opt if isinstance(dim, Axis) else dim for dim in spec.shape], spec.dtype)


def _run(module: torch.nn.Module, array: Tensor) -> Tensor:
    """Return a copy of the module's one output, as the caller's own array."""
    import torch

    with torch.inference_mode():
        result = module(torch.from_numpy(array if array.flags.writeable else array.copy()))
    if not isinstance(result, torch.Tensor):
        raise UnsupportedError(f"{type(module).__name__} returns a {type(result).__name__}, not one tensor")
    owned: Tensor = result.numpy().copy()
    return owned


BACKEND = TorchBackend()
