"""Running a sweep: settle what the store answers, start or join Ray for the rest, let Tune schedule it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from bdtune.cluster import seen
from bdtune.cluster.daemons import RayDiedError
from bdtune.cluster.driver import Driver, Listener
from bdtune.cluster.live_notes import LiveNotes
from bdtune.cluster.nodes import Node, NodeWatch, living
from bdtune.cluster.repeated import repeated
from bdtune.cluster.scratch import clear_left, scratch
from bdtune.cluster.session import Needs, fitting, session, slots
from bdtune.cluster.signals import asked, check, ended_by_tune
from bdtune.cluster.trial_source import make_source
from bdtune.config.expand import points, with_values
from bdtune.engine.execute import Executor
from bdtune.errors import ConfigError, UserError
from bdtune.metrics import metric_of
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph
from bdtune.trials.ledger import Ledger
from bdtune.tuning.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bdtune.cluster.shared import Shared, Variables
    from bdtune.cluster.trial_source import TrialSource
    from bdtune.config.sweep import SweepSpec
    from bdtune.config.trial import TrialSpec
    from bdtune.engine.store import Store
    from bdtune.trials.results import TrialResult

MOST = 10_000
"""Trials at once, on any cluster."""
POLL_S = 0.5
"""Between two looks at what the running trials are doing."""
NOTES_PER_S = 20.0
"""Notes of progress that all running trials leave together; each leaves one a second at most."""


class SweepListener(Listener, Protocol):
    """A listener that also follows what running trials do."""

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """A trial is in a stage, after so many of its epochs."""

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial's stage of this role had these numbers after an epoch; may be repeated."""

    def remarked(self, trial: str, stage: str, text: str) -> None:
        """A trial's stage has something to say, of memory for instance; may be repeated."""


@dataclass(frozen=True)
class Options:
    """How a sweep is run, as opposed to what it computes."""

    address: str | None = None
    """An existing Ray cluster; None starts a session on this machine."""
    cpus: int | None = None
    gpus: int | None = None
    """CPUs and GPUs of that session; None: what the machine has."""
    retry_failed: bool = False
    concurrency: int | None = None
    """Most trials at once; None: as many as fit."""


@dataclass(frozen=True)
class Outcome:
    """What a run of a sweep came to."""

    trials: list[TrialResult]
    interrupted: bool
    released: int
    """Trials that were given to an actor."""
    given_up: str | None = None
    """Why trials were given up though nothing was wrong with them."""


def make_ledger(spec: SweepSpec, store: Store) -> tuple[Ledger, Executor]:
    """Return the sweep's empty ledger and the executor of its derived stages in this process."""
    executor = Executor(store, InProcess(spec.trial.data_root, spec.trial.pipeline))
    return Ledger(spec.name, executor.resolver, spec.device), executor


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    ledger: Ledger,
    executor: Executor,
    *,
    watcher: SweepListener,
    options: Options | None = None,
    source: TrialSource | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Outcome:
    """Run every trial of a sweep that is not in the store yet; returns all results.

    `folder` is the sweep's own. `source`: what gives the trials, unless the sweep does. Of `ranks`, by trial
    id, lower ones start first. Raises `UserError` when no node can ever hold a trial.
    """
    options = options or Options()
    driver = Driver(
        spec,
        ledger,
        executor,
        source or make_source(spec, folder),
        watcher,
        folder=folder,
        retry_failed=options.retry_failed,
        ranks=ranks,
    )
    interrupted, ray_died = False, None
    try:
        _clear(executor.store, folder)  # what killed starts left
        with executor.store.pins.held() as mark:
            driver.answer()
            if not driver.finished:
                _run_on_ray(driver, watcher, options, mark)
        _clear(executor.store, folder)  # what killed workers left
    except KeyboardInterrupt:  # Ctrl-C, and SIGTERM that does the same
        interrupted = True
    except RayDiedError as error:
        ray_died = str(error)
    finally:
        executor.store.end_news()  # the report is of what is there by then
    order = [driver.results[trial] for trial in ledger.entries if trial in driver.results]
    given_up = driver.given_up or ray_died
    return Outcome(order, interrupted or not driver.complete, len(driver._started), given_up)


def _clear(store: Store, folder: Path) -> None:
    store.clear_leftovers()
    clear_left(folder.parent)


def _run_on_ray(driver: Driver, watcher: SweepListener, options: Options, mark: str) -> None:
    """Run what is left, until it is done or interrupted.

    Raises `UserError` with each node of a cluster that does not see the store, which the driver has marked.
    """
    from bdtune.cluster import shared as sharing

    trials = driver.ledger.entries.values()
    specs = [entry.spec for entry in trials if entry.id not in driver.results]
    folder, store = driver.folder, driver.executor.store
    spec = driver.spec
    streamed = sharing.streamed(specs)
    needs = Needs(spec.resources.cpu, spec.resources.gpu, helper_cpu=1.0 if streamed else 0.0)
    data_bytes = sharing.resident_bytes(specs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            session(
                options.address,
                cpus=options.cpus,
                gpus=options.gpus,
                data_bytes=data_bytes,
                needs=needs,
                say=watcher.message,
            )
        )
        variables = sharing.Variables.of_this_process()
        if options.address is not None:
            _check_store(store.root, mark, variables)
        fit = min(slots(needs), options.concurrency or MOST)
        own = stack.enter_context(scratch(folder))
        live = own / "live"
        live.mkdir()
        metric, mode = spec.objectives[0]
        common = sharing.Shared(
            store=store.root,
            mark=mark,
            sweep=spec.name,
            live=live,
            live_s=max(1.0, fit / NOTES_PER_S),
            objective=metric_of(metric) if spec.scheduler.judges else None,
            mode=mode,
            gpu=spec.resources.gpu,
            variables=variables,
            decisive=frozenset(metric_of(name) for name, _ in spec.objectives),
            residents=sharing.load_residents(specs),
            streamed=streamed,
        )
        driver.most_open = _most_open(driver)
        driver.slots = driver.most_open(fit)
        check()
        with _watching(live, watcher), _following_nodes(driver, watcher, options, common, needs):
            _tune(driver, common, needs, own)


def _check_store(root: Path | str, mark: str, variables: Variables) -> None:
    """Raise `UserError` with each node, by name, that does not see the store."""
    found = living()
    wrong = seen.unseen(root, mark, variables, found)
    seen.refuse(root, {found[node].name: why for node, why in wrong.items()})


def _most_open(driver: Driver) -> Callable[[int], int]:
    """Return how many trials are open at a time, by how many fit on the nodes."""
    spec = driver.spec
    epochs = _epochs(driver) if spec.scheduler.judges else 1
    return partial(SCHEDULERS.find(spec.scheduler.name).most_open, spec.scheduler, epochs)


def _following_nodes(
    driver: Driver, watcher: SweepListener, options: Options, common: Shared, needs: Needs
) -> AbstractContextManager[None]:
    """Let a sweep use the nodes that join its cluster, and say what becomes of nodes."""
    if options.address is None:
        return contextlib.nullcontext()

    def changed(nodes: list[Node]) -> None:
        with contextlib.suppress(UserError):  # none is left that a trial would fit on: another may join
            fit = fitting([dict(node.resources) for node in nodes], needs) if nodes else 1
            driver.slots = driver.most_open(min(fit, options.concurrency or MOST))

    def wrong(node: Node) -> str | None:
        return seen.unseen(common.store, common.mark, common.variables, [node.id]).get(node.id)

    return NodeWatch(watcher.message, changed, wrong).watching()


def _extremes(spec: SweepSpec) -> list[TrialSpec]:
    """Return trials at the ends of a search's space: each setting alone, and all at their last values."""
    assert spec.search is not None
    space = spec.search.space
    found = []
    ends = [{path: value} for path, domain in space.items() for value in domain.values]
    for values in [*ends, {path: domain.values[-1] for path, domain in space.items()}]:
        with contextlib.suppress(ConfigError):  # settings that do not go together
            found.append(with_values(spec.trial, values))
    return found


def _epochs(driver: Driver) -> int:
    """Return how many epochs the longest trial may report; a search may go beyond its first trials."""
    specs = [entry.spec for entry in driver.ledger.entries.values()]
    if driver.spec.search is not None:
        specs += _extremes(driver.spec)
    return max((trial_graph(spec).epochs for spec in specs), default=1)


def _tune(driver: Driver, common: Shared, needs: Needs, own: Path) -> None:
    """Let Tune run what the driver releases, until that is done or somebody asks for the end.

    Tune stops once it was told that no trial is to come. One of the last may die after that, and is tried
    again in another round.
    """
    from ray import tune

    from bdtune.cluster.trainable import Trial

    spec = driver.spec
    scheduler = SCHEDULERS.find(spec.scheduler.name)
    epochs = _epochs(driver) if spec.scheduler.judges else 1
    trainable = tune.with_resources(
        tune.with_parameters(Trial, shared=common), tune.PlacementGroupFactory(needs.bundles)
    )
    with _quiet(), ended_by_tune():
        for number in itertools.count():
            judge = scheduler.build(spec.scheduler, epochs, driver.paused)
            _tuner(driver, trainable, judge, common.mode, own / f"round-{number}").fit()
            if asked() or not driver.deaths.waiting:
                return


def _tuner(driver: Driver, trainable: Any, judge: Any, mode: str, folder: Path) -> Any:
    from ray import tune

    from bdtune.cluster.searcher import HoldBack

    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=mode,
            search_alg=HoldBack(driver),
            scheduler=_unpickled(judge),
            num_samples=-1,
            max_concurrent_trials=driver.slots,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=driver.spec.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _unpickled(scheduler: Any) -> Any:
    """Keep a scheduler, and the driver with it, out of the snapshot that Tune pickles and nobody reads."""
    scheduler.__reduce_ex__ = lambda _: (object, ())
    return scheduler


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune's remarks about itself off the screen; what concerns a trial is reported by the driver."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _watching(live: Path, watcher: SweepListener) -> Iterator[None]:
    """Follow the notes that running trials leave."""
    notes = LiveNotes(live)

    def look() -> None:
        for note in notes.new():
            watcher.stage(note["trial"], note["stage"], note["epoch"], note["epochs"])
            for text in note["remarks"]:
                watcher.remarked(note["trial"], note["stage"], text)
            if note["role"] and note["metrics"]:
                watcher.learned(note["trial"], note["role"], note["epoch"], note["metrics"])

    with repeated(look, POLL_S, "bdtune-watch"):
        yield


def planned_trials(spec: SweepSpec, preview: int) -> list[TrialSpec]:
    """Return the trials of a finite sweep, or a sample of what a search may try."""
    if spec.search is None:
        return points(spec)
    from bdtune.config.search import preview as drawn

    return drawn(spec, min(preview, spec.search.trials))
