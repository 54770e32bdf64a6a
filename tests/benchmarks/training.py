"""Images per second of the training stages, beside a plain PyTorch loop of the same network in the same run.

    python tests/benchmarks/training.py --images 10000 --width 16

The plain loop is fp32, channels first, without augmentation, from normalised float images in memory. Epochs
of all loops alternate, so that a busy machine slows each alike; the first epoch of each is not counted. Give
it cores of its own: two threads that share a core with other work wait for each other at every layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import ImageSet
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def synthetic(count: int) -> ImageSet:
    """Return random images of CIFAR's size, ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(images, rng.integers(0, 10, count), 10, MEAN, STD)


def plain_epochs(data: ImageSet, width: int, device: str) -> Iterator[None]:
    """Train for ever as a tutorial would, one epoch per step of the iterator."""
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255
    images = (
        ((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        .contiguous()
        .to(device)
    )
    labels = torch.from_numpy(data.labels).to(device)
    network = bdtune.model("resnet18", width=width).build(10, (32, 32, 3)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    while True:
        for rows in torch.randperm(len(labels)).split(128):
            loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield


def loops(data: ImageSet, width: int, epochs: int) -> dict[str, Iterator[object]]:
    """Return the loops to compare; each step of an iterator trains one epoch."""
    numerics = Numerics().resolved()
    model, ctx = bdtune.model("resnet18", width=width), Context(seed=0, numerics=numerics)
    inputs = {"data": data, "model": model, "subset": AllSamples().run(ctx, data=data)}
    fp32 = Context(seed=0, numerics=numerics.model_copy(update={"precision": "fp32"}))
    return {
        "plain, fp32, no augmentation": plain_epochs(data, width, numerics.device),
        "Supervised, fp32, crop_flip": Supervised(epochs=epochs).steps(fp32, **inputs),
        f"Supervised, {numerics.precision}, crop_flip": Supervised(epochs=epochs).steps(ctx, **inputs),
        f"SimCLR, {numerics.precision} (two views each)": SimCLR(epochs=epochs).steps(ctx, **inputs),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-18's first stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    running = loops(synthetic(options.images), options.width, options.rounds + 2)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):
        for name, steps in running.items():
            began = time.perf_counter()
            next(steps)
            seconds[name].append(time.perf_counter() - began)
    rates = {name: options.images / statistics.median(times[1:]) for name, times in seconds.items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    print(f"ResNet-18 of width {options.width}, {options.images} images of 32x32")
    print(f"{device}, torch {torch.__version__}")
    print(f"{'loop':<40}{'images/s':>10}{'ratio':>8}")
    base = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:<40}{rate:>10.0f}{rate / base:>8.2f}")


if __name__ == "__main__":
    main()
