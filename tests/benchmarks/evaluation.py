"""What it costs to evaluate in float32 where a training computes in bf16.

    python -m tests.benchmarks.evaluation --images 4096 --width 16

The two passes over the same images, and an epoch of training on them, alternate; the first round is not
counted. Passes end in features: a linear layer more does not show.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.plugins.all_samples import AllSamples
from bdtune.training.predict import predict_features
from bdtune.training.supervised import Supervised
from bdtune.training.weights import new_network
from tests.benchmarks.training import synthetic


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--width", type=int, default=16, help="channels of the network's first stage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, model = synthetic(options.images), bdtune.model(options.network, width=options.width)
    rounded = Numerics().resolved().model_copy(update={"precision": "bf16"})
    network = new_network(model, data, 0, rounded).eval()
    ctx = Context(seed=0, numerics=rounded)
    inputs = {"data": data, "model": model, "subset": AllSamples().run(ctx, data=data)}
    training = Supervised(epochs=options.rounds + 2).steps(ctx, **inputs)
    loops = {
        "evaluate, bf16": lambda: predict_features(network, data, rounded),
        "evaluate, fp32": lambda: predict_features(network, data, rounded.exact()),
        "train one epoch, bf16": lambda: next(training),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds + 1):
        for name, loop in loops.items():
            began = time.perf_counter()
            loop()
            seconds[name].append(time.perf_counter() - began)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {options.threads} threads"
    print(f"{options.network} of width {options.width}, {options.images} images of 32x32")
    print(f"{device}, torch {torch.__version__}")
    print(f"{'pass':<24}{'images/s':>10}{'time':>8}")
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    base = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:<24}{options.images / median:>10.0f}{median / base:>8.2f}")


if __name__ == "__main__":
    main()
