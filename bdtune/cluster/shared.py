"""What the trials of a sweep share: the store, how they are judged, one copy of the data per node."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from bdtune.engine.key import key_of
from bdtune.plugins.dataset import Split
from bdtune.reading.resident import must_stream

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.plugins.dataset import Dataset, SplitName

GIVEN = ("BDTUNE_PLUGINS", "BDTUNE_DATA", "BDTUNE_COMMIT", "BDTUNE_TOY_LOG")
DEFAULTS = (
    *("BDTUNE_CACHE", "BDTUNE_CACHE_GB", "AZURE_STORAGE_ACCOUNT_NAME"),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP"),
)
"""Credentials each node has of its own."""


@dataclass(frozen=True)
class Variables:
    """Environment variables of the driver that trials on other nodes need too."""

    given: dict[str, str]
    defaults: dict[str, str]
    """Of these a node's own come first: how the store is reached, and where copies lie, it knows best."""

    @classmethod
    def of_this_process(cls) -> Variables:
        given, defaults = (
            {name: os.environ[name] for name in names if name in os.environ} for names in (GIVEN, DEFAULTS)
        )
        return cls(given, defaults)

    def adopt(self) -> None:
        """Enter them into the environment of this process."""
        os.environ.update({**self.defaults, **os.environ, **self.given})


@dataclass(frozen=True)
class Shared:
    """Handed to every trial; small, as images are references into Ray's object store."""

    store: Path | str
    """Where it is: a folder, or the address of a bucket."""
    mark: str
    """The driver's pins in it, by which a node knows that it sees the same store."""
    sweep: str
    live: Path
    """Folder where running trials leave their progress."""
    live_s: float
    """Seconds between two notes of a trial's progress in a stage."""
    objective: str | None
    """Metric reported at every tick for a scheduler; None without one."""
    mode: str
    gpu: float
    variables: Variables
    decisive: frozenset[str] = frozenset()
    """Metrics that decide while a trial is under way: those of the scheduler and of the search."""
    residents: dict[str, Any] = field(default_factory=dict)
    """Object references of (images, labels) by `split_name`."""
    streamed: frozenset[str] = frozenset()
    """Names of the splits that do not fit. Any other (a search may come upon it) each trial loads itself."""


@dataclass(frozen=True)
class NodeResident:
    """Resident splits in a trial: arrays in the node's shared memory, read-only and never copied."""

    shared: Shared
    root: Path | None

    def split(self, dataset: Dataset, split: SplitName) -> Split:
        name = split_name(dataset, split)
        if name in self.shared.residents:
            images, labels = ray.get(self.shared.residents[name])
            return Split(images, labels)
        if name not in self.shared.streamed:
            return dataset.load(split, self.root)
        from bdtune.cluster import pipeline

        return Split(pipeline.stream(dataset, split, self.root), dataset.labels(split, self.root))

    def labels(self, dataset: Dataset, split: SplitName) -> np.ndarray:
        reference = self.shared.residents.get(split_name(dataset, split))
        return dataset.labels(split, self.root) if reference is None else ray.get(reference)[1]


def split_name(dataset: Dataset, split: SplitName) -> str:
    """Return the name of a split among the residents."""
    return key_of([dataset.identity(), split])


def resident_bytes(specs: Iterable[TrialSpec]) -> int:
    """Return how much object store the resident splits of these trials need, in bytes."""
    return sum(
        len(dataset.labels(split, root)) * int(np.prod(dataset.stream(split, root).images.shape[1:]))
        for dataset, split, root, stream in _splits(specs)
        if not stream
    )


def streamed(specs: Iterable[TrialSpec]) -> frozenset[str]:
    """Return the names of the splits that are to be streamed inside the trials."""
    return frozenset(split_name(data, split) for data, split, _, stream in _splits(specs) if stream)


def load_residents(specs: Iterable[TrialSpec]) -> dict[str, Any]:
    """Decode every split that fits with Ray Data, before any trial holds a CPU, and share it.

    What is decoded already, as the built-in data set, is shared as it is.
    """
    found: dict[str, Any] = {}
    for dataset, split, root, stream in _splits(specs):
        if not stream:
            loaded = _load(dataset, split, root)
            found[split_name(dataset, split)] = ray.put((loaded.images, loaded.labels))
    return found


def _load(dataset: Dataset, split: SplitName, root: Path | None) -> Split:
    if dataset.selection(split, root).records.arrays is not None:
        return dataset.load(split, root)
    from bdtune.cluster import pipeline

    return pipeline.resident(dataset, split, root)


def _splits(specs: Iterable[TrialSpec]) -> list[tuple[Dataset, SplitName, Path | None, bool]]:
    """Return each distinct split once: data set, split, root, and whether it is to be streamed."""
    found: dict[str, tuple[Dataset, SplitName, Path | None, bool]] = {}
    splits: tuple[SplitName, ...] = ("train", "test")
    for spec in specs:
        for split in splits:
            name = split_name(spec.dataset, split)
            if name not in found:
                stream = must_stream(spec.dataset, split, spec.data_root, spec.pipeline)
                found[name] = (spec.dataset, split, spec.data_root, stream)
    return list(found.values())
