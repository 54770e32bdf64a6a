"""All that a GPU does for bdtune, by one command that needs neither Ray nor MLflow.

    python -m tests.benchmarks.gpu [--device cuda] [--images 50000] [--width 64] [--only speed] [--json FILE]

agreement: every stage of five defenses is computed on the CPU and, from the same inputs, twice on the device:
how far the results differ, and whether the device's two are equal bit for bit. speed: images per second,
seconds an epoch, peak memory and the share of time that the device is busy, for each training at the paper's
network and batch; and what GSSD takes at the paper's lengths. together: two and four trainings on one device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

os.environ["BDTUNE_PLUGINS"] = str(Path(__file__).parent / "plugins")

from bdtune.config.trial import parse_trial
from bdtune.engine.execute import Executor
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.engine.store import Store
from bdtune.plugins import registry
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Inputs

PARTS = ("agreement", "speed", "together")
EPOCHS = 3
"""Of each training that is timed: the first warms up."""
SHORT: dict[str, dict[str, Any]] = {
    "none": {"train": {"epochs": EPOCHS}},
    "gssd": {
        "simclr": {"epochs": EPOCHS},
        "flows": {"epochs": EPOCHS},
        "retrain": {"epochs": EPOCHS},
        "finetune": {"epochs": EPOCHS},
    },
    "lfd": {"teacher": {"epochs": EPOCHS}, "student": {"epochs": EPOCHS}},
    "abl": {"isolate": {"epochs": EPOCHS}, "recover": {"epochs": EPOCHS}, "unlearn": {"epochs": EPOCHS}},
    "adversarial_training": {"train": {"epochs": EPOCHS}},
}
"""Defenses that have each kind of training, with few epochs."""
PUBLISHED_S = 6013
"""Of GSSD on CIFAR-10 with a ResNet-18, on an RTX 2080 Ti: GSSD, appendix G.1."""


@dataclass(frozen=True)
class Agreement:
    """How a stage's result on the device differs from the CPU's."""

    stage: str
    difference: float
    """Norm of the difference, as a share of the CPU's norm; the largest over the result's float arrays."""
    equal_integers: float
    """Share of equal values in integer arrays, as predictions and ids."""
    repeated: bool
    """Whether a second run on the device gave the same bits."""


@dataclass(frozen=True)
class Speed:
    """What a training takes."""

    stage: str
    images_per_s: float
    epoch_s: float
    rest_s: float
    """Seconds of the whole stage that are no epoch's."""
    peak_gb: float
    busy: float | None
    """Share of an epoch in which the device computes; None on a CPU."""


@dataclass
class Found:
    """All that was measured; a part that was not asked for is empty."""

    device: str
    agreement: list[Agreement] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    gssd_s: float | None = None
    together: dict[int, float] = field(default_factory=dict)
    """Images per second of all trainings, by how many there are at a time."""


def spec_of(defense: str, options: argparse.Namespace, precision: str, device: str) -> TrialSpec:
    """Return the short trial of a defense on random images."""
    raw = {
        "dataset": {"name": "noise", "train": options.images, "test": max(20, options.images // 5)},
        "attack": "badnets",
        "defense": {"name": defense, **SHORT[defense]},
        "model": {"name": "resnet18", "width": options.width},
        "numerics": {"device": device, "precision": precision},
    }
    spec, problems = parse_trial(raw)
    assert spec is not None, problems
    return spec


def new_executor(folder: str, name: str) -> Executor:
    """Return an executor over a store of its own."""
    return Executor(Store(Path(folder) / name), InProcess())


def agreement(options: argparse.Namespace) -> Iterator[Agreement]:
    """Compute each stage on the CPU, and from the CPU's inputs twice on the device, in float32."""
    small = argparse.Namespace(images=min(options.images, 640), width=min(options.width, 16))
    on_device = Numerics(device=options.device, precision="fp32")
    done: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        executor = new_executor(folder, "cpu")
        for defense in SHORT:
            for node in trial_graph(spec_of(defense, small, "fp32", "cpu")).stages.values():
                if node.recipe in done:
                    continue
                done.add(node.recipe)
                ours, inputs = executor.compute(node), executor.inputs_but(node)
                first, second = (computed(node, on_device, inputs) for _ in range(2))
                yield compared(f"{defense}: {node.name}", ours, first, second)


def computed(node: Node, numerics: Numerics, inputs: Inputs) -> Artefact:
    """Run a node's stage on inputs that are there."""
    return node.stage.run(Context(node.seed, numerics), **inputs)


def compared(name: str, ours: Artefact, first: Artefact, second: Artefact) -> Agreement:
    """Compare a stage's three results."""
    differences, equals = [0.0], [1.0]
    for key, array in ours.arrays.items():
        if np.issubdtype(array.dtype, np.floating):
            norm = float(np.linalg.norm(array)) or 1.0
            differences.append(float(np.linalg.norm(first.arrays[key] - array)) / norm)
        elif array.size and first.arrays[key].shape == array.shape:
            equals.append(float((first.arrays[key] == array).mean()))
        elif array.shape != first.arrays[key].shape:
            equals.append(0.0)  # another number of samples was kept
    repeated = all(
        np.array_equal(first.arrays[key], second.arrays[key], equal_nan=True) for key in ours.arrays
    )
    return Agreement(name, max(differences), min(equals), repeated and first.info == second.info)


def speeds(options: argparse.Namespace) -> tuple[list[Speed], float]:
    """Return the speed of each training, and the seconds of GSSD at its default lengths."""
    found: dict[str, Speed] = {}
    gssd = 0.0
    with tempfile.TemporaryDirectory() as folder:
        executor = new_executor(folder, "speed")
        for defense in SHORT:
            graph = trial_graph(spec_of(defense, options, "auto", options.device))
            for node in graph.stages.values():
                if node.recipe in found:
                    continue
                inputs = executor.inputs_but(node)
                found[node.recipe] = timed(f"{defense}: {node.name}", node, inputs, options)
                executor.compute(node)  # what the next stage reads
            if defense == "gssd":
                lengths = default_lengths(options)
                gssd = sum(
                    each.rest_s + each.epoch_s * lengths.get(node.name, 0)
                    for node in graph.stages.values()
                    for each in [found[node.recipe]]
                )
    return list(found.values()), gssd


def default_lengths(options: argparse.Namespace) -> dict[str, int]:
    """Return the epochs of GSSD's stages at the paper's setting."""
    spec = spec_of("gssd", options, "auto", options.device)
    gssd = registry.load("defenses", "gssd")()
    whole = trial_graph(spec.model_copy(update={"defense": gssd}))
    return {node.name: node.stage.length() for node in whole.chain.values()}


def timed(name: str, node: Node, inputs: Inputs, options: argparse.Namespace) -> Speed:
    """Run a stage, and profile its last epoch."""
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    ends, busy, profiler = [begun], None, None
    steps = node.stage.steps(Context(node.seed, node.numerics), **inputs)
    while True:
        if cuda and len(ends) == EPOCHS and node.stage.length() >= EPOCHS:
            profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            profiler.start()
        try:
            next(steps)
        except StopIteration:
            break
        finally:
            wait(options.device)
            if profiler is not None:
                profiler.stop()
                busy = device_seconds(profiler) / (time.perf_counter() - ends[-1])
                profiler = None
        ends.append(time.perf_counter())
    whole, epochs = time.perf_counter() - begun, np.diff(ends)
    epoch_s = (
        float(np.median(epochs[1:-1] if cuda and len(epochs) > 2 else epochs[1:])) if len(epochs) > 1 else 0.0
    )
    rest = max(0.0, whole - float(np.sum(epochs))) if len(epochs) else whole
    rate = options.images / epoch_s if epoch_s else options.images / whole
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return Speed(name, rate, epoch_s, rest, peak, busy)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_seconds(profiler: Any) -> float:
    """Return the seconds that kernels took."""
    return float(sum(event.device_time_total for event in profiler.key_averages()) / 1e6)


def together(options: argparse.Namespace) -> dict[int, float]:
    """Return the images per second of one, two and four trainings at a time, in processes of their own."""
    found = {}
    for count in (1, 2, 4):
        words = [sys.executable, "-m", "tests.benchmarks.gpu", "--worker", "--device", options.device]
        words += ["--images", str(options.images), "--width", str(options.width)]
        workers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        found[count] = sum(float(worker.communicate()[0].split()[-1]) for worker in workers)
    return found


def worker(options: argparse.Namespace) -> float:
    """Train a classifier and return its images per second, without the first epoch."""
    node = trial_graph(spec_of("none", options, "auto", options.device)).chain["classifier"]
    with tempfile.TemporaryDirectory() as folder:
        inputs = new_executor(folder, "worker").inputs_but(node)
        return timed("worker", node, inputs, options).images_per_s


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=64, help="channels of ResNet-18's first stage")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(worker(options))
        return
    name = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    found = Found(f"{name}, torch {torch.__version__}, ResNet-18 of width {options.width}")
    if "agreement" in options.only:
        found.agreement = list(agreement(options))
    if "speed" in options.only:
        found.speed, found.gssd_s = speeds(options)
    if "together" in options.only:
        found.together = together(options)
    show(found, options)
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1))


def show(found: Found, options: argparse.Namespace) -> None:
    """Print what was measured."""
    console = Console(width=120)
    console.print(found.device)
    rows = [
        (each.stage, f"{each.difference:.1e}", f"{each.equal_integers:.4f}", "yes" if each.repeated else "NO")
        for each in found.agreement
    ]
    print_table(console, ("compared with the CPU", "difference", "equal integers", "repeats"), rows)
    rows = [
        (
            each.stage,
            f"{each.images_per_s:,.0f}",
            f"{each.epoch_s:.2f}" if each.epoch_s else "-",
            f"{each.peak_gb:.1f}",
            "-" if each.busy is None else f"{each.busy:.0%}",
        )
        for each in found.speed
    ]
    print_table(console, ("stage", "images/s", "s an epoch", "peak GB", "busy"), rows)
    if found.gssd_s is not None:
        console.print(
            f"GSSD at the paper's lengths, {options.images:,} images: {found.gssd_s:,.0f} s "
            f"(published: {PUBLISHED_S:,} s on an RTX 2080 Ti)"
        )
    rows = [(str(count), f"{rate:,.0f}") for count, rate in found.together.items()]
    print_table(console, ("trainings at a time", "images/s of all"), rows)


def print_table(console: Console, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table that has rows."""
    if rows:
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
