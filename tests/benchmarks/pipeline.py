"""Throughput of poisoned batches at CIFAR size: in process, through Ray Data, and a torch DataLoader.

    python tests/benchmarks/pipeline.py [--images 50000] [--batch 128] [--epochs 3]

All serve the same BadNets-poisoned uint8 images in a new random order each epoch, as batches. "Poisoned once"
stamps the resident array before the first epoch, as training does; "on the fly" stamps every batch again.
The streams decode PNG files from Parquet in every epoch; the others start from decoded arrays.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bdtune.plugins import registry
from bdtune.poisoning.stream import poisoned_stream
from bdtune.reading.images import Records, Selection


def write_images(root, images, labels):
    """Write the images as PNG files in the Parquet layout."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": ""}

    (root / "made").mkdir()
    table = pa.table({"image": [png(image) for image in images], "label": labels})
    pq.write_table(table, root / "made" / "train.parquet", row_group_size=5000)


def batches_of(blocks, size):
    """Yield batches of `size` out of blocks; the tail of a block is carried over."""
    held = np.empty((0, 32, 32, 3), np.uint8)
    for _, images in blocks:
        held = np.concatenate([held, images]) if len(held) else images
        whole = len(held) - len(held) % size
        yield from (held[start : start + size] for start in range(0, whole, size))
        held = held[whole:]
    if len(held):
        yield held


def resident(images, size):
    """Return a function that yields an epoch's batches out of one array."""

    def epoch(seed):
        order = np.random.default_rng(seed).permutation(len(images))
        yield from (images[order[start : start + size]] for start in range(0, len(order), size))

    return epoch


def on_the_fly(images, attack, plan, size):
    """The same, stamping each batch."""

    def epoch(seed):
        order = np.random.default_rng(seed).permutation(len(images))
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            yield attack.apply(images[ids], ids, plan)

    return epoch


def data_loader(images, size, workers):
    """Return a function that yields an epoch's batches from torch's DataLoader over the same array."""
    import torch

    source = torch.utils.data.TensorDataset(torch.from_numpy(images))

    def epoch(seed):
        shuffle = torch.Generator().manual_seed(seed)
        loader = torch.utils.data.DataLoader(
            source, size, shuffle=True, generator=shuffle, num_workers=workers
        )
        yield from (batch for (batch,) in loader)

    return epoch


def rate(epoch, images, epochs):
    """Return (first, best) images per second over the epochs."""
    rates = []
    for seed in range(epochs):
        start = time.perf_counter()
        count = sum(len(batch) for batch in epoch(seed))
        rates.append(count / (time.perf_counter() - start))
        assert count == images
    return rates[0], max(rates)


def candidates(root, images, labels, size):
    """Yield (name, function that yields the batches of an epoch)."""
    from bdtune.cluster import pipeline

    attack = registry.load("attacks", "badnets")(rate=0.1)
    plan = attack.plan(labels, seed=0, num_classes=10)
    dataset = registry.load("datasets", "parquet")(path="made", num_classes=10)
    poisoned = attack.apply(images, np.arange(len(images)), plan)
    yield "in process, resident, poisoned once", resident(poisoned, size)
    yield "in process, resident, poisoned on the fly", on_the_fly(images, attack, plan, size)
    yield "torch DataLoader, poisoned once, 0 workers", data_loader(poisoned, size, 0)
    yield "torch DataLoader, poisoned once, 2 workers", data_loader(poisoned, size, 2)
    local = poisoned_stream(dataset.stream("train", root).images, attack, plan)
    yield "in process, stream from Parquet", lambda seed: batches_of(local.blocks(seed), size)
    ours = poisoned_stream(pipeline.stream(dataset, "train", root), attack, plan)
    yield "Ray Data, stream from Parquet", lambda seed: batches_of(ours.blocks(seed), size)
    memory = poisoned_stream(pipeline.stream(InMemory(images, labels), "train"), attack, plan)
    yield "Ray Data, stream from the object store", lambda seed: batches_of(memory.blocks(seed), size)


@dataclass(frozen=True)
class InMemory:
    """Arrays dressed as a data set, so that Ray Data can be timed without decoding."""

    images: np.ndarray
    labels: np.ndarray

    def selection(self, split, root):
        records = Records(self.labels, arrays=self.images)
        return Selection(records, np.arange(len(self.labels)), None, "bicubic")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, options.images)
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        object_store_memory=1_000_000_000,
        include_dashboard=False,
        logging_level="error",
    )
    table = Table(title=f"{options.images:,} images of 32x32, batches of {options.batch}, images per second")
    for column in ("", "first epoch", "best epoch"):
        table.add_column(column, justify="left" if not column else "right")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, images, labels)
        for name, epoch in candidates(root, images, labels, options.batch):
            first, best = rate(epoch, options.images, options.epochs)
            table.add_row(name, f"{first:,.0f}", f"{best:,.0f}")
    Console().print(table)
    ray.shutdown()


if __name__ == "__main__":
    main()
