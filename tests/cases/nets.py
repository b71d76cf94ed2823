"""Small networks with one awkward property each. The command line reaches them as `py:nets:NAME` from this folder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that PyTorch's own documentation uses


def _same(features: Tensor) -> Tensor:
    return features


class Bright(nn.Module):
    """Activations and weights near the ends of their int8 ranges, all of one sign.

    Pairs of products overflow 16 bits on processors without VNNI.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.h = nn.Conv2d(3, 64, 4, 4), nn.Conv2d(64, 64, 1), nn.Linear(64, 8)
        assert self.a.bias is not None
        assert self.b.bias is not None
        with torch.no_grad():
            for conv in (self.a, self.b):
                conv.weight.copy_(0.02 * (0.9 + 0.1 * torch.rand(conv.weight.shape, generator=generator)))
            self.a.bias.fill_(2.0)
            self.b.bias.zero_()
            self.h.bias.zero_()
            self.h.weight.copy_(0.05 * torch.randn(8, 64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.h(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
        return answer


class Small(nn.Module):
    """A classifier of 10 with something done to the features in front of its head."""

    def __init__(
        self, twist: Callable[[Tensor], Tensor] = _same, norm: nn.Module | None = None, channels: int = 3
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1), norm or nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)
        )
        self.head, self.twist = nn.Linear(32, 10), twist

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.twist(self.body(x).mean((2, 3))))
        return answer


class Flat(nn.Module):
    """Answers that hardly depend on the image: a large constant plus a thousandth of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = 10.0 + 0.001 * self.net(x)
        return answer


class Masked(nn.Module):
    """Attention in which each patch looks back alone: what must not be seen has minus infinity added to its score."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.qkv, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), nn.Linear(16, 10)
        self.register_buffer("mask", torch.full((16, 16), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.stem(x).flatten(2).transpose(1, 2)
        queries, keys, values = self.qkv(patches).chunk(3, dim=-1)
        scores = queries @ keys.transpose(1, 2) / 4 + self.mask
        answer: Tensor = self.head((patches + scores.softmax(-1) @ values).mean(1))
        return answer


class Two(nn.Module):
    """A dict of a feature map [N, C, H, W], a vector [N, 10] and a scalar per image [N]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        v = y.mean((2, 3))
        return {"map": y, "logits": self.head(v), "score": v.sum(1)}


class Counter(nn.Module):
    """A buffer that forward changes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        answer: Tensor = self.net(x)
        return answer


class Spectrum(nn.Module):
    """A global filter in the frequency domain: ONNX Runtime computes it, OpenVINO refuses a node of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.net = nn.Parameter(torch.randn(3, 32, 17, 2) * 0.1 + 1), net

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.weight)
        answer: Tensor = self.net(torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho"))
        return answer


def bright() -> nn.Module:
    """Return a network whose int8 products saturate without VNNI."""
    return Bright().eval()


def batch_statistics() -> nn.Module:
    """Return a network that normalizes by the statistics of the batch at hand."""
    return Small(norm=nn.BatchNorm2d(16, track_running_stats=False)).eval()


def minus_batch_mean() -> nn.Module:
    """Return a network that subtracts the mean over the batch at hand."""
    return Small(lambda v: v - v.mean(0, keepdim=True)).eval()


def dropout_left_on() -> nn.Module:
    """Return a network with dropout on, also in evaluation."""
    return Small(lambda v: F.dropout(v, 0.1, training=True)).eval()


def noise() -> nn.Module:
    """Return a network that adds noise."""
    return Small(lambda v: v + 0.01 * torch.randn_like(v)).eval()


def answers_nan() -> nn.Module:
    """Return a network whose answers are NaN."""
    return Small(lambda v: torch.log(-v.abs())).eval()


def flat() -> nn.Module:
    """Return a network whose answers hardly vary."""
    return Flat().eval()


def gray() -> nn.Module:
    """Return a network of one input channel."""
    return Small(channels=1).eval()


def four_channels() -> nn.Module:
    """Return a network of four input channels."""
    return Small(channels=4).eval()


def plain() -> nn.Module:
    """Return a network with nothing awkward about it."""
    return Small().eval()


def compiled() -> nn.Module:
    """Return a network in the wrapper that compiles it at its first call."""
    module = torch.compile(plain())
    assert isinstance(module, nn.Module)
    return module


def double() -> nn.Module:
    """Return a module of float64 weights."""
    return plain().double()


def without_memory() -> nn.Module:
    """Return a module whose weights were never allocated."""
    return plain().to("meta")


def sparse() -> nn.Module:
    """Return a module with a matrix of its non-zero values alone."""
    module = Small().eval()
    module.head.weight = nn.Parameter(module.head.weight.detach().to_sparse())
    return module


def program() -> nn.Module:
    """Return what torch.export makes a module of."""
    module: nn.Module = torch.export.export(plain(), (torch.zeros(1, 3, 32, 32),)).module()
    return module


def state() -> object:
    """Return weights alone, which are no network."""
    return plain().state_dict()


def qat() -> nn.Module:
    """Return a module that was prepared for training with 8 bits in mind."""
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    module: nn.Module = torch.ao.quantization.prepare_qat(net.train())  # type: ignore[no-untyped-call]
    return module.eval()


def observed() -> nn.Module:
    """Return a module that was prepared for calibration."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).eval()
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    module: nn.Module = torch.ao.quantization.prepare(net)  # type: ignore[no-untyped-call]
    return module


def masked() -> nn.Module:
    """Return a network of attention whose mask is minus infinity."""
    return Masked().eval()


def two() -> nn.Module:
    """Return a network of three outputs in a dict."""
    return Two().eval()


def scripted() -> nn.Module:
    """Return a TorchScript module."""
    module: nn.Module = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval())
    return module


def dynamic_int8() -> nn.Module:
    """Return a dynamically quantized module."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    module: nn.Module = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})  # type: ignore[no-untyped-call]
    return module


def lazy() -> nn.Module:
    """Return a module whose weights have no shape yet."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()


def half() -> nn.Module:
    """Return a module of float16 weights."""
    return Small().eval().half()


def counter() -> nn.Module:
    """Return a network that counts its calls."""
    return Counter().eval()


def spectrum() -> nn.Module:
    """Return a network that OpenVINO refuses."""
    return Spectrum(Small()).eval()


def thin_spectrum() -> nn.Module:
    """Return the same filter before a head of few weights, none of which is worth storing in fewer bits."""
    return Spectrum(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))).eval()
