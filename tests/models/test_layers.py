"""Every network lets others reach its layers by name."""

from __future__ import annotations

import pytest
import torch

from bdtune.plugins import registry
from tests.contracts.test_models import build


@pytest.mark.parametrize("name", registry.names("models"))
def test_each_weight_is_in_one_layer_and_what_layers_give_has_gradients(name):
    network = build(name).eval()
    held = [weight for layer in network.layers.values() for weight in layer.parameters()]
    assert {id(weight) for weight in held} == {id(weight) for weight in network.parameters()}
    assert len(held) == len(list(network.parameters()))
    assert list(network.layers)[-1] == "head"
    images = torch.rand(2, 3, 16, 16)
    logits, found = network.with_layers(images, [*network.layers])
    assert list(found)[-1] == "head"
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(found["head"], logits)
    assert all(each.requires_grad for each in found.values() if each is not found[next(iter(found))])
    assert not any(layer._forward_hooks for layer in network.layers.values())
