from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bdtune.plugins import registry
from bdtune.plugins.network import Pooled
from bdtune.testing.models import sides
from bdtune.training.fused_network import CannotFuse, FusedNetwork, RandomStream, rehearse
from bdtune.training.loop import make_optimizer

MEMBERS, BATCH, CLASSES = 2, 4, 3
EXACT = 1e-7
NARROW = {"width": 4, "stem_width": 4}
KNOBS = [(name, {}) for name in registry.names("models")]
KNOBS += [
    ("vgg16", {"batch_norm": False}),
    ("resnet18", {"stem": "imagenet"}),
    ("densenet121", {"stem": "imagenet"}),
]


def built(name, count=MEMBERS, **knobs):
    cls = registry.load("models", name)
    knobs = {**{knob: value for knob, value in NARROW.items() if knob in cls.model_fields}, **knobs}
    side = 32 if knobs.keys() & {"stem", "classifier"} else sides(name)[0]
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = cls(**knobs).build(CLASSES, (side, side, 3))
        networks.append(network.to(memory_format=torch.channels_last).train())
    return networks, side


def batches(side, count=MEMBERS):
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(count, BATCH, 3, side, side, generator=draws)
    labels = torch.randint(0, CLASSES, (count, BATCH), generator=draws)
    return [x.to(memory_format=torch.channels_last) for x in images], labels


def step_alone(network, optimizer, images, labels):
    logits = network(images)
    optimizer.zero_grad()
    cross_entropy(logits, labels).backward()
    optimizer.step()
    return logits.detach()


def step_together(fused, optimizers, images, labels):
    logits = fused(images)
    fused.clear_gradients()
    sum(cross_entropy(logits[:, member], labels[member]) for member in range(len(images))).backward()
    for optimizer in optimizers:
        optimizer.step()
    return logits.detach().unbind(1)


def relative(one, other):
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


@pytest.mark.parametrize(("name", "knobs"), KNOBS, ids=str)
def test_steps_are_those_of_each_network_alone(name, knobs, monkeypatch):
    """In float64, where what is left is the order of sums: batch norm of few values amplifies rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    together, side = built(name, **knobs)
    together = [network.double() for network in together]
    alone = copy.deepcopy(together)
    images, labels = batches(side)
    images = [x.double() for x in images]
    rates = [0.001 * (member + 1) for member in range(MEMBERS)]
    fused = FusedNetwork(together)
    rehearse(fused, together, images)
    own, others = (
        [
            make_optimizer(network.parameters(), "sgd", rate, weight_decay=rate)
            for network, rate in zip(networks, rates, strict=True)
        ]
        for networks in (together, alone)
    )
    for _ in range(2):
        found = step_together(fused, own, images, labels)
        for member, network in enumerate(alone):
            expected = step_alone(network, others[member], images[member], labels[member])
            assert relative(found[member], expected) < EXACT
    for one, other in zip(together, alone, strict=True):
        state = other.state_dict()
        assert set(one.state_dict()) == set(state)
        for key, value in one.state_dict().items():
            assert value.shape == state[key].shape
            assert torch.allclose(value, state[key], rtol=EXACT, atol=EXACT), key
        largest = max(float(weight.grad.norm()) for weight in other.parameters())
        for (key, weight), single in zip(one.named_parameters(), other.parameters(), strict=True):
            assert float((weight.grad - single.grad).norm()) < EXACT * largest, key


def test_members_can_be_used_and_stepped_by_themselves():
    networks, side = built("resnet_s")
    images, labels = batches(side)
    fused = FusedNetwork(networks).eval()
    optimizer = make_optimizer(networks[1].parameters(), "adam", 0.1)
    before = fused(images).detach()
    optimizer.zero_grad(set_to_none=False)
    cross_entropy(networks[1].eval()(images[1]), labels[1]).backward()
    optimizer.step()
    after = fused(images).detach()
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.allclose(after[:, 1], networks[1](images[1]), atol=1e-5)
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_what_is_not_finite_stays_with_its_member():
    networks, side = built("resnet18")
    alone = copy.deepcopy(networks)
    images, labels = batches(side)
    images[1] = images[1] * float("nan")
    fused = FusedNetwork(networks)
    optimizers = [make_optimizer(network.parameters(), "sgd", 0.01) for network in networks]
    step_together(fused, optimizers, images, labels)
    assert all(weight.isfinite().all() for weight in networks[0].parameters())
    assert not all(weight.isfinite().all() for weight in networks[1].parameters())
    step_alone(alone[0], make_optimizer(alone[0].parameters(), "sgd", 0.01), images[0], labels[0])
    for one, other in zip(networks[0].parameters(), alone[0].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_dropout_draws_what_each_training_draws_alone():
    def network(seed):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(3, 8, 3),
            nn.Dropout(0.3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 8),
            nn.Dropout(),
        )
        return Flat(nn.Sequential(*layers), 8, CLASSES)

    alone = [network(seed) for seed in range(MEMBERS)]
    images, _ = batches(8)
    fused = FusedNetwork(copy.deepcopy(alone))
    streams = [RandomStream(seed) for seed in range(MEMBERS)]
    outside = torch.get_rng_state()
    found = [fused(images, streams).detach() for _ in range(2)]
    assert torch.equal(outside, torch.get_rng_state())
    for member, single in enumerate(alone):
        torch.manual_seed(member)
        for logits in found:
            assert torch.allclose(logits[:, member], single(images[member].contiguous()), atol=1e-5)
    assert relative(found[0], found[1]) > 1e-2


class Flat(Pooled):
    """A body that gives features by itself."""

    def features(self, images):
        return self.body(images.contiguous())


class Mixing(Pooled):
    """Divides features by their norm, over all channels: those of all members."""

    def features(self, images):
        return nn.functional.normalize(super().features(images))


class Scale(nn.Module):
    """A layer that nobody knows."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.factor


def test_a_forward_pass_that_mixes_channels_is_noticed():
    networks = [Mixing(nn.Sequential(nn.Conv2d(3, 4, 3)), 4, CLASSES) for _ in range(2)]
    images, _ = batches(8, 2)
    fused = FusedNetwork(networks)
    state = copy.deepcopy(fused.state_dict())
    with pytest.raises(CannotFuse, match="depend on one another"):
        rehearse(fused, networks, images)
    assert all(network.training for network in networks), "they are trained one by one then"
    assert all(torch.equal(value, state[key]) for key, value in fused.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Scale(), "Scale"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.BatchNorm2d(3, momentum=None), "running mean"),
    ],
)
def test_a_layer_that_is_not_known_is_refused(layer, why):
    networks = [Pooled(nn.Sequential(copy.deepcopy(layer)), 4, CLASSES) for _ in range(2)]
    with pytest.raises(CannotFuse, match=why):
        FusedNetwork(networks)
