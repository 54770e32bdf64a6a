"""Walking a trial's graph: compute what is missing, parents first, and publish each result.

The same code runs in process (`bdtune run`), in the driver (derived stages) and in a Ray Tune trial.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from bdtune.engine.environment import one_blas_thread, threads_of
from bdtune.engine.manifest import Cost
from bdtune.engine.node import Node
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.engine.remarks import heard
from bdtune.engine.resolve import Resolver
from bdtune.engine.stage import Artefact, Context, NotComputed, Tick
from bdtune.errors import BdtuneError, OtherBitsError, OutageError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from bdtune.engine.input_source import Resident, Source
    from bdtune.engine.node_cache import Moved
    from bdtune.engine.place import Checkpoint
    from bdtune.engine.stage import Inputs
    from bdtune.engine.store import Store

T = TypeVar("T")
log = logging.getLogger(__name__)


class StageFailed(BdtuneError):  # noqa: N818 - reads as what happened
    """A stage raised; the store's `failed/` holds the traceback."""

    def __init__(self, node: Node, key: str, status: Literal["failed", "diverged"], error: str) -> None:
        super().__init__(f"stage {node.name} ({key}) {status}: {error}")
        self.node, self.key, self.status, self.error = node, key, status, error


@dataclass(frozen=True)
class Event:
    """What a walk reports: a stage was started, ticked, finished here, or is being waited for.

    "joinable": it is about to be computed, and could be together with others that are not here.
    """

    what: Literal["started", "tick", "computed", "waiting", "joinable"]
    node: Node
    key: str
    seconds: float = 0.0
    tick: Tick | None = None


def _log_remark(node: Node, text: str) -> None:
    log.warning("%s: %s", node.name, text)


@dataclass
class _Marks:
    """What a stage remarked, and what of it belongs into its result's info."""

    node: Node
    on_remark: Callable[[Node, str], None]
    info: dict[str, Any] = field(default_factory=dict)
    _texts: set[str] = field(default_factory=set)

    def take(self, text: str, info: Mapping[str, Any]) -> None:
        self.info |= info
        if text not in self._texts:
            self._texts.add(text)
            self.on_remark(self.node, text)

    def on(self, artefact: Artefact) -> Artefact:
        return replace(artefact, info={**artefact.info, **self.info}) if self.info else artefact

    def on_tick(self, tick: Tick) -> Tick:
        return replace(tick, artefact=lambda: self.on(tick.artefact())) if self.info else tick


def _hearing(steps: Iterator[T], marks: _Marks) -> Iterator[T]:
    """Yield each of the steps, with what is remarked while it is made."""
    while True:
        with heard(marks.take):
            found = next(steps, None)
        if found is None:
            return
        yield found


@dataclass
class _Work:
    """A node that is computed under its lease."""

    node: Node
    key: str
    made_for: str
    again: bool = False
    """Whether it is published, and only brings back what was dropped of it."""
    checkpoint: Checkpoint = field(init=False)
    moved: Moved = field(init=False)


@dataclass(frozen=True)
class Companion:
    """Another trial's node, to be computed together with one of this trial's where both are ready."""

    node: Node
    made_for: str


@dataclass
class Executor:
    """Computes nodes over one store.

    `checkpoint_interval_s = 0` saves at every tick: for schedulers that stop and later promote a trial.
    """

    store: Store
    resident: Resident
    checkpoint_interval_s: float | None = None
    made_for: str = ""
    """The trial that is being worked for, as `sweep/trial`; entered in the manifests of what is computed."""
    prefix_reuse: PrefixReuse = field(default_factory=PrefixReuse)
    """Which shorter trainings others want, so that a longer one publishes their results on the way."""
    companions: Sequence[Companion] = ()
    """Nodes of other trials, for those of this one that have their `Node.fuse_key`."""
    on_remark: Callable[[Node, str], None] = _log_remark
    """Hears at once what a running stage remarks, each remark once; by default it is logged."""
    resolver: Resolver = field(init=False)

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.store)
        self._loaded: dict[str, Artefact] = {}
        self._checkpoints: list[Checkpoint] = []

    def compute(self, node: Node, on_event: Callable[[Event], None] = lambda event: None) -> Artefact:
        """Return the node's artefact, computing whatever is missing."""
        for event in self.walk([node]):
            on_event(event)
        walk = self._artefact(node)
        while True:
            try:
                on_event(next(walk))
            except StopIteration as end:
                result: Artefact = end.value
                return result

    def inputs_but(self, node: Node, *left_out: str) -> Inputs:
        """Return a node's loaded inputs without some of them, computing whatever is missing."""
        return {name: self._value(value) for name, value in node.inputs.items() if name not in left_out}

    def run_with(self, node: Node, inputs: Inputs) -> Artefact:
        """Run a node's stage on these inputs and store nothing: to judge before the end."""
        return node.stage.run(Context(node.seed, node.numerics, log=log), **inputs)

    def _value(self, value: Node | Source) -> object:
        if isinstance(value, Node):
            return self.compute(value)
        return value.load(self.resident, {key: self.compute(node) for key, node in value.upstream.items()})

    def walk(self, nodes: Iterable[Node]) -> Generator[Event, None, None]:
        """Make sure that the results of all `nodes` are in the store, yielding what happens."""
        try:
            for node in nodes:
                yield from self._ensure(node)
        finally:
            self._loaded.clear()

    def _ensure(self, node: Node, *, read: bool = False) -> Generator[Event, None, str]:
        """Publish the node's result unless it is there; returns its key.

        To be `read` it must have its arrays: where these were dropped, they are computed again.
        """
        key = yield from self._key(node)
        while not self._is_there(key, read=read):
            # Before the lease is taken, so that others see what is really under way.
            for parent in node.parents:
                yield from self._ensure(parent, read=True)
            with self.store.leases.try_hold(key) as mine:
                # Another process may have published and let go between the two looks.
                self.store.look_again(key)
                if mine and not self._is_there(key, read=read):
                    with one_blas_thread():
                        yield from self._produce_with_others(node, key)
                    continue
            if not mine:
                yield Event("waiting", node, key)
                time.sleep(self.store.wait_s)
        return key

    def _is_there(self, key: str, *, read: bool) -> bool:
        return self.store.is_whole(key) if read else self.store.has(key)

    def _key(self, node: Node) -> Generator[Event, None, str]:
        """Return the node's key, computing the derived parents it depends on."""
        key = self.resolver.key(node)
        while key is None:
            for parent in node.parents:
                yield from self._ensure(parent) if parent.stage.kind == "derive" else self._key(parent)
            key = self.resolver.key(node)
        return key

    def _artefact(self, node: Node) -> Generator[Event, None, Artefact]:
        """Return the node's artefact; one that proves damaged is computed again."""
        while True:
            key = yield from self._key(node)
            if key in self._loaded:
                return self._loaded[key]
            yield from self._ensure(node, read=True)
            if key not in self._loaded and (artefact := self.store.open(key)) is not None:
                self._loaded[key] = artefact

    def _inputs(self, node: Node) -> Generator[Event, None, Inputs]:
        inputs: Inputs = {}
        for name, value in node.inputs.items():
            if isinstance(value, Node):
                inputs[name] = yield from self._artefact(value)
            else:
                upstream = {}
                for key, parent in value.upstream.items():
                    upstream[key] = yield from self._artefact(parent)
                inputs[name] = value.load(self.resident, upstream)
        return inputs

    def _produce_with_others(self, node: Node, key: str) -> Generator[Event, None, None]:
        """Produce a node under its lease, together with companions that are ready, if there are any.

        What brings back dropped arrays is computed alone: with others it would have other bits.
        """
        dropped = self.store.known(key)
        if dropped is not None:
            with threads_of(dropped.environment):
                yield from self._produce(_Work(node, key, self.made_for, again=True))
            return
        if node.fuse_key is None:
            yield from self._produce(_Work(node, key, self.made_for))
            return
        yield Event("joinable", node, key)
        with contextlib.ExitStack() as leases:
            works = [_Work(node, key, self.made_for), *self._ready_companions(node, key, leases)]
            if len(works) == 1:
                yield from self._produce(works[0])
            else:
                yield from self._produce_together(works)

    def _ready_companions(self, node: Node, key: str, leases: contextlib.ExitStack) -> list[_Work]:
        """Return the companions that may be computed with a node now, as many as its numerics allow."""
        found: dict[str, _Work] = {}
        for other in self.companions:
            its = self.resolver.key(other.node)
            if len(found) + 1 >= node.numerics.fused:
                break
            if its is None or its == key or its in found or other.node.fuse_key != node.fuse_key:
                continue
            if not all(map(self.resolver.is_whole, other.node.parents)):
                continue
            if leases.enter_context(self.store.leases.try_hold(its)):
                self.store.look_again(its)
                if not self.store.has(its):
                    found[its] = _Work(other.node, its, other.made_for)
        return list(found.values())

    def _produce(self, work: _Work) -> Generator[Event, None, None]:
        """Run the stage under its lease and publish; a failure is recorded and raised as `StageFailed`."""
        node, key = work.node, work.key
        before = self.store.place.moved
        inputs = yield from self._inputs(node)
        checkpoint = self.store.checkpoint(key, self.checkpoint_interval_s)
        yield Event("started", node, key)
        marks = _Marks(node, self.on_remark)
        started = time.perf_counter()
        try:
            with self._saving(checkpoint):
                steps = node.stage.steps(self._context(node, checkpoint), **inputs)
                while True:
                    try:
                        with heard(marks.take):
                            tick = marks.on_tick(next(steps))
                    except StopIteration as end:
                        artefact = marks.on(end.value)
                        break
                    seconds = time.perf_counter() - started
                    self._publish_passed(node, tick, seconds)
                    yield Event("tick", node, key, seconds, tick)
        except (UserError, OutageError):
            raise
        except Exception as error:
            raise self._failed(work, error) from error
        seconds = time.perf_counter() - started
        self._publish(work, artefact, Cost.measured(seconds, self.store.place.moved.since(before)))
        yield Event("computed", node, key, seconds)

    def _produce_together(self, works: list[_Work]) -> Generator[Event, None, None]:
        """Run stages of one `Node.fuse_key` as one, each under its lease, and publish each when it is done.

        The first one's failure is raised, the others' are recorded for their own trials.
        """
        first, jobs = works[0], []
        with contextlib.ExitStack() as saving:
            for work in works:
                before = self.store.place.moved
                inputs = yield from self._inputs(work.node)
                work.moved = self.store.place.moved.since(before)
                work.checkpoint = self.store.checkpoint(work.key, self.checkpoint_interval_s)
                saving.enter_context(self._saving(work.checkpoint))
                jobs.append((work.node.stage, self._context(work.node, work.checkpoint), inputs))
            yield Event("started", first.node, first.key)
            started = time.perf_counter()
            failed = None
            try:
                marks = _Marks(first.node, self.on_remark)
                for number, outcome in _hearing(first.node.stage.together(jobs), marks):
                    work, seconds = works[number], (time.perf_counter() - started) / len(works)
                    if isinstance(outcome, Tick):
                        self._publish_passed(work.node, outcome, seconds)
                        yield Event("tick", work.node, work.key, seconds, outcome)
                    elif isinstance(outcome, Artefact):
                        work.checkpoint.close(keep=False)
                        self._publish(work, outcome, Cost.measured(seconds, work.moved, len(works)))
                        yield Event("computed", work.node, work.key, seconds)
                    elif not isinstance(outcome, NotComputed):
                        failure = self._failed(work, outcome)
                        failed = failure if work is first else failed
            except (UserError, OutageError):
                raise
            except Exception as error:
                raise self._failed(first, error) from error
            if failed is not None:
                raise failed

    def _context(self, node: Node, checkpoint: Checkpoint) -> Context:
        return Context(seed=node.seed, numerics=node.numerics, checkpoint=checkpoint, log=log)

    def _failed(self, work: _Work, error: Exception) -> StageFailed:
        """Record a failure; returns what to raise."""
        failure = self.store.record_failure(work.key, work.node.name, error)
        return StageFailed(work.node, work.key, failure.status, failure.error)

    def _publish(self, work: _Work, artefact: Artefact, cost: Cost) -> None:
        preimage, kind = self.resolver.preimage(work.node), work.node.stage.kind
        if work.again:
            try:
                self.store.bring_back(work.key, artefact)
            except OtherBitsError as error:
                raise self._failed(work, error) from error
        else:
            self.store.publish(work.key, kind, preimage, artefact, cost=cost, made_for=work.made_for)
        if artefact.arrays and work.made_for == self.made_for:
            self._loaded[work.key] = replace(artefact, info=dict(artefact.info))

    def save_soon(self) -> None:
        """Let the stages that are under way, if any, save their states at the next tick."""
        for checkpoint in self._checkpoints:
            checkpoint.interval_s = 0.0

    @contextlib.contextmanager
    def _saving(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Have a stage's last state saved before its lease is given back: the next one goes on from there."""
        self._checkpoints.append(checkpoint)
        try:
            yield
        except BaseException:
            checkpoint.close(keep=True)
            raise
        finally:
            self._checkpoints.remove(checkpoint)
        checkpoint.close(keep=False)  # the result makes it needless

    def _publish_passed(self, node: Node, tick: Tick, seconds: float) -> None:
        """Publish the result of a shorter training that is wanted, if this one is just where it ends.

        It is made for nobody, as the longer training pays for it.
        """
        shorter = self.prefix_reuse.reused(node).get(tick.epoch)
        key = None if shorter is None else self.resolver.key(shorter)
        if shorter is None or key is None or self.store.has(key):
            return
        with self.store.leases.try_hold(key) as mine:
            if mine and not self.store.has(key):
                preimage, cost = self.resolver.preimage(shorter), Cost.measured(seconds)
                self.store.publish(key, shorter.stage.kind, preimage, tick.artefact(), cost=cost)
