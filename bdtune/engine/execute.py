"""Walking a trial's graph: compute what is missing, parents first, and publish each result.

The same code runs in process (`bdtune run`), in the driver (derived stages) and in a Ray Tune trial.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from bdtune.engine.manifest import Cost
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.engine.remarks import heard
from bdtune.engine.resolve import Resolver
from bdtune.engine.stage import Artefact, Context, Node, Source, Tick
from bdtune.errors import BdtuneError, OutageError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from typing import Any

    from bdtune.engine.place import Checkpoint
    from bdtune.engine.stage import Inputs, Resident
    from bdtune.engine.store import Store

log = logging.getLogger(__name__)


class StageFailed(BdtuneError):  # noqa: N818 - reads as what happened
    """A stage raised; the store's `failed/` holds the traceback."""

    def __init__(self, node: Node, key: str, status: Literal["failed", "diverged"], error: str) -> None:
        super().__init__(f"stage {node.name} ({key}) {status}: {error}")
        self.node, self.key, self.status, self.error = node, key, status, error


@dataclass(frozen=True)
class Event:
    """What a walk reports: a stage was started, ticked, finished here, or is being waited for."""

    what: Literal["started", "tick", "computed", "waiting"]
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
    on_remark: Callable[[Node, str], None] = _log_remark
    """Hears at once what a running stage remarks, each remark once; by default it is logged."""
    resolver: Resolver = field(init=False)

    def __post_init__(self) -> None:
        self.resolver = Resolver(self.store)
        self._loaded: dict[str, Artefact] = {}
        self._checkpoint: Checkpoint | None = None

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

    def _ensure(self, node: Node) -> Generator[Event, None, str]:
        """Publish the node's result unless it is there; returns its key."""
        key = yield from self._key(node)
        while not self.store.has(key):
            # Before the lease is taken, so that others see what is really under way.
            for parent in node.parents:
                yield from self._ensure(parent)
            with self.store.leases.try_hold(key) as mine:
                # Another process may have published and let go between the two looks.
                self.store.look_again(key)
                if mine and not self.store.has(key):
                    yield from self._produce(node, key)
                    continue
            if not mine:
                yield Event("waiting", node, key)
                time.sleep(self.store.wait_s)
        return key

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
            key = yield from self._ensure(node)
            if key not in self._loaded:
                artefact = self.store.open(key)
                if artefact is None:
                    continue
                self._loaded[key] = artefact
            return self._loaded[key]

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

    def _produce(self, node: Node, key: str) -> Generator[Event, None, None]:
        """Run the stage under its lease and publish; a failure is recorded and raised as `StageFailed`."""
        before = self.store.place.moved
        inputs = yield from self._inputs(node)
        checkpoint = self.store.checkpoint(key, self.checkpoint_interval_s)
        context = Context(seed=node.seed, numerics=node.numerics, checkpoint=checkpoint, log=log)
        yield Event("started", node, key)
        marks = _Marks(node, self.on_remark)
        started = time.perf_counter()
        try:
            with self._saving(checkpoint):
                steps = node.stage.steps(context, **inputs)
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
            failure = self.store.record_failure(key, node.name, error)
            raise StageFailed(node, key, failure.status, failure.error) from error
        seconds = time.perf_counter() - started
        cost = Cost.measured(seconds, self.store.place.moved.since(before))
        preimage = self.resolver.preimage(node)
        self.store.publish(key, node.stage.kind, preimage, artefact, cost=cost, made_for=self.made_for)
        if artefact.arrays:
            self._loaded[key] = replace(artefact, info=dict(artefact.info))
        yield Event("computed", node, key, seconds)

    def save_soon(self) -> None:
        """Let the stage that is under way, if any, save its state at its next tick."""
        if self._checkpoint is not None:
            self._checkpoint.interval_s = 0.0

    @contextlib.contextmanager
    def _saving(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Have a stage's last state saved before its lease is given back: the next one goes on from there."""
        self._checkpoint = checkpoint
        try:
            yield
        except BaseException:
            checkpoint.close(keep=True)
            raise
        finally:
            self._checkpoint = None
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
