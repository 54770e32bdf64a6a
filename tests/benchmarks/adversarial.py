"""Seconds per epoch of adversarial training, beside natural training and plain PGD loops in the same run.

    python tests/benchmarks/adversarial.py --images 512 --width 16

The plain loop is written as torchattacks writes PGD (normalisation and clone in each step, weights in the
graph, fp32, channels first), around the training loop of a tutorial; with torchattacks installed the same
loop is also run with its own PGD (`pip install --no-deps torchattacks`: it asks for an old requests that it
hardly uses, and what else it needs is here). Nothing is augmented. Epochs of all loops alternate, so that a
busy machine slows each alike; the first epoch of each is not counted. Give it cores of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import ImageSet
from bdtune.training.adversarial import PGD, AdversarialTraining

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Attack = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def synthetic(count: int) -> ImageSet:
    """Return random images of CIFAR's size, ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(images, rng.integers(0, 10, count), 10, MEAN, STD)


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network((pixels - self.mean) / self.std)


def plain_pgd(model: nn.Module, pgd: PGD) -> Attack:
    """Return PGD in the words of torchattacks."""

    def attack(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        model.eval()
        found = images.clone().detach()
        found = found + torch.empty_like(found).uniform_(-pgd.eps, pgd.eps)
        found = torch.clamp(found, min=0, max=1).detach()
        for _ in range(pgd.steps):
            found.requires_grad = True
            cost = nn.CrossEntropyLoss()(model(found), labels)
            grad = torch.autograd.grad(cost, found, retain_graph=False, create_graph=False)[0]
            found = found.detach() + pgd.step * grad.sign()
            delta = torch.clamp(found - images, min=-pgd.eps, max=pgd.eps)
            found = torch.clamp(images + delta, min=0, max=1).detach()
        model.train()
        return found

    return attack


def torchattacks_pgd(model: nn.Module, pgd: PGD) -> Attack:
    """Return the PGD of torchattacks itself."""
    import torchattacks

    return torchattacks.PGD(model, eps=pgd.eps, alpha=pgd.step, steps=pgd.steps, random_start=True)


def plain_epochs(
    data: ImageSet, width: int, device: str, attack_of: Callable[[nn.Module], Attack]
) -> Iterator[None]:
    """Train for ever as a tutorial would, one epoch per step of the iterator."""
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2).float().div(255).contiguous().to(device)
    labels = torch.from_numpy(data.labels).to(device)
    model = Normalised(bdtune.model("resnet18", width=width).build(10, (32, 32, 3))).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    attack = attack_of(model)
    while True:
        for rows in torch.randperm(len(labels)).split(128):
            found = attack(images[rows], labels[rows])
            loss = cross_entropy(model(found), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        yield


def loops(data: ImageSet, width: int, epochs: int, pgd: PGD) -> dict[str, Iterator[object]]:
    """Return the loops to compare; each step of an iterator trains one epoch."""
    numerics = Numerics().resolved()
    fp32 = numerics.model_copy(update={"precision": "fp32"})
    model = bdtune.model("resnet18", width=width)
    inputs = {"data": data, "model": model, "subset": AllSamples().run(Context(), data=data)}
    stage = AdversarialTraining(epochs=epochs, augment="none", pgd=pgd)
    found: dict[str, Iterator[object]] = {}
    for kind in dict.fromkeys([fp32, numerics]):
        ctx = Context(seed=0, numerics=kind)
        found[f"Supervised, {kind.precision}"] = stage.natural().steps(ctx, **inputs)
        found[f"AdversarialTraining, {kind.precision}"] = stage.steps(ctx, **inputs)
    attacks = {"plain natural, fp32": lambda model: lambda images, labels: images}
    attacks["plain PGD as torchattacks, fp32"] = lambda model: plain_pgd(model, pgd)
    if importlib.util.find_spec("torchattacks"):
        attacks["torchattacks.PGD, fp32"] = lambda model: torchattacks_pgd(model, pgd)
    for name, attack in attacks.items():
        found[name] = plain_epochs(data, width, numerics.device, attack)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-18's first stage")
    parser.add_argument("--steps", type=int, default=10, help="steps of the attack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pgd = PGD(steps=options.steps)
    running = loops(synthetic(options.images), options.width, options.rounds + 2, pgd)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):
        for name, steps in running.items():
            began = time.perf_counter()
            next(steps)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    print(f"ResNet-18 of width {options.width}, {options.images} images of 32x32, PGD-{options.steps}")
    print(f"{device}, torch {torch.__version__}")
    print(f"{'loop':<36}{'s/epoch':>10}{'of natural':>12}{'of plain PGD':>14}")
    natural, plain = medians["Supervised, fp32"], medians["plain PGD as torchattacks, fp32"]
    for name, median in medians.items():
        print(f"{name:<36}{median:>10.2f}{median / natural:>12.2f}{median / plain:>14.2f}")


if __name__ == "__main__":
    main()
