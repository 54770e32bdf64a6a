"""Time of K trigger inversions together, beside the same one by one: `python -m tests.benchmarks.inversion`.

One by one is the obvious program: for each class a mask and a pattern, autograd and `torch.optim.Adam`, the
network frozen and in evaluation mode, float32 and for comparison bf16. Together adds one idea at a time: all
classes in one pass, batch norm folded into the convolutions, bf16. All make as many steps on the same images.
They run in turn within one process; the best of several rounds counts.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.defenses.neural_cleanse.inversion import Inversion
from bdtune.defenses.neural_cleanse.inverter import Inverter
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import ImageSet
from bdtune.poisoning.crafting import frozen_network
from bdtune.training.session import autocast
from bdtune.training.weights import module_arrays, new_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from bdtune.plugins.model import Model

    Precision = Literal["fp32", "bf16"]

BATCH = 32
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def one_by_one(model: Model, data: ImageSet, numerics: Numerics) -> Callable[[], None]:
    """Return a function that passes once over the images for every class, one after the other."""
    network = new_network(model, data, 0, numerics).eval().requires_grad_(False)
    device = next(network.parameters()).device
    images = torch.as_tensor(np.asarray(data.images), device=device).permute(0, 3, 1, 2) / 255
    labels = torch.as_tensor(data.labels, device=device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (data.mean, data.std))
    sides, count = images.shape[2:], data.num_classes
    free = [
        (torch.randn(1, *sides, device=device), torch.randn(3, *sides, device=device)) for _ in range(count)
    ]
    adams = [
        torch.optim.Adam([part.requires_grad_() for part in pair], lr=0.1, betas=(0.5, 0.9)) for pair in free
    ]

    def epoch() -> None:
        for label, ((own_mask, own_pattern), adam) in enumerate(zip(free, adams, strict=True)):
            hits = 0
            for batch in torch.randperm(len(images), device=device).split(BATCH):
                rows = batch[labels[batch] != label]
                mask, pattern = (own_mask.tanh() + 1) / 2, (own_pattern.tanh() + 1) / 2
                with autocast(numerics):
                    logits = network(((1 - mask) * images[rows] + mask * pattern - mean) / std).float()
                goals = torch.full((len(rows),), label, device=device)
                loss = cross_entropy(logits, goals) + 1e-3 * mask.sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
                hits += int((logits.argmax(1) == goals).sum())

    return epoch


def together(model: Model, data: ImageSet, numerics: Numerics, *, fold: bool = True) -> Callable[[], None]:
    """Return a function that passes once over the images for all classes with `Inversion`."""
    weights = Artefact(module_arrays(new_network(model, data, 0, numerics)))
    stage = Inversion(epochs=10**4, batch_size=BATCH, start_cost="initial", early_stop=False)
    inverter = Inverter(stage, Context(numerics=numerics), data, model, weights)
    if not fold:
        inverter.network = frozen_network(model, data, weights, numerics)
    epochs = iter(range(10**4))
    return lambda: inverter.epoch(next(epochs))  # type: ignore[return-value]


def ways(model: Model, data: ImageSet, device: Literal["cpu", "cuda"]) -> dict[str, Callable[[], None]]:
    """Return the alternatives by the names of their columns."""
    fp32, bf16 = (Numerics(device=device, precision=each) for each in ("fp32", "bf16"))  # type: ignore[arg-type]
    return {
        "one by one": one_by_one(model, data, fp32),
        "its bf16": one_by_one(model, data, bf16),
        "together": together(model, data, fp32, fold=False),
        "folded": together(model, data, fp32),
        "folded bf16": together(model, data, bf16),
    }


def seconds(epoch: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    """Return the seconds of one call."""
    start = clock()
    epoch()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Print one line per number of classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 43, 200])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=int, default=8, help="of a resnet18")
    parser.add_argument("--side", type=int, default=16, help="of the images")
    parser.add_argument("--images", type=int, default=64, help="clean images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: on a busy machine, one thread")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = (
        bdtune.model("resnet18", width=args.width) if args.model == "resnet18" else bdtune.model(args.model)
    )
    what = f"{args.model}, images of {args.side} pixels, batches of {BATCH}"
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {what}, {args.clock} time")
    for classes in args.classes:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (args.images, args.side, args.side, 3), dtype=np.uint8)
        labels = rng.integers(0, classes, args.images)
        data = ImageSet(images, labels, classes, (0.5,) * 3, (0.25,) * 3)
        compared = ways(model, data, args.device)
        if classes == args.classes[0]:
            print("ms per step and class" + "".join(f"{name:>13}" for name in compared) + "   ratio")
        for way in compared.values():
            seconds(way, args.device, CLOCKS[args.clock])  # warm up
        rounds = [
            [seconds(way, args.device, CLOCKS[args.clock]) for way in compared.values()]
            for _ in range(args.rounds)
        ]
        steps = classes * -(-args.images // BATCH)
        best = [1000 * min(times) / steps for times in zip(*rounds, strict=True)]
        columns = "".join(f"{value:13.2f}" for value in best)
        print(f"K = {classes:<17}{columns}{best[0] / best[-1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
