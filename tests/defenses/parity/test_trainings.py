"""D-ST, CBD, NAD, ABL and the attacks of adversarial trainings give the numbers of published code."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.defending.isolation import count_of, lowest
from bdtune.defenses.aabl.losses import IFGSM, AdversarialLosses
from bdtune.defenses.aabl.split import otsu
from bdtune.defenses.abl.training import Isolate, Recover, Unlearn
from bdtune.defenses.cbd.deconfounding import Deconfounding, dependence, new_discriminator
from bdtune.defenses.cbd.training import Clean, Discriminator
from bdtune.defenses.dst.consistency import Consistency
from bdtune.defenses.dst.objectives import intra, mixed
from bdtune.defenses.dst.split import flagged
from bdtune.defenses.dst.training import Extractor, Head, Repair
from bdtune.defenses.nad.attention import Distillation, apart, attention
from bdtune.defenses.nad.stages import Distil
from bdtune.engine.stage import Artefact, Context
from bdtune.training import loop
from bdtune.training.adversarial import PGD
from bdtune.training.losses import cross_entropies
from bdtune.training.pgd import Ascent, pixel_logits
from bdtune.training.predict import trained_network
from bdtune.training.sup_con import SupCon
from bdtune.training.sup_con_loss import sup_con
from bdtune.training.weights import module_arrays
from tests.defenses.parity.cases import batch, cases, images, normalised, patterned_network
from tests.doubles import CPU

CTX = Context(0, CPU)
MODEL = bdtune.model("resnet_s", stem_width=4)


def linear(weight, bias=None):
    """Return a linear layer with these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


# D-ST


def test_dst_contrastive_losses():
    case = cases("dst")["sup_con"]
    projections, known = case.tensor("projections"), case.tensor("flags") == 0
    temperatures = Extractor().temperature, Extractor().base_temperature
    found = {}
    for positives in case.expected:
        partners = SupCon(positives=positives).partners(batch(case.array("labels")), known)
        found[positives] = sup_con(projections, partners, *temperatures)
    case.agree(**found)


def test_dst_l_intra():
    case = cases("dst")["intra"]
    layer = linear(case.tensor("weight"), case.tensor("bias"))
    loss = intra(layer(case.tensor("inputs")).relu(), case.tensor("labels"), 6)
    loop.descend(torch.optim.SGD(layer.parameters(), 0.5), loss)
    case.agree(loss=loss, **dict(layer.named_parameters()))


def test_dst_consistency():
    features = Artefact(module_arrays(patterned_network()))
    found = Consistency(transforms=("flip",)).run(CTX, data=images(30), model=MODEL, features=features)
    cases("dst")["fct"].agree(fct=found.arrays["fct"])


def test_dst_flags():
    case = cases("dst")["flags"]
    case.agree(flags=flagged(case.array("fct"), 0.2, 0.05, "all"))


def test_dst_mixed_cross_entropy():
    case = cases("dst")["mixed"]
    head = linear(case.tensor("weight"), case.tensor("bias"))
    losses = cross_entropy(head(case.tensor("features")), case.tensor("labels"), reduction="none")
    loss = mixed(losses, case.tensor("flags") == 2, Head().lambda_p)
    loop.descend(torch.optim.SGD(head.parameters(), Head().lr), loss)
    case.agree(loss=loss, **dict(head.named_parameters()))


def test_dst_repair():
    bad = np.arange(30) % 5 == 0
    data = images(30, labels=np.where(bad, 0, np.arange(30) % 3))
    network = patterned_network("resnet18", width=2)
    clean, poison = (
        Artefact({"ids": np.flatnonzero(rows), "labels": data.labels[rows]}) for rows in (~bad, bad)
    )
    stage = Repair(epochs=2, lr=0.002, batch_size=64, augment="none")
    given = {"data": data, "subset": clean, "poison": poison, "model": bdtune.model("resnet18", width=2)}
    mended = stage.run(CTX, **given, init=Artefact(module_arrays(network)))
    repaired = trained_network(given["model"], data, mended, CPU)
    with torch.no_grad():
        cases("dst")["repair"].agree(logits=repaired(normalised(data)[:8]))


# CBD


def test_cbd_weighted_loss():
    case = cases("cbd")["weighted"]
    z, known, head = case.tensor("features"), linear(case.tensor("known")), linear(case.tensor("weight"))
    rows = batch(case.array("labels"))
    part = Deconfounding.__new__(Deconfounding)  # without data: features are given
    part._recipe, part.optimizers, part._done = Clean(terms="weights"), {}, 0
    part._weights, part._features = torch.zeros(1, len(z)), lambda: z
    part._losses = cross_entropy(known(case.tensor("backdoored")), rows.labels, reduction="none").detach()
    loss = part.loss(head(z), rows)
    loop.descend(torch.optim.SGD(head.parameters(), 0.1), loss)
    case.agree(loss=loss, weight=head.weight)


def test_cbd_dependence():
    case = cases("cbd")["dependence"]
    made = new_discriminator(8, 4, Discriminator(lipschitz="none")).eval()
    layers = [layer for layer in made if isinstance(layer, nn.Linear)]
    for name, layer in zip(("l_in", "l_out"), layers, strict=True):
        layer.load_state_dict({part: case.tensor(f"{name}_{part}") for part in ("weight", "bias")})
    z = case.tensor("features").requires_grad_()
    value = Clean().coefficient * dependence(made, case.tensor("backdoored"), z)
    value.backward()
    case.agree(value=value, gradient=z.grad)


def test_cbd_discriminator_drops_inputs_and_hidden_units():
    made = new_discriminator(8, 4, Discriminator())
    seen = []
    for layer in set(made):
        if isinstance(layer, nn.Dropout):
            layer.register_forward_pre_hook(lambda one, given: seen.append((given[0].shape[1], one.p)))
    made(torch.zeros(2, 8))
    widths, shares = zip(*seen, strict=True)
    cases("cbd")["dropout"].agree(widths=widths, shares=shares)


def test_cbd_rates():
    cases("cbd")["rates"].agree(rates=[Clean().rate(done) for done in range(100)])


# NAD


def test_nad_attention():
    case = cases("nad")["attention"]
    student, teacher = case.tensor("student"), case.tensor("teacher")
    pairs = {p: (attention(student, float(p)), attention(teacher, float(p))) for p in case.expected}
    case.agree(**{p: apart(*pair, Distil().distance) for p, pair in pairs.items()})


class Shown(nn.Module):
    """Gives fixed maps on the way to fixed logits."""

    def __init__(self, maps, logits):
        super().__init__()
        self.maps, self.logits = maps, logits
        self.layers = {str(place): nn.Identity() for place in range(len(maps))}

    def forward(self, _seen):
        for layer, each in zip(self.layers.values(), self.maps, strict=True):
            layer(each)
        return self.logits


def test_nad_step():
    case = cases("nad")["step"]
    maps = [case.tensor(f"student_{place}").requires_grad_() for place in range(3)]
    logits = case.tensor("logits").requires_grad_()
    teacher = Shown([case.tensor(f"teacher_{place}") for place in range(3)], None)
    fit = SimpleNamespace(network=Shown(maps, logits), ctx=CTX, device=torch.device("cpu"))
    fit.prepare, fit.loss = (lambda *_: None), (lambda logits, rows: cross_entropy(logits, rows.labels))
    knobs = Distil()
    Distillation(fit, teacher, list(teacher.layers), knobs.beta, knobs.power, knobs.distance)
    rows = batch(case.array("labels"))
    loss = fit.loss(fit.network(fit.prepare(rows, None)), rows)
    loss.backward()
    gradients = {f"gradient_{place}": each.grad for place, each in enumerate(maps)}
    case.agree(loss=loss, gradient=logits.grad, **gradients)


def test_nad_rates():
    cases("nad")["rates"].agree(rates=[Distil().rate(done) for done in range(20)])


# ABL


def abl_weights(case, stage, loss):
    """Return the weights after a pass over the case's batches by a stage's recipe."""
    layer = linear(case.tensor("weight"))
    knobs = {"momentum": stage.momentum, "nesterov": stage.looks_ahead, "weight_decay": stage.weight_decay}
    optimizer = loop.make_optimizer(layer.parameters(), "sgd", stage.lr, **knobs)
    for seen, labels in zip(case.tensor("images"), case.tensor("labels"), strict=True):
        loop.descend(optimizer, loss(layer(seen), labels))
    return layer.weight


def test_abl_isolation():
    case, found = cases("abl")["isolation"], {}
    for ascent in case.expected:
        stage = Isolate(ascent=ascent)

        def loss(logits, labels, stage=stage):
            return stage.objective(cross_entropy(logits, labels, reduction="none"))

        found[ascent] = abl_weights(case, stage, loss)
    case.agree(**found)


def test_abl_unlearning():
    case, stage = cases("abl")["unlearning"], Unlearn()
    case.agree(weight=abl_weights(case, stage, lambda logits, y: stage.loss(logits, batch(y))))


def test_abl_isolated():
    case = cases("abl")["isolated"]
    logits = linear(case.tensor("weight"))(case.tensor("images")).detach().numpy()
    case.agree(ids=lowest(cross_entropies(logits, case.array("labels")), count_of(0.1, 60)))


def test_abl_rates():
    stages = Recover(), Unlearn()
    recover, unlearn = ([stage.rate(done) for done in range(stage.epochs)] for stage in stages)
    cases("abl")["rates"].agree(recover=recover, unlearn=unlearn)


# Adversarial trainings


def test_pgd():
    case, network, data = cases("adversarial_training")["pgd"], patterned_network(), images(12)
    labels, pixels = case.tensor("labels"), torch.tensor(data.images).permute(0, 3, 1, 2) / 255
    moved = Ascent(network, PGD(random_start=False), data, CPU)(pixels, labels)
    losses = cross_entropy(pixel_logits(network, data, moved), labels, reduction="none")
    case.agree(change=np.round(((moved - pixels)[:2] * 255).numpy(), 3), losses=losses)


def test_aabl_iterated_fgsm():
    case = cases("aabl")["ifgsm"]
    classifier = Artefact(module_arrays(patterned_network()))
    data = images(12, labels=case.array("labels"))
    found = AdversarialLosses(pgd=IFGSM()).run(CTX, data=data, model=MODEL, classifier=classifier)
    case.agree(losses=found.arrays["losses"])


def test_aabl_otsu():
    case = cases("aabl")["otsu"]
    scores = case.array("scores")
    case.agree(middle=otsu(scores, 256)[0] - np.ptp(scores) / 256 / 2)
