"""Throughput of each attack that needs no training, at CIFAR size: in process and through Ray Data.

    python tests/benchmarks/attacks.py [--images 20000] [--side 32] [--no-ray]

"Every image" stamps each image as a test image; "training set" stamps the planned rows of a set, 10 % or the
attack's default where that is more, and copies the rest. Ray Data reads the images from its object store.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from bdtune.plugins import registry
from bdtune.plugins.attack import Attack
from bdtune.poisoning.stream import poisoned_stream
from tests.benchmarks.pipeline import InMemory

BATCH = 2048
VARIANTS = {
    "badnets": [{}],
    "blend": [{}, {"pattern": "noise", "per_sample": True}, {"dialect": "backdoorbench"}],
    "wanet": [{}, {"cross_ratio": 2.0}],
    "sig": [{}, {"dialect": "backdoorbench"}],
}


def candidates():
    """Yield (name, knobs) of every attack that is pure."""
    for name in registry.names("attacks"):
        cls = registry.load("attacks", name)
        if cls.artefacts is Attack.artefacts:
            for knobs in VARIANTS.get(name, [{}]):
                yield name, knobs


def made(name, knobs):
    """Return the attack with a rate that gives it something to do."""
    cls = registry.load("attacks", name)
    rates = {"rate": max(0.1, cls.model_fields["rate"].default)}
    if "cover_rate" in cls.model_fields:
        rates["cover_rate"] = 0.1
    if knobs.get("dialect") and cls.clean_label:
        rates["rate"] = 0.08
    return cls(**{**rates, **knobs})


def per_second(count, work, repeats=3):
    """Return items per second of the best of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return count / best


def in_batches(stamp, images):
    """Stamp batch by batch, as a pipeline does."""
    for start in range(0, len(images), BATCH):
        ids = np.arange(start, min(start + BATCH, len(images)))
        stamp(images[ids], ids)


def drained(stream):
    """Read all of a stream."""
    return sum(len(images) for _, images in stream.blocks(None))


def measured(attack, images, labels, *, with_ray):
    """Return images per second: every image and the training set in process, both through Ray Data."""
    plan = attack.plan(labels, seed=0, num_classes=10)
    n = len(images)
    yield per_second(n, lambda: in_batches(attack.trigger, images))
    yield per_second(n, lambda: in_batches(lambda part, ids: attack.apply(part, ids, plan), images))
    if with_ray:
        from bdtune.cluster import pipeline

        for made_for in (None, plan):
            stream = poisoned_stream(pipeline.stream(InMemory(images, labels), "train"), attack, made_for)
            drained(stream)  # starts the workers
            yield per_second(n, lambda stream=stream: drained(stream), repeats=2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.images, options.side, options.side, 3), dtype=np.uint8)
    labels = np.arange(options.images) % 10
    columns = ["every image", "training set"]
    if not options.no_ray:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            object_store_memory=1_000_000_000,
            include_dashboard=False,
            logging_level="error",
        )
        columns += ["Ray Data, every image", "Ray Data, training set"]
    size = f"{options.images:,} images of {options.side}x{options.side}"
    table = Table("attack", title=f"{size}, images per second")
    for column in columns:
        table.add_column(column, justify="right")
    for name, knobs in candidates():
        rates = measured(made(name, knobs), images, labels, with_ray=not options.no_ray)
        table.add_row(" ".join([name, *map(str, knobs.values())]), *(f"{rate:,.0f}" for rate in rates))
    Console().print(table)


if __name__ == "__main__":
    main()
