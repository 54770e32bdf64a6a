"""How fast a machine trains a network, for first estimates: given, or measured once in a second and kept.

Loading torch for it takes longer. What is kept answers without.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of
from bdtune.engine.node_cache import node_folder
from bdtune.engine.shared import Shared
from bdtune.plugins.model import Model, networks_of
from bdtune.plugins.registry import load
from bdtune.poisoning.clean_sources import DataSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from bdtune.config.sweep import GivenSpeed, Resources
    from bdtune.engine.input_source import Source
    from bdtune.engine.node import Node
    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Stage
    from bdtune.plugins.dataset import Dataset, SplitName

BATCH = 64
"""Images of a step that is timed."""
LEAST_S, MOST_STEPS = 1.0, 20
"""Steps are timed until so long has passed, or so many are done."""
AROUND = 1.2
"""What augmentation, optimiser and book-keeping add to the passes of a network."""
FORWARD = 1 / 3
"""Part of a training step that a pass without gradients takes."""
WITHOUT_NETWORK_S = 3e-5
"""Seconds per sample and epoch of what trains no network on images, such as flows on features."""
DERIVED_S = 0.05
"""Of a derived stage."""


COLOUR = (32, 32, 3)
"""Height, width and channels of the images that a given speed is about."""


def speed_of(resources: Resources, given: GivenSpeed | None = None, *, measure: bool = True) -> Speed:
    """Return what guesses seconds of stages of trials with some resources."""
    return Speed(max(1, int(resources.cpu)), given.images_per_s if given else None, measure=measure)


class Speed:
    """Guesses the seconds of a stage that was never run: epochs, samples and passes at the machine's speed.

    `threads`: CPU threads of one trial. `images_per_s`: images of `COLOUR` of which a training of ResNet-18
    takes so many a second. Without it the speed is measured; then a GPU that this machine lacks is not
    guessed. What is measured or counted is kept in the user's cache folder where that can be written; without
    `measure` only what is kept there is known.
    """

    def __init__(self, threads: int = 1, images_per_s: float | None = None, *, measure: bool = True) -> None:
        self._given = images_per_s
        self.threads = min(threads, len(os.sched_getaffinity(0)))  # more would only get in each other's way
        self.measure = measure
        self._file = node_folder("speed.json")
        self._known: dict[str, float | None] = {}
        self._guesses = Shared(self._guess)
        self._own = Shared(lambda *sources: sum(isinstance(source, DataSource) for source in sources))

    def __call__(self, node: Node) -> float | None:
        """Return the seconds that a stage may take; None where nothing can be said."""
        if node.stage.kind == "derive":
            return DERIVED_S
        read = tuple(node.sources.values())
        own = self._own(*read)
        return self._guesses(node.stage, node.numerics, own, *read, *(() if own else _data_before(node)))

    def weight_bytes(self, node: Node) -> int | None:
        """Return the size of the weights of the network that a stage trains; None where it is not known."""
        read = tuple(node.sources.values())
        data = next((each for each in [*read, *_data_before(node)] if isinstance(each, DataSource)), None)
        network = _network_of(node.stage, read)
        if data is None or network is None:
            return None
        classes, shape = data.dataset.num_classes, data.dataset.image_shape(data.root)
        named: list[object] = ["weights", network.plugin_name(), network.identity(), classes, shape]
        found = self._kept(named, lambda: _weight_bytes(network, classes, shape))
        return None if found is None else int(found)

    def _guess(self, stage: Stage, numerics: Numerics, own: int, *sources: Source) -> float | None:
        """Return the seconds of a stage that reads these sources, the first `own` data sets itself."""
        data = next((source for source in sources if isinstance(source, DataSource)), None)
        if data is None:
            return None
        trains, network = stage.length() > 0, _network_of(stage, sources)
        rows = _rows(data.dataset, data.split, data.root)
        rows *= stage.length() if trains else max(1, own)
        if network is None:
            return rows * WITHOUT_NETWORK_S
        each = self._per_sample(network, data, numerics)
        part = AROUND if trains else FORWARD
        return None if each is None else rows * each * stage.passes_per_epoch() * part

    def _per_sample(self, network: Model, data: DataSource, numerics: Numerics) -> float | None:
        """Return the seconds of one sample in a training step, None where that is not known."""
        pace = self._pace(numerics.resolved()) if self._given is None else self._given_pace(self._given)
        if pace is None:
            return None
        operations = self._operations(network, data.dataset.num_classes, data.dataset.image_shape(data.root))
        return None if operations is None else operations / pace

    def _pace(self, numerics: Numerics) -> float | None:
        """Return how many operations of a forward pass are trained in a second, None without the device."""
        named = [socket.gethostname(), self.threads, numerics.device, numerics.precision]
        return self._kept(named, lambda: _measured(numerics, self.threads))

    def _given_pace(self, images_per_s: float) -> float | None:
        """Return how many operations of a forward pass are trained in a second, without what is around."""
        operations = self._operations(load("models", "resnet18").model_validate({"width": 64}), 10, COLOUR)
        return None if operations is None else images_per_s * operations * AROUND

    def _operations(self, network: Model, classes: int, shape: tuple[int, int, int]) -> float | None:
        """Return the operations of one image's forward pass: kept, or counted and kept then."""
        named = ["operations", network.plugin_name(), network.identity(), classes, shape]
        return self._kept(named, lambda: _operations(network, classes, shape))

    def _kept(self, named: list[object], find: Callable[[], float | None]) -> float | None:
        """Return the number of this name: kept, or found and kept then."""
        key = key_of(named)
        if key not in self._known:
            kept = self._read()
            if key not in kept and self.measure:
                kept[key] = find()
                if kept[key] is not None:  # what could not be found may be found another time
                    with contextlib.suppress(OSError):
                        replace_file(self._file, json.dumps(kept).encode())
            self._known[key] = kept.get(key)
        return self._known[key]

    def _read(self) -> dict[str, float | None]:
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return kept if isinstance(kept, dict) else {}
        return {}


def _data_before(node: Node) -> list[DataSource]:
    """Return the data set that a node without its own depends on: the one that is read last, if any."""
    read = (source for step in reversed(node.walk()) for source in step.sources.values())
    return [source for source in read if isinstance(source, DataSource)][:1]


@lru_cache(maxsize=64)
def _rows(dataset: Dataset, split: SplitName, root: Path | None) -> int:
    return len(dataset.labels(split, root))


def _network_of(stage: Stage, sources: Iterable[Source]) -> Model | None:
    """Return the network that a stage trains or applies: one that it was handed, or a knob of its own."""
    own = [network for _, network in networks_of(stage, "")]
    handed = [getattr(source, "plugin", None) for source in sources]
    return next((each for each in [*own, *handed] if isinstance(each, Model)), None)


def _clock(on_gpu: bool, threads: int) -> float:
    """Return seconds that other processes do not lengthen: of the processor, where it does the work."""
    return time.perf_counter() if on_gpu else time.process_time() / threads


def _operations(network: Model, num_classes: int, shape: tuple[int, int, int]) -> float:
    """Return the multiplications and additions of one image's forward pass; nothing is computed for it.

    `shape`: height, width and channels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.build(num_classes, shape).eval()(torch.empty(1, shape[2], *shape[:2]))
    return float(counter.get_total_flops())


def _weight_bytes(network: Model, num_classes: int, shape: tuple[int, int, int]) -> float:
    """Return the bytes of a network's parameters and buffers; nothing is allocated for it."""
    import torch

    with torch.device("meta"):
        state = network.build(num_classes, shape).state_dict()
    return float(sum(value.numel() * value.element_size() for value in state.values()))


def _measured(numerics: Numerics, threads: int) -> float | None:
    """Return how many operations of a forward pass a small ResNet trains in a second.

    None without the device, or where it has no memory to spare.
    """
    import torch

    from bdtune.training.session import autocast, device_of, seeded

    device = device_of(numerics)
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    on_gpu, before = device.type == "cuda", torch.get_num_threads()
    dataset, model = load("datasets", "digits")(), load("models", "resnet18").model_validate({"width": 16})
    height, width, channels = dataset.image_shape(None)
    torch.set_num_threads(threads)
    try:
        with seeded(0, "speed"):
            network = model.build(dataset.num_classes, (height, width, channels)).to(device)
            images = torch.rand(BATCH, channels, height, width, device=device)
        goals = torch.zeros(BATCH, dtype=torch.long, device=device)
        times: list[float] = []
        while len(times) < 2 or (sum(times) < LEAST_S and len(times) < MOST_STEPS):
            started = _clock(on_gpu, threads)
            with autocast(numerics):
                logits = network(images)
            torch.nn.functional.cross_entropy(logits.float(), goals).backward()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(_clock(on_gpu, threads) - started)
    except torch.OutOfMemoryError:  # others have the device for now
        return None
    finally:
        torch.set_num_threads(before)
    # the first step sets things up
    return (
        BATCH * _operations(model, dataset.num_classes, (height, width, channels)) / max(min(times[1:]), 1e-6)
    )
