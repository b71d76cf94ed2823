"""Random weights: the same everywhere, nobody else's draw disturbed, and a network that is alive."""

from __future__ import annotations

import copy
import hashlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt

from deploykit.artifact import Preprocess
from deploykit.models import head, random_weights
from deploykit.models.random_weights import seeded, settle

RECIPE = Preprocess((3, 48, 48), "bicubic", 0.875, "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Networks with BatchNorm, for which what constructors leave answers all images alike or in hundreds.
NORMED = ("mobilenetv3_small_050", "test_efficientnet", "efficientnetv2_rw_t", "test_resnet")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return head.sample_images(RECIPE)


def _convnext(**options: Any) -> torch.nn.Module:
    with seeded():
        net: torch.nn.Module = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=10, **options)
    return net


def _built(name: str, **options: Any) -> torch.nn.Module:
    with seeded():
        net: torch.nn.Module = timm.create_model(name, num_classes=100, **options)
    return net


def _state_hash(net: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def _answers(net: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        answers: torch.Tensor = net.eval()(images)
    return answers


def test_the_surrounding_program_draws_as_if_nothing_had_been(images: torch.Tensor) -> None:
    torch.manual_seed(5)
    before, numpys, pythons = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    net = _built("mobilenetv3_small_050")
    settle(net, images)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpys)  # noqa: NPY002
    assert random.getstate() == pythons


def test_the_generator_is_given_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative"), seeded():
        torch.cat([torch.rand(3), torch.rand(-1)])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_of_zeros_is_drawn_anew(images: torch.Tensor) -> None:
    classifier = torch.nn.Linear(3, 5)
    torch.nn.init.zeros_(classifier.weight)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), classifier)
    settle(net, images)
    answers = _answers(net, images)
    assert float(answers.std(dim=0).min()) > 0


def test_the_same_weights_come_whatever_was_drawn_before(images: torch.Tensor) -> None:
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = _built("mobilenetv3_small_050")
        settle(net, images)
        hashes.add(_state_hash(net))
    assert len(hashes) == 1


def test_the_same_weights_come_in_another_process(images: torch.Tensor) -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import torch
from tests.unit.models.test_random_weights import RECIPE, _built, _state_hash, head, settle
torch.manual_seed(12345)
net = _built("test_efficientnet")
settle(net, head.sample_images(RECIPE))
print(_state_hash(net))
"""
    other = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    net = _built("test_efficientnet")
    settle(net, images)
    assert other.stdout.split() == [_state_hash(net)], other.stderr


@pytest.mark.parametrize("options", [{"ls_init_value": 1e-6}, {"ls_init_value": 1e-6, "conv_mlp": True}])
def test_layer_scale_lets_every_block_through(images: torch.Tensor, options: dict[str, Any]) -> None:
    net = _convnext(**options)
    settle(net, images)
    scales = [value.detach() for name, value in net.named_parameters() if name.endswith(".gamma")]
    assert len(scales) == 4
    whole = _answers(net, images)
    for scale in scales:
        assert 0.8 < float(scale.mean()) < 1.2
        assert 0 < float(scale.std()) < 0.3
        before = scale.clone()
        scale.zero_()
        assert float((_answers(net, images) - whole).abs().max()) > 0.01 * float(whole.std()), "this block does nothing"
        scale.copy_(before)


def test_layer_scale_of_a_vit_is_found(images: torch.Tensor) -> None:
    net = _built("vit_small_patch14_dinov2", img_size=48, depth=2)
    scales = [value.detach() for name, value in net.named_parameters() if ".ls" in name]
    assert len(scales) == 4
    assert all(float(scale.abs().mean()) < 1e-3 for scale in scales)
    settle(net, images)
    assert all(0.8 < float(scale.mean()) < 1.2 for scale in scales)


def test_scales_that_already_let_through_are_left(images: torch.Tensor) -> None:
    net = _convnext(ls_init_value=0.5)
    before = _state_hash(net)
    settle(net, images)
    assert _state_hash(net) == before


def test_a_residual_branch_that_starts_at_zero_is_opened(images: torch.Tensor) -> None:
    net = _built("test_resnet", zero_init_last=True)
    vectors = {name: value.detach() for name, value in net.named_parameters() if value.ndim == 1}
    last = [value for name, value in vectors.items() if name.endswith("weight") and not bool(value.any())]
    assert last, "the constructor leaves none at zero, so this proves nothing"
    settle(net, images)
    assert all(0.8 < float(value.mean()) < 1.2 for value in last)


@pytest.mark.parametrize("name", NORMED)
def test_answers_are_moderate_and_differ_between_images(images: torch.Tensor, name: str) -> None:
    net = _built(name)
    plain = _answers(net, images)
    settle(net, images)
    settled = _answers(net, images)
    spread, plain_spread = (float((each - each.mean(0)).std()) for each in (settled, plain))
    assert 0.1 < float(settled.abs().max()) < 100
    assert spread > 0.01
    assert plain_spread < spread / 2 or plain_spread > 2 * spread, "what the constructor leaves would do as well"


def _deep(depth: int, width: int = 16) -> torch.nn.Module:
    """Build convolutions with BatchNorm and Relu one after another, and no shortcut around any."""
    shapes = [(3, width, 4, 4, 0)] + depth * [(width, width, 3, 1, 1)]
    with seeded():
        layers = [
            part
            for shape in shapes
            for part in (torch.nn.Conv2d(*shape, bias=False), torch.nn.BatchNorm2d(width), torch.nn.ReLU())
        ]
        return torch.nn.Sequential(
            *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10)
        )


def _rounding(net: torch.nn.Module, images: torch.Tensor) -> float:
    """Return how far float32 lies from float64, relative to the largest answer."""
    exact = _answers(copy.deepcopy(net).double(), images.double())
    return float((_answers(net, images) - exact).abs().max() / exact.abs().max())


def test_a_deep_network_without_shortcuts_amplifies_no_rounding(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = _deep(60)
    with monkeypatch.context() as scope:
        scope.setattr(random_weights, "CALMER", [level for level in random_weights.CALMER if not level.shift])
        settle(net, images)
    assert _rounding(net, images) > 1e-4, "it is calm without shifts, so this proves nothing"
    settle(net, images)
    assert _rounding(net, images) < 1e-5
    answers = _answers(net, images)
    assert float((answers - answers[0]).abs().max() / answers.abs().max()) > 0.05


@pytest.mark.parametrize("name", NORMED)
def test_a_network_that_is_calm_at_once_keeps_its_shifts(images: torch.Tensor, name: str) -> None:
    net = _built(name)
    with torch.no_grad():
        for norm in random_weights._norms(net):
            norm.bias.fill_(0.125)
    settle(net, images)
    assert all(bool((norm.bias == 0.125).all()) for norm in random_weights._norms(net))


def test_a_norm_without_shift_is_settled_too(images: torch.Tensor) -> None:
    net = _deep(60)
    for layer in net.children():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight = layer.bias = None  # type: ignore[assignment]
    settle(net, images)
    assert bool(torch.isfinite(_answers(net, images)).all())


class Counted(torch.nn.Module):
    """A network that counts the images it is shown, and whose answers can be spoilt."""

    def __init__(self, net: torch.nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.net, self.factor, self.shown = net, factor, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown += len(images)
        answers: torch.Tensor = self.factor * self.net(images)
        return answers


def test_a_calm_network_sees_the_images_twice(images: torch.Tensor) -> None:
    counted = Counted(_built("test_resnet"))
    settle(counted, images)
    assert counted.shown == 2 * len(images)


def test_a_network_that_is_not_calm_shows_it_on_a_few_images(images: torch.Tensor) -> None:
    counted = Counted(_deep(60))
    settle(counted, images)
    assert counted.shown < 2 * len(images) * len(random_weights.CALMER)


def test_answers_that_are_no_numbers_are_not_calm(images: torch.Tensor) -> None:
    counted = Counted(_built("test_resnet"), factor=float("nan"))
    settle(counted, images)
    assert counted.shown == (len(images) + random_weights.CHUNK) * len(random_weights.CALMER)


class Twice(torch.nn.Module):
    """A network that normalizes twice with the same statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.norm(3 + self.norm(images))
        return answers


@pytest.mark.parametrize("build", [Twice, lambda: _built("test_resnet")])
def test_what_is_judged_are_the_answers_of_the_settled_network(
    images: torch.Tensor, build: Callable[[], torch.nn.Module]
) -> None:
    net = build().eval()
    answers = random_weights._settle_statistics(net, random_weights._norms(net), images, 0.25)
    assert torch.equal(torch.as_tensor(answers), _answers(net, images))


def test_statistics_are_those_of_the_images_seen(images: torch.Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    settle(net, images)
    torch.testing.assert_close(net[0].running_mean, images.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[0].running_var, images.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    answers = _answers(net, images)
    torch.testing.assert_close(answers.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(answers.var((0, 2, 3)), torch.ones(4), rtol=1e-2, atol=1e-2)


def test_dropout_is_off_while_statistics_settle(images: torch.Tensor) -> None:
    hashes = set()
    for rate in (0.0, 0.9):
        torch.manual_seed(int(10 * rate))
        net = torch.nn.Sequential(torch.nn.Dropout(rate), torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        with torch.no_grad():
            torch.nn.init.constant_(net[1].weight, 0.1)  # type: ignore[arg-type]
            torch.nn.init.zeros_(net[1].bias)  # type: ignore[arg-type]
        settle(net, images)
        hashes.add(_state_hash(net))
    assert len(hashes) == 1


def test_a_settled_network_is_in_evaluation_mode_with_its_momentum(images: torch.Tensor) -> None:
    net = _built("mobilenetv3_small_050", bn_momentum=0.37)
    settle(net, images)
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.37}
    assert not any(part.training for part in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(_answers(net, images), _answers(net, images))


def test_the_weights_train_afterwards(images: torch.Tensor) -> None:
    net = _built("mobilenetv3_small_050")
    settle(net, images)
    net(images[:2]).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_network_without_norms_or_scales_is_left(images: torch.Tensor) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).train()
    before = _state_hash(net)
    settle(net, images)
    assert _state_hash(net) == before
    assert not net.training
    assert random_weights.SEED == 20_261_125, "another seed makes another model of every bundle with random weights"
