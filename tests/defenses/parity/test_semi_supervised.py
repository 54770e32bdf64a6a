"""DBD and ASD give the numbers of the authors' code."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.nn.functional import normalize

import bdtune
from bdtune.defending.isolation import flagged_lowest, symmetric_cross_entropy
from bdtune.defenses.asd.stages import ClassAware, LossGuided, Meta, MetaGuided
from bdtune.defenses.dbd import DBD
from bdtune.defenses.dbd.stages import Tune, Warmup
from bdtune.engine.stage import Context
from bdtune.training import loop
from bdtune.training.losses import cross_entropies
from bdtune.training.nt_xent import nt_xent, projection_head
from bdtune.training.semi import SemiFit
from tests.defenses.parity.cases import batch, cases, images, normalised, patterned_network
from tests.doubles import CPU

SCE = {"sce_a": 0.1, "sce_b": 1.0, "sce_clip": 1e-4}


def test_dbd_symmetric_cross_entropy():
    case = cases("dbd")["sce"]
    logits, labels = case.tensor("logits").requires_grad_(), case.array("labels")
    Warmup().loss(logits, batch(labels)).backward()
    each = symmetric_cross_entropy(cross_entropies(logits.detach().numpy(), labels), *SCE.values())
    case.agree(each=each, gradient=logits.grad)


def test_dbd_labelled():
    case = cases("dbd")["labelled"]
    losses = case.array("losses")
    case.agree(**{eps: np.flatnonzero(flagged_lowest(losses, float(eps))) for eps in case.expected})


def test_dbd_contrastive_loss():
    case = cases("dbd")["simclr"]
    case.agree(both=nt_xent(case.tensor("projections"), DBD().simclr.temperature))


def test_dbd_projections():
    case = cases("dbd")["head"]
    head = projection_head(4, 3, "normed").train()
    given = {name: case.tensor(name.replace(".", "_")) for name, _ in head.named_parameters()}
    head.load_state_dict(given, strict=False)
    case.agree(unit=normalize(head(case.tensor("features"))))


def test_dbd_mixmatch():
    case = cases("dbd")["mixmatch"]
    network = torch.nn.Linear(6, 3)
    network.load_state_dict({name: case.tensor(name) for name in ("weight", "bias")})
    recipe = DBD().semi.to(Tune, eps=0.5, per_class=False, ramp=190)
    fit = SemiFit.__new__(SemiFit)  # without data: images are given as they are seen
    fit.recipe, fit.network, fit.before = recipe, network, 10
    fit.ctx, fit.device, fit.data = Context(0, CPU), torch.device("cpu"), SimpleNamespace(num_classes=3)
    optimizer = loop.make_optimizer(network.parameters(), "adam", recipe.lr)
    losses = []
    for step, order in enumerate(case.tensor("orders")):
        known, first, second = (case.tensor(name)[step] for name in ("labelled", "first", "second"))
        seen = iter([known, torch.cat([first, second])])
        fit.see = lambda _images, _draws, seen=seen: next(seen)
        with mock.patch.object(torch, "randperm", lambda _count, generator, order=order: order):
            pair = batch(case.array("labels")[step]), batch(case.array("labels")[step])
            parts = fit._step(*pair, case.inputs["share"][step], None)
        loss = parts[0] + fit._weight(step / 3) * parts[1]
        loop.descend(optimizer, loss)
        losses.append([float(each.detach()) for each in (*parts, loss)])
    loss_x, loss_u, loss = np.mean(losses, axis=0)
    case.agree(loss_x=loss_x, loss_u=loss_u, loss=loss, **dict(network.named_parameters()))


def test_asd_pools_of_the_first_two_rules():
    case = cases("asd")["class_aware"]
    losses, fit = case.array("losses"), SimpleNamespace(labels=case.array("labels"))
    growing = ClassAware(period=1, step=2)
    found = {each: growing.split(fit, losses, int(each) // 2)[0] for each in case.expected}
    case.agree(**{each: np.flatnonzero(flags) for each, flags in found.items()})
    case = cases("asd")["class_agnostic"]
    found = {eps: LossGuided(eps=float(eps)).split(fit, losses, 0)[0] for eps in case.expected}
    case.agree(**{eps: np.flatnonzero(flags) for eps, flags in found.items()})


def test_asd_pool_of_the_third_rule():
    case = cases("asd")["meta"]
    before, after = (cross_entropies(case.array(name), case.array("labels")) for name in ("before", "after"))
    fit = SimpleNamespace(losses=lambda _network, _done: after)
    with mock.patch.object(MetaGuided, "taught", return_value=None):
        flags, fall = MetaGuided(eps=0.5, meta=Meta(), **SCE).split(fit, before, 0)
    case.agree(fall=fall, labelled=np.flatnonzero(flags))


def test_asd_virtual_model_trains_the_same_layers():
    layers = bdtune.model("resnet18").build(10, (32, 32, 3)).layers.values()
    parts = [[weight.numel() for weight in part.parameters()] for part in layers]
    last = [part for part in parts if part][-Meta().layers :]
    cases("asd")["virtual"].agree(count=sum(map(sum, last)))


def test_asd_virtual_model_after_some_steps():
    data = images(30, labels=np.arange(30) % 3)
    network = patterned_network("resnet18", width=2)
    fit = SimpleNamespace(judged=network, data=data, device=torch.device("cpu"), ctx=Context(0, CPU))
    stage = MetaGuided(eps=0.5, meta=Meta(passes=3, optimizer="sgd"), augment="none", **SCE)
    taught = stage.taught(fit, 0).eval()
    with torch.no_grad():
        cases("asd")["taught"].agree(logits=taught(normalised(data)[:8]))
