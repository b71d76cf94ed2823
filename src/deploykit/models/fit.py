"""Whether weights fit a network: its part of a checkpoint, its names, shapes and types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploykit.errors import BadInputError, Hint
from deploykit.models import dtypes

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]

#: What wrappers put before every name.
PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")
#: What to do about weights of another architecture.
FIT: Final = Hint("--num-classes N, --model-arg K=V", "builds the network that was trained")
#: A buffer that evaluation doesn't look at.
COUNTER: Final = ".num_batches_tracked"
#: Names that a note shows.
SHOWN: Final = 3


@dataclass(frozen=True)
class Part:
    """What of a checkpoint is a network's.

    Attributes:
        state: Its tensors, under its own names.
        prefix: What stood before them; "" where the whole checkpoint is the network's.
        foreign: Names of what lies beside it, such as a loss's weights.
    """

    state: State
    prefix: str = ""
    foreign: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, to be told."""
        if not self.foreign:
            return ()
        more = ", …" if len(self.foreign) > SHOWN else ""
        told = ", ".join(self.foreign[:SHOWN]) + more
        return (f"the network is what is called {self.prefix}* in the checkpoint; not of it: {told}",)


def without_prefixes(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Remove what wrappers put before all names, one after another."""
    names = dict(state)
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if names and all(str(name).startswith(prefix) for name in names):
                names = {str(name).removeprefix(prefix): value for name, value in names.items()}
                changed = True
    return names


def part_of(module: torch.nn.Module, state: State, path: Path) -> Part:
    """Find a network's part of a checkpoint, whose values must be finite, or -inf where a mask of its own is.

    Names below a prefix are the network's where all of its own are among them. At the top nothing is left out: what is
    too much there may be weights of another variant of it.

    Args:
        module: The network, as it was built; one without memory has no masks.
        state: As a checkpoint has it.
        path: That it comes from.

    Raises:
        BadInputError: Two parts fit, or values are NaN or infinite.
    """
    own = module.state_dict()
    part = _part(own, state, path)
    masks = {name for name, buffer in module.named_buffers(remove_duplicate=False) if not buffer.is_meta}
    short = dict(zip(own, without_prefixes(own), strict=True))
    check_finite(part.state, path, {key: own[name] for name in masks & own.keys() for key in (name, short[name])})
    return part


def _part(own: Collection[str], state: State, path: Path) -> Part:
    needed = [name for name in without_prefixes(dict.fromkeys(own)) if not name.endswith(COUNTER)]
    if not needed or all(name in state for name in needed):
        return Part(state)
    last = needed[-1]
    candidates = sorted({name.removesuffix(last) for name in state if name.endswith(f".{last}")})
    fitting = [prefix for prefix in candidates if all(f"{prefix}{name}" in state for name in needed)]
    if len(fitting) > 1:
        raise BadInputError(
            f"{path} holds {len(fitting)} networks of these names: {', '.join(f'{prefix}*' for prefix in fitting)}",
            Hint(f"--checkpoint-key {fitting[0].removesuffix('.')}", "says which"),
        )
    if not fitting:
        return Part(state)
    (prefix,) = fitting
    mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return Part(mine, prefix, tuple(name for name in state if not name.startswith(prefix)))


def check_finite(state: State, path: Path, masks: Mapping[str, torch.Tensor] | None = None) -> None:
    """Refuse NaN and infinity.

    Args:
        state: Tensors by name.
        path: That they come from.
        masks: What some of them must be -inf like: -inf at one's place is allowed.

    Raises:
        BadInputError: A tensor holds one; it is named.
    """
    import torch

    for name, value in state.items():
        if not value.is_floating_point():
            continue
        odd = ~torch.isfinite(value)
        mask = (masks or {}).get(name)
        if mask is not None and mask.shape == value.shape:
            odd &= ~(torch.isneginf(value) & torch.isneginf(mask))
        if bool(odd.any()):
            raise BadInputError(f"{path}: {name} holds NaN or infinity")


def load_into(module: torch.nn.Module, state: State, path: Path, *, hint: Hint = FIT, assign: bool = False) -> None:
    """Load a state dict that must fit exactly.

    Args:
        module: Built for it.
        state: The network's part of a checkpoint, or the whole.
        path: That it comes from.
        hint: What to do where it doesn't fit.
        assign: Let the network have these very tensors, for one that was built without memory.

    Raises:
        BadInputError: Names, shapes or types differ, or values are not finite; the message names the first of each kind.
    """
    own = module.state_dict()
    state = part_of(module, state, path).state
    wrapped = dict(zip(without_prefixes(own), own, strict=True))  # a network may have a root of such a name itself
    state = {wrapped.get(name, name): value for name, value in state.items()}
    shapes = [
        f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    refuse(
        f"{path} doesn't fit {type(module).__name__}",
        {
            "missing": [name for name in own if name not in state and not name.endswith(COUNTER)],
            "unknown": [name for name in state if name not in own],
            "of another shape": shapes,
            "of another type": dtypes.misfits(own, state),
        },
        hint,
    )
    module.load_state_dict(state, strict=True, assign=assign)


def refuse(what: str, problems: Mapping[str, list[str]], hint: Hint) -> None:
    """Raise what is wrong, the first of each kind; do nothing where that is nothing.

    Raises:
        BadInputError: Something is.
    """
    told = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in problems.items() if names]
    if told:
        raise BadInputError(f"{what}: {'; '.join(told)}", hint)
