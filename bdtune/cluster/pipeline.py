"""Ray Data: the second executor of reading, resizing and poisoning, for many CPUs and for sets too large.

It runs the very functions that the in-process path runs, on windows of sample ids, so both give equal bytes
for any number of blocks and workers. Order never comes from Ray: a window's rows are computed from its number
and the seed, and windows come back in order.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import ray
import ray.data
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bdtune.errors import BdtuneError, Problem, UserError
from bdtune.reading.stream import FileStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ray.util.placement_group import PlacementGroup

    from bdtune.plugins.dataset import Dataset, Split, SplitName

NO_PROGRESS_TIMEOUT_S = 90
"""A pipeline that gets no further for so long is an error: the last net under `require_cpu`."""
TASKS_PER_CPU = 4
"""Tasks of a resident load for each CPU, so that the last one does not keep the others waiting for long."""
MIN_TASK_ROWS = 512
PATIENCE_S = 10.0
"""How long `require_cpu` waits for a CPU that is just being given back."""

Batch = dict[str, np.ndarray]
Part = tuple[np.ndarray, np.ndarray]
"""ids int64 [n], images uint8 [n, H, W, 3]."""

for _handler in logging.getLogger("ray.data").handlers:
    if _handler.name == "console":  # what it says about each run goes to Ray's own log files all the same
        _handler.setLevel(logging.ERROR)


class Stamps(Protocol):
    """What the pipeline needs of an attack."""

    def apply(self, images: np.ndarray, ids: np.ndarray, plan: Any) -> np.ndarray:
        """Return a copy of training images (uint8 [n, H, W, C]) with the planned rows stamped."""

    def trigger(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return a copy of test images (uint8 [n, H, W, C]) with the trigger in every row."""


@dataclass(frozen=True)
class _Work:
    """What every task shares: put into the object store once, so that a task itself stays small."""

    clean: FileStream
    stamps: Stamps | None = None
    plan: Any = None
    kept: np.ndarray | None = None  # int64 [N]: number of a row in the stream, -1 when it is not in it

    def numbered(self, rows: np.ndarray) -> np.ndarray:
        """Return the stream's numbers of those rows that are in it."""
        numbers = rows if self.kept is None else self.kept[rows]
        return numbers[numbers >= 0]

    def parts(self, windows: Iterable[np.ndarray]) -> Iterator[Part]:
        """Yield numbers and images of each window, given by its rows, that has rows of the stream."""
        for rows in windows:
            numbers = self.numbered(rows)
            if len(numbers):
                yield numbers, self.images(rows)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return decoded, resized and stamped images of those rows that are in the stream."""
        rows = rows if self.kept is None else rows[self.kept[rows] >= 0]
        images = self.clean.read(rows)
        if self.stamps is None or not len(rows):
            return images
        if self.plan is None:
            return self.stamps.trigger(images, rows)
        return self.stamps.apply(images, rows, self.plan)


@dataclass(frozen=True)
class _MakeWindow:
    """The function that Ray Data maps: the number of a window in, its images out."""

    work: ray.ObjectRef
    seed: int | None

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        work = _work_of(self.work)
        windows = (work.clean.windows.window(int(index), self.seed) for index in batch["window"])
        for numbers, images in work.parts(windows):
            yield {"sample_id": numbers, "image": images}


@lru_cache(maxsize=2)
def _work_of(reference: ray.ObjectRef) -> _Work:
    """Return what tasks share, read once in a worker process: it may hold a million paths."""
    return cast("_Work", ray.get(reference))


@dataclass(frozen=True)
class RayStream:
    """A split that Ray Data reads, resizes and poisons on the fly: an `ImageStream` that stamps by itself."""

    work: _Work
    block_count: int | None = None
    workers: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, 3]."""
        total, height, width, channels = self.work.clean.shape
        kept = self.work.kept
        return (total if kept is None else int((kept >= 0).sum())), height, width, channels

    def poisoned(self, attack: Stamps | None, plan: Any, ids: np.ndarray | None) -> RayStream:
        """Return the stream of the rows `ids` (all if None), numbered anew from 0 and stamped.

        With a plan its rows are stamped for training, without one every row as a test image.
        """
        assert self.work.stamps is None, "a stream is stamped once"
        assert self.work.kept is None, "a stream is cut once"
        kept = None
        if ids is not None:
            kept = np.full(self.shape[0], -1)
            kept[ids] = np.arange(len(ids))
        return replace(self, work=replace(self.work, stamps=attack, plan=plan, kept=kept))

    def blocks(self, shuffle_seed: int | None) -> Iterator[Part]:
        """Yield (ids int64 [n], images uint8 [n, H, W, 3]), one window at a time, as `FileStream` does.

        Raises `UserError` where no CPU is left for the pipeline, `DataError` for images that cannot be read.
        """
        work, windows = self.work, self.work.clean.windows
        if work.clean.map is not None and work.clean.map.is_full:  # this node has nothing left to decode
            yield from work.parts(windows.order(shuffle_seed))
            return
        sizes = [len(work.numbered(rows)) for rows in windows.order(shuffle_seed)]
        yield from _cut(self._parts(len(sizes), shuffle_seed), [size for size in sizes if size])

    @cached_property
    def _shared(self) -> ray.ObjectRef:
        module = sys.modules[type(self.work.stamps).__module__]
        if module.__name__.startswith("bdtune_plugins."):  # a user's own file, which workers cannot import
            ray.cloudpickle.register_pickle_by_value(module)
        return ray.put(replace(self.work, clean=self.work.clean.named()))

    def _parts(self, windows: int, seed: int | None) -> Iterator[Part]:
        group = require_cpu()
        numbers = [{"window": index} for index in range(windows)]
        blocks = min(windows, self.block_count or windows)
        with ray.data.DataContext.current(_context(group)):  # the data sets made in here keep it
            # held by the driver: unlike `ray.data.range`, no task that needs a CPU of its own
            source = ray.data.from_items(numbers, override_num_blocks=blocks)
            images = source.map_batches(
                _MakeWindow(self._shared, seed),
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.TaskPoolStrategy(size=self.workers),
            )
        try:
            for batch in images.iter_batches(batch_size=None, batch_format="numpy"):
                yield batch["sample_id"], batch["image"]
        except ray.exceptions.RayError as error:
            raise _own_error(error) from error


def stream(
    dataset: Dataset,
    split: SplitName,
    root: Path | None = None,
    *,
    block_count: int | None = None,
    workers: int | None = None,
) -> RayStream:
    """Return a split as a stream of clean images; see `RayStream.poisoned`.

    `block_count` and `workers` (tasks at a time) change the speed, never the bytes or their order.
    """
    work = _Work(FileStream(dataset.selection(split, root)))
    return RayStream(work, block_count, workers)


def resident(
    dataset: Dataset,
    split: SplitName,
    root: Path | None = None,
    *,
    block_count: int | None = None,
    workers: int | None = None,
) -> Split:
    """Return what `dataset.load` returns, byte for byte, decoded by all CPUs of the cluster."""
    source = stream(dataset, split, root, block_count=block_count, workers=workers)
    cpus = ray.cluster_resources().get("CPU", 1) if ray.is_initialized() else 1
    rows = max(MIN_TASK_ROWS, math.ceil(source.shape[0] / (TASKS_PER_CPU * cpus)))
    # order does not matter here, only that all have work
    clean = replace(source.work.clean, window_rows=rows, keep=False)
    source = replace(source, work=_Work(clean))
    images = np.empty(source.shape, np.uint8)
    for ids, part in source.blocks(None):
        images[ids] = part
    return dataset.split(source.work.clean.selection, images)


def require_cpu(patience_s: float = PATIENCE_S) -> PlacementGroup | None:
    """Return the trial's placement group if we are in one; raise `UserError` where tasks would wait for ever.

    Outside a trial one CPU of the cluster must be free. A trial may use the pipeline only with a bundle of
    CPUs beside its own in its placement group: Ray Data would otherwise wait for CPUs that trials hold.
    """
    if not ray.is_initialized():
        raise BdtuneError("the Ray Data pipeline needs a Ray session: call ray.init() first")
    group = ray.util.get_current_placement_group()
    if group is not None:
        if any(bundle.get("CPU", 0) >= 1 for bundle in group.bundle_specs[1:]):
            return group
        expected = "expected a helper bundle with at least one CPU beside the trial's own, for Ray Data"
        got = f"only {group.bundle_specs}"
        hint = "Use pipeline=resident, or stream before the trials start"
        raise UserError(Problem("resources", expected, got, hint=hint))
    deadline = time.monotonic() + patience_s
    while ray.available_resources().get("CPU", 0) < 1:
        if time.monotonic() > deadline:
            got = f"none of {ray.cluster_resources().get('CPU', 0):g}"
            hint = "Run fewer trials at a time, or start Ray with more CPUs"
            raise UserError(Problem("resources.cpu", "expected a free CPU for Ray Data", got, hint=hint))
        time.sleep(0.1)
    return None


def _context(group: PlacementGroup | None) -> ray.data.DataContext:
    """Return a context for one data set; its tasks run in the trial's group where there is one."""
    with warnings.catch_warnings():
        # Ray deprecates every way to name a group for Ray Data, and has none yet that replaces them
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current().copy()
        if group is not None:
            context.scheduling_strategy = PlacementGroupSchedulingStrategy(group)
            context.scheduling_strategy_large_args = context.scheduling_strategy
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _cut(parts: Iterator[Part], sizes: list[int]) -> Iterator[Part]:
    """Yield windows of the given sizes out of what Ray made of them: it joins small ones, splits others."""
    held: list[Part] = []
    count = 0
    for size in sizes:
        while count < size:
            held.append(next(parts))
            count += len(held[-1][0])
        ids, images = held[0] if len(held) == 1 else map(np.concatenate, zip(*held, strict=True))
        yield ids[:size], images[:size]
        held, count = ([(ids[size:], images[size:])], count - size) if count > size else ([], 0)


def _own_error(error: BaseException) -> BaseException:
    """Return bdtune's own error out of what Ray wrapped around it, else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BdtuneError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
