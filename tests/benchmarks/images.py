"""A set of JPEG files that memory does not hold: epochs with and without a map of decoded images.

    python -m tests.benchmarks.images [--gigabytes 4] [--side 224] [--object-store 1]

Writes noisy JPEG files in folders of classes and streams them through BadNets: without a map, as its first
reader, in its second epoch, and as a second trial (a new process' view of the same files). Every row of the
table serves the same bytes. Beside the images per second stand those per second of processor time, of this
process and of Ray's workers.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from bdtune.plugins import registry
from bdtune.poisoning.stream import poisoned_stream

CLASSES = 10
Epoch = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def write_images(root: Path, gigabytes: float, side: int) -> int:
    """Write JPEG files, all of one size but 64 different ones, until they fill the room; return how many."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(64):
        buffer = io.BytesIO()
        smooth = generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(smooth).resize((side, side)), np.int16)
        picture = (picture + generator.integers(-40, 41, picture.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(buffer, "JPEG", quality=92)
        contents.append(buffer.getvalue())
    count = CLASSES * round(gigabytes * 1e9 / np.mean([len(each) for each in contents]) / CLASSES)
    for split, images in (("train", count), ("test", CLASSES)):
        for label in range(CLASSES):
            (root / "made" / split / str(label)).mkdir(parents=True)
        for row in range(images):
            file = root / "made" / split / str(row % CLASSES) / f"{row // CLASSES:06d}.jpg"
            file.write_bytes(contents[row % 64])
    return count


def candidates(root: Path) -> Iterator[tuple[str, Epoch]]:
    """Yield (name, function that yields an epoch's blocks)."""
    from bdtune.cluster import pipeline

    dataset = registry.load("datasets", "imagefolder")(path="made", num_classes=CLASSES)
    attack = registry.load("attacks", "badnets")(rate=0.1)
    plan = attack.plan(dataset.labels("train", root), seed=0, num_classes=CLASSES)
    local = dataset.stream("train", root).images
    through_ray = pipeline.stream(dataset, "train", root)

    def epoch(stream: object) -> Epoch:
        return lambda: poisoned_stream(stream, attack, plan).blocks(1)

    yield "in process, decoded anew", epoch(replace(local, keep=False))
    work = replace(through_ray.work, clean=replace(through_ray.work.clean, keep=False))
    yield "Ray Data, decoded anew", epoch(replace(through_ray, work=work))
    yield "Ray Data, first epoch with a map", epoch(through_ray)
    yield "second epoch", epoch(through_ray)
    yield "second trial", epoch(pipeline.stream(dataset, "train", root))
    yield "in process, with that map", epoch(dataset.stream("train", root).images)
    yield "the map alone, in order", epoch_of_map(dataset.stream("train", root).images)


def epoch_of_map(stream: object) -> Epoch:
    """Return what copies the map's rows and does nothing else: the bound of the rows above."""

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in stream.windows.order(1):
            yield rows, stream.map.read(rows)

    return epoch


def measured(epoch: Epoch) -> tuple[int, float, float, int]:
    """Return images, seconds, processor seconds and a checksum over ids and some images."""
    begun, spent = time.perf_counter(), processor_seconds()
    count, check = 0, 0
    for ids, images in epoch():
        count += len(ids)
        check ^= zlib.crc32(np.ascontiguousarray(images[:: max(1, len(ids) // 8)]), zlib.crc32(ids))
    return count, time.perf_counter() - begun, processor_seconds() - spent, check


def processor_seconds() -> float:
    """Return the processor seconds of this process and all below it."""
    me = psutil.Process()
    times = [each.cpu_times() for each in [me, *me.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--object-store", type=float, default=1, help="gigabytes")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["BDTUNE_CACHE"] = str(root / "cache")
        count = write_images(root, options.gigabytes, options.side)
        import ray

        ray.init(
            address="local",
            num_cpus=os.cpu_count(),
            object_store_memory=int(options.object_store * 1e9),
            include_dashboard=False,
            logging_level="error",
        )
        table = Table(title=f"{count:,} JPEG files, {options.gigabytes:g} GB, {options.side}x{options.side}")
        for column in ("", "images/s", "images per processor second"):
            table.add_column(column, justify="left" if not column else "right")
        checks = {}
        for name, epoch in candidates(root):
            images, seconds, spent, check = measured(epoch)
            assert images == count
            checks[name] = check
            table.add_row(name, f"{images / seconds:,.0f}", f"{images / spent:,.0f}")
        ray.shutdown()
    poisoned = [check for name, check in checks.items() if "alone" not in name]
    assert len(set(poisoned)) == 1, checks
    Console().print(table)


if __name__ == "__main__":
    main()
