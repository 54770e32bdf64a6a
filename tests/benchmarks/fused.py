"""Trainings computed together, compared with the same trainings one after another, in the same run.

    python -m tests.benchmarks.fused --members 8 --width 8 [--model resnet18] [--device cuda] [--clock cpu]

Members differ in their seed, and in what the seed decides. Epochs of both alternate, so that a busy machine
slows each alike; the first of each is not counted. Sizes are those of the default sweep. On a CPU processor
seconds (`--clock cpu`) are disturbed least by other work; both have as many threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context, Tick
from bdtune.plugins import registry
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import ImageSet
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def jobs(options: argparse.Namespace) -> list[tuple[Any, Context, dict[str, Any]]]:
    """Return the members: one recipe, network and clean set, each with a seed and labels of its own."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, options.side, options.side, 3), dtype=np.uint8)
    wide = "width" in registry.load("models", options.model).model_fields
    model = bdtune.model(options.model, **({"width": options.width} if wide else {}))
    numerics = Numerics(device=options.device, precision=options.precision, fused=max(2, options.members))
    stage = Supervised(epochs=options.rounds + 2, batch_size=options.batch, lr=0.01)
    found = []
    for seed in range(options.members):
        data = ImageSet(images, rng.integers(0, 10, options.images), 10, MEAN, STD)
        ctx = Context(seed=seed, numerics=numerics)
        inputs = {"data": data, "model": model, "subset": AllSamples().run(ctx, data=data)}
        found.append((stage, ctx, inputs))
    return found


def one_by_one(members: list[Any]) -> Iterator[None]:
    """Train each for an epoch, one after another, at each step of the iterator."""
    trainings = [stage.steps(ctx, **inputs) for stage, ctx, inputs in members]
    while True:
        for training in trainings:
            next(training)
        yield


def together(members: list[Any]) -> Iterator[None]:
    """Train all for an epoch, computed together, at each step of the iterator."""
    outcomes = members[0][0].together(members)
    while True:
        for _ in members:
            _, outcome = next(outcomes)
            assert isinstance(outcome, Tick), f"expected all to be trained together, got {outcome!r}"
        yield


def seconds_of(loop: Iterator[None], clock: Callable[[], float]) -> float:
    """Return the seconds of one step; a device is waited for before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = clock()
    next(loop)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--width", type=int, default=8, help="channels of the network's first stage, if it has one"
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=16, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    running = {"one after another": one_by_one(jobs(options)), "together": together(jobs(options))}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):
        for name, loop in running.items():
            seconds[name].append(seconds_of(loop, clock))
    numerics = Numerics(device=options.device, precision=options.precision).resolved()
    device = f"CPU, {options.threads} threads"
    if numerics.device == "cuda":
        device = (
            f"{torch.cuda.get_device_name()}, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most"
        )
    network = options.model
    if "width" in registry.load("models", network).model_fields:
        network += f" of width {options.width}"
    print(f"{options.members} trainings of {network}, {options.images} images of {options.side} pixels,")
    print(f"batches of {options.batch}, {numerics.precision}, {options.clock} clock")
    print(f"{device}, torch {torch.__version__}")
    print(f"{'epochs of all':<20}{'seconds':>10}{'images/s':>12}{'ratio':>8}")
    base = statistics.median(seconds["one after another"][1:])
    for name, times in seconds.items():
        each = statistics.median(times[1:])
        print(f"{name:<20}{each:>10.3f}{options.members * options.images / each:>12.0f}{base / each:>8.2f}")


if __name__ == "__main__":
    main()
