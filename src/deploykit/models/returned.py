"""What a function of the user's returns: a network of float32 weights on the CPU, or why it is none, with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from deploykit.errors import Hint, UsageError
from deploykit.models.dtypes import name_of

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Where PyTorch keeps modules that compute in 8 bits, and those that act as if.
QUANTIZED: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
QAT: Final = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize")
OBSERVERS: Final = ("torch.ao.quantization.observer",)
FLOAT: Final = Hint("--int8", "quantizes the float network, and judges what came out")


def network(returned: object, name: str) -> nn.Module:
    """Return a network in evaluation mode, without the wrapper that compiles it.

    Args:
        returned: What the function returned.
        name: Of the function, for messages.

    Raises:
        UsageError: It is no network that can be exported; the message says how it becomes one.
    """
    import torch

    if not isinstance(returned, torch.nn.Module):
        raise UsageError(f"{name} returns a {type(returned).__name__}, not a torch.nn.Module")
    module = getattr(returned, "_orig_mod", returned)
    _check_kind(module, name)
    for key, tensor in _tensors(module):
        _check_tensor(key, tensor, name)
    try:
        evaluated: nn.Module = module.eval()
    except NotImplementedError as error:
        raise UsageError(
            f"{name} returns a program of torch.export, which has no evaluation mode of its own",
            Hint("torch.export.save(program, 'x.pt2')", "writes what `deploykit export x.pt2` takes"),
        ) from error
    return evaluated


def _check_kind(module: nn.Module, name: str) -> None:
    import torch

    for path, part in module.named_modules():
        kind = f"{type(part).__module__}."
        where = f" ({path} is a {type(part).__name__})" if path else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise UsageError(
                f"{name} returns TorchScript{where}, which can't be traced: return the network that it was made of",
                Hint(
                    "torch.onnx.export(module, ..., 'x.onnx')",
                    "where only TorchScript is left: `deploykit export x.onnx`",
                ),
            )
        if kind.startswith(tuple(f"{each}." for each in QUANTIZED)):
            raise UsageError(f"{name} returns a network that is quantized{where}: return it in float", FLOAT)
        if kind.startswith(tuple(f"{each}." for each in (*QAT, *OBSERVERS))):
            raise UsageError(
                f"{name} returns a network with fake quantizers or observers{where}: return it in float, as it was before "
                "prepare or prepare_qat",
                FLOAT,
            )


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _check_tensor(key: str, tensor: torch.Tensor, name: str) -> None:
    import torch
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise UsageError(
            f"{name} returns a network whose {key} has no shape yet: run it once before it is returned, and load its weights"
        )
    if type(tensor.data) is not torch.Tensor or tensor.is_quantized or tensor.layout != torch.strided:
        kind = type(tensor.data).__name__ if type(tensor.data) is not torch.Tensor else str(tensor.layout)
        kind = "quantized tensor" if tensor.is_quantized else kind
        raise UsageError(f"{name} returns a network whose {key} is a {kind}: return it with plain tensors", FLOAT)
    if tensor.is_meta:
        raise UsageError(f"{name} returns a network whose {key} has no memory (meta): build it on the CPU")
    if tensor.device.type != "cpu":
        raise UsageError(f"{name} returns a network on {tensor.device} ({key}): return module.cpu()")
    is_weight = isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point()
    if is_weight and tensor.dtype != torch.float32:
        raise UsageError(
            f"{name} returns a network of {name_of(tensor)} ({key}): return module.float(), as the reference is computed in "
            "float32",
            Hint("--fp16, --bf16", "make and judge the narrower artifact"),
        )
