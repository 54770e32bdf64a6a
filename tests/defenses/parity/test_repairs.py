"""Neural Cleanse, Fine-Pruning and fine-tuning give the numbers of published code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.defenses.fine_pruning.stages import Rank
from bdtune.defenses.neural_cleanse.costs import Costs
from bdtune.defenses.neural_cleanse.inversion import Inversion
from bdtune.defenses.neural_cleanse.inverter import Inverter, squashed
from bdtune.defenses.neural_cleanse.outliers import Outliers
from bdtune.engine.stage import Artefact, Context
from bdtune.training import loop
from bdtune.training.fine_tune_parts import Sharpness, shift_head, smooth_labels
from bdtune.training.weights import module_arrays
from tests.defenses.parity.cases import batch, cases, images, patterned_network
from tests.doubles import CPU

CTX = Context(0, CPU)


# Neural Cleanse


def test_neural_cleanse_schedule():
    case = cases("neural_cleanse")["schedule"]
    costs, trace = Costs(Inversion(), 5), []
    for worked, norm in zip(case.tensor("worked").T, torch.tensor(case.array("norm")).T, strict=True):
        trace.append(costs.cost.clone())
        costs.update(worked.double(), norm, costs.candidates(worked, norm))
    best = torch.where(costs.reached, costs.best, -1.0)
    case.agree(cost=torch.stack(trace, 1), epochs=costs.epochs, best=best)


@pytest.mark.parametrize(("name", "median"), [("outliers", "mean"), ("outliers_lower", "lower")])
def test_neural_cleanse_outliers(name, median):
    case = cases("neural_cleanse")[name]
    inversion = Artefact({"norm": case.array("norms"), "reached": np.ones(10, bool)})
    knobs = {"threshold": 2.0, "false_alarms": None, "side": "small", "unreached": "leave_out"}
    found = Outliers(median=median, **knobs).run(CTX, inversion=inversion)
    index, flagged = found.arrays["index"].max(), np.flatnonzero(found.arrays["flagged"])
    case.agree(index=index, flagged=flagged, median=found.info["median"], deviation=found.info["deviation"])


def test_neural_cleanse_inversion():
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    classifier = Artefact(module_arrays(patterned_network()))
    knobs = Inversion(batch_size=64, images="all", start="ones", start_cost="initial", initial_cost=0.01,
                      patience=1000, early_stop=False)  # fmt: skip
    data = images(30, mean=mean, std=std)
    inverter = Inverter(knobs, CTX, data, bdtune.model("resnet_s", stem_width=4), classifier)
    for done in range(5):
        inverter.epoch(done)
    mask, pattern = (squashed(value.detach()) for value in inverter.free.values())
    cases("neural_cleanse")["inversion"].agree(mask=mask[..., 0], pattern=pattern[:, :3, :3])


# Fine-Pruning


def ranked(absolute):
    """Return the ranking of a network's channels."""
    network = patterned_network("resnet18", width=2)
    given = {"data": images(30), "subset": Artefact({"ids": np.arange(30)})}
    given |= {"model": bdtune.model("resnet18", width=2), "classifier": Artefact(module_arrays(network))}
    return Rank(layer="features", pooling="mean", absolute=absolute).run(CTX, **given).arrays


def test_fine_pruning_of_the_toolbox():
    cases("fine_pruning")["toolbox"].agree(pruned=np.sort(ranked(absolute=True)["order"][:9]))


def test_fine_pruning_ranking():
    cases("fine_pruning")["ranking"].agree(**ranked(absolute=False))


# Fine-tuning


class Normed(nn.Module):
    """Batch norm, then a head."""

    def __init__(self, case, norm):
        super().__init__()
        self.norm, self.head = norm, nn.Linear(5, 6)
        self.head.load_state_dict({name: case.tensor(name) for name in ("weight", "bias")})

    def forward(self, seen):
        return self.head(self.norm(seen))


def fitted(case, network, lr, **knobs):
    """Return what the parts of a fine-tuning change."""
    optimizer = loop.make_optimizer(network.parameters(), "sgd", lr, momentum=0.9, **knobs)
    fit = SimpleNamespace(network=network, optimizer=optimizer, ctx=CTX, data=SimpleNamespace(num_classes=6))
    fit.prepare, fit.loss = (lambda rows, _: rows.images), (lambda out, rows: cross_entropy(out, rows.labels))
    fit.init = Artefact({"model.head.weight": network.head.weight.detach().numpy().copy()})
    return fit


def descend(case, fit):
    """Pass once over the case's batches."""
    for seen, labels in zip(case.tensor("images"), case.array("labels"), strict=True):
        rows = batch(labels)._replace(images=seen)
        loop.descend(fit.optimizer, fit.loss(fit.network(fit.prepare(rows, None)), rows))


def test_ft_sam():
    case, found = cases("fine_tuning")["ft_sam"], {}
    for name, adaptive in (("adaptive", True), ("plain", False)):
        network = Normed(case, nn.BatchNorm1d(5))
        fit = fitted(case, network, 0.01, weight_decay=5e-4)
        smooth_labels(fit, 0.1)
        Sharpness(fit, 2.0, adaptive=adaptive)
        descend(case, fit)
        found |= {name: network.head.weight, f"{name}_running_mean": network.norm.running_mean}
    case.agree(**found)


def test_fst():
    case = cases("fine_tuning")["fst"]
    network = Normed(case, nn.Identity())
    fit = fitted(case, network, 0.05)
    shift_head(fit, 0.1, project=True)
    descend(case, fit)
    case.agree(**dict(network.head.named_parameters()))
