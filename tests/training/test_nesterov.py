"""Nesterov's momentum: against torch's own, and as a knob that is written in a file."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.knobs import Knobs
from bdtune.training.nesterov import Nesterov, Training
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays

CTX = Context(seed=2, numerics=Numerics(device="cpu", precision="fp32"))
KNOBS = {"epochs": 2, "batch_size": 8, "lr": 0.05, "augment": "none"}


class Owner(Knobs):
    train: Training = Supervised()


def test_steps_are_torchs(tiny):
    torch.manual_seed(0)
    ours = tiny.build(3, (16, 16, 3))
    theirs = tiny.build(3, (16, 16, 3))
    theirs.load_state_dict(ours.state_dict())
    stage = Nesterov(lr=0.05)
    rules = (
        stage.new_optimizer(ours),
        torch.optim.SGD(theirs.parameters(), 0.05, 0.9, weight_decay=stage.weight_decay, nesterov=True),
    )
    for _ in range(3):
        images = torch.rand(4, 3, 16, 16)
        for network, rule in zip((ours, theirs), rules, strict=True):
            rule.zero_grad()
            network(images).square().sum().backward()
            rule.step()
    for name, value in module_arrays(theirs).items():
        assert module_arrays(ours)[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_it_differs_from_plain_sgd_where_it_looks_ahead(make_set, everything, tiny):
    data = make_set(24)
    inputs = {"data": data, "subset": everything(data), "model": tiny}

    def digest(stage):
        return digest_of(stage.run(inputs, CTX).arrays, 0)

    plain = digest(Supervised(**KNOBS))
    assert digest(Nesterov(**KNOBS)) != plain
    assert digest(Nesterov(**KNOBS, nesterov=False)) == plain
    adam = {**KNOBS, "optimizer": "adam"}
    assert digest(Nesterov(**adam)) == digest(Supervised(**adam))


@pytest.mark.parametrize(
    ("knobs", "ahead"),
    [({}, True), ({"nesterov": False}, False), ({"optimizer": "adamw"}, False), ({"momentum": 0.0}, False)],
)
def test_alone_it_is_plain_where_it_does_nothing(knobs, ahead):
    found = Nesterov(epochs=3, **knobs).alone(lr=0.2)
    assert type(found) is (Nesterov if ahead else Supervised)
    assert (found.epochs, found.lr, found.name) == (3, 0.2, "supervised")


@pytest.mark.parametrize("written", [{}, {"nesterov": True}, {"nesterov": True, "milestones": [0.3]}])
def test_as_a_knob_it_is_written_beside_the_others(written):
    owner = Owner.model_validate_json(json.dumps({"train": written}), strict=True)
    assert owner == Owner(train=written)
    assert type(owner.train) is (Nesterov if written else Supervised)
    assert owner.train.weight_decay == Supervised().weight_decay
    again = Owner.model_validate_json(owner.model_dump_json(), strict=True)
    assert again == owner
    assert type(again.train) is type(owner.train)
    assert Owner(train=owner.train).train is owner.train


@pytest.mark.parametrize("wrong", [{"nesterov": 1}, {"nesterov": True, "lr": 0}, {"nesterovs": True}, 3])
def test_what_is_wrong_with_the_knob_is_said(wrong):
    with pytest.raises(ValidationError, match="train"):
        Owner(train=wrong)
