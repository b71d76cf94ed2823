"""Random weights that make a network worth measuring.

What a constructor leaves is not: LayerScale near zero hides every block, and BatchNorm statistics that fit no data send logits
to a thousand, and matrices of zeros answer with zeros, which every candidate equals. So weights are drawn from a seed,
LayerScale is set near one, zeros are drawn anew, and BatchNorm statistics are settled on images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

SEED = 20_261_125
#: LayerScale parameters by their last name, and the weight of norms: constructors set that of a residual branch's last one to
#: zero. A vector with a mean below this hides its block.
SCALE_NAMES = (
    *("gamma", "gamma_1", "gamma_2", "gamma1", "gamma2", "ls1", "ls2", "layer_scale", "weight"),
    *("layer_scale_parameter", "lambda1", "lambda_1", "lambda_2"),
)
HIDDEN_BELOW = 0.1


@dataclass(frozen=True)
class Level:
    """How far weights are bent towards a network that amplifies no rounding.

    Attributes:
        scale: Scales that hid a block are drawn around this.
        least: Least deviation of a channel, as a share of its mean and of the median of its layer. A channel that hardly
            varies on the sample would be blown up by its BatchNorm, with its rounding errors, and explode on an image that
            does move it.
        shift: What BatchNorm adds, in deviations; 0 leaves the constructor's. A Relu behind normal values passes half of
            a small error's variance and, at shift 0, only (1 - 1/pi) / 2 of the images': errors gain 21 % in every layer
            that no shortcut goes around (Yang et al., A Mean Field Theory of Batch Normalization, 2019). At shift 1 they
            gain 6 %.
    """

    scale: float
    least: float
    shift: float = 0.0


#: Tried in turn until no image's answer amplifies rounding.
CALMER = (Level(1.0, 0.25), Level(0.5, 0.5), Level(0.25, 1.0), Level(0.125, 2.0), Level(0.125, 0.25, shift=1.0))
#: Inputs are moved by this share of themselves, and answers may move by `CALM` of the largest: trained networks keep it
#: at about one to one.
NUDGE, CALM = 1e-6, 5e-5
#: Images that are moved at once: most networks that aren't calm show it on the first few.
CHUNK = 4


@contextmanager
def seeded() -> Iterator[None]:
    """Draw from the seed inside; the surrounding program's generator is as it was afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def settle(module: torch.nn.Module, images: torch.Tensor) -> None:
    """Make a freshly built network behave like a trained one, in place.

    Args:
        module: As its constructor left it.
        images: float32 [N, channels, height, width], prepared as for inference.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    drawn: dict[torch.nn.Parameter, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = name.rpartition(".")[2] in SCALE_NAMES and parameter.ndim <= 1
            if is_scale and float(parameter.abs().mean()) < HIDDEN_BELOW:
                drawn[parameter] = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
            elif parameter.ndim > 1 and not bool(parameter.any()):
                deviation = parameter[0].numel() ** -0.5
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    module.eval()
    norms = _norms(module)
    for level in CALMER:
        with torch.no_grad():
            for parameter, values in drawn.items():
                parameter.copy_(level.scale * values)
            for norm in norms if level.shift else ():
                if norm.bias is not None:
                    norm.bias.fill_(level.shift)
        if not norms or _is_calm(module, images, _settle_statistics(module, norms, images, level.least)):
            return


def _norms(module: torch.nn.Module) -> list[_BatchNorm]:
    """Return every BatchNorm that keeps statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def _is_calm(module: torch.nn.Module, images: torch.Tensor, answers: object) -> bool:
    """Tell whether answers, those to the images, move about as much as inputs do."""
    import torch

    if not isinstance(answers, torch.Tensor):
        return True
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    moved, most = images * (1 + NUDGE * noise), CALM * answers.abs().max()
    with torch.inference_mode():
        return all(
            bool((module(part) - before).abs().max() <= most)
            for part, before in zip(torch.split(moved, CHUNK), torch.split(answers, CHUNK), strict=True)
        )


def _settle_statistics(module: torch.nn.Module, norms: list[_BatchNorm], images: torch.Tensor, share: float) -> object:
    """Give every BatchNorm the statistics of its input, in one pass: a layer is settled just before it is first used.

    Returns:
        What the settled network answers.
    """
    import torch

    used: list[torch.nn.Module] = []

    def settle_one(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        mean, deviation = values.mean(dim=1), values.std(dim=1, correction=0)
        least = share * mean.abs().maximum(deviation.median())
        norm.running_mean.copy_(mean)  # type: ignore[operator]
        norm.running_var.copy_(deviation.maximum(least).square())  # type: ignore[operator]
        used.append(norm)

    hooks = [norm.register_forward_pre_hook(settle_one) for norm in norms]
    try:
        with torch.inference_mode():
            answers: object = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    if len(used) == len(set(used)):
        return answers
    with torch.inference_mode():  # a layer that is used twice had other statistics at first
        return module(images)
