"""Where a network draws random numbers as it answers: dropout that was left on, noise that it adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.models import sources
from deploykit.models.original import Original

if TYPE_CHECKING:
    import torch

#: How many places a message names.
NAMED = 3


def random_places(original: Original) -> str:
    """Return in words which modules draw random numbers and by which operators; "" where none does.

    Raises:
        UnsupportedError: The original is no module.
        BadInputError: Its weights are missing or changed.
    """
    module = sources.open_module(original)
    found = list(dict.fromkeys(_drawn(module, original)))
    training = [f"{name!r} ({type(one).__name__})" for name, one in module.named_modules() if one.training and name]
    words = [f"{name} in {f'module {path!r}' if path else 'its own forward'}" for name, path in found]
    told = [f"it draws random numbers: {_some(words)}"] if words else []
    told += [f"in training mode: {_some(training)}"] if training else []
    return "; ".join(told)


def _some(words: list[str]) -> str:
    rest = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return f"{', '.join(words[:NAMED])}{rest}"


def _drawn(module: torch.nn.Module, original: Original) -> list[tuple[str, str]]:
    """Run a module once; return each operator that draws random numbers, with the path of the module that it lies in."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    paths = {id(one): path for path, one in module.named_modules()}
    stack: list[str] = [""]
    found: list[tuple[str, str]] = []

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
            if torch.Tag.nondeterministic_seeded in func.tags:
                found.append((func.overloadpacket.__name__, stack[-1]))
            return func(*args, **(kwargs or {}))

    def enter(one: torch.nn.Module, _inputs: object) -> None:
        stack.append(paths.get(id(one), stack[-1]))

    def leave(_one: torch.nn.Module, _inputs: object, _outputs: object) -> None:
        stack.pop()

    hooks = [
        handle
        for one in module.modules()
        for handle in (one.register_forward_pre_hook(enter), one.register_forward_hook(leave))
    ]
    shapes = original.takes.at({} if original.fixed_batch is None else {"batch": original.fixed_batch})
    feeds = [torch.zeros(shapes[each.name], dtype=getattr(torch, each.dtype)) for each in original.takes.inputs]
    try:
        with torch.no_grad(), Recorder():  # type: ignore[no-untyped-call]
            module(*feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return found
