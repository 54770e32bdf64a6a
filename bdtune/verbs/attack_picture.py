"""The picture of `bdtune show attack`; what the attack trains first is trained on request only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.config.load import load_trial
from bdtune.engine.execute import Executor
from bdtune.engine.plan import Costs
from bdtune.engine.store import Store
from bdtune.errors import ConfigError, UserError
from bdtune.poisoning.triggered_sources import trained_nodes
from bdtune.reading.resident import InProcess
from bdtune.report.stages import StageProgress, described
from bdtune.report.table import duration
from bdtune.verbs.stores import checked, store_at, to_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.attack import Attack


@dataclass(frozen=True)
class Request:
    """A picture that can be drawn: its settings are right, and its place can be written."""

    spec: TrialSpec
    attack: Attack
    path: Path
    run_dir: Path
    store: str | None = None


def requested(
    name: str, overrides: Sequence[str], path: Path, run_dir: Path, *, store: str | None = None
) -> Request:
    """Check a picture's settings and place; raises `UserError` with all that is wrong with them."""
    spec = load_trial(None, [f"attack={name}", *overrides])
    if spec.attack is None:
        raise ConfigError(f"'{name}' is no attack")
    existing = next(folder for folder in path.parents if folder.exists())
    if path.is_dir() or not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"the picture cannot be written: {path}")
    return Request(spec, spec.attack, path, run_dir, store)


def draw(request: Request, *, train: bool = False) -> str:
    """Draw an attack on a data set: clean, poisoned, and their difference; return a line that says so.

    What an attack trains first is taken from the run directory's store. What is missing there is computed,
    with progress on standard error, if `train`; else nothing is drawn, and the line says what is missing.
    Raises `UserError` where the picture cannot be written.
    """
    from bdtune.report.pictures import dataset_picture

    spec, attack = request.spec, request.attack
    nodes = trained_nodes(attack, spec.dataset, spec.data_root, spec.seed_of_data, spec.numerics)
    if nodes:
        at = checked(store_at(request.run_dir, request.store), write=train, alone=True)
        store = to_write(request.run_dir, at) if train else Store(at, create=False)
        executor = Executor(store, InProcess(spec.data_root, spec.pipeline))
        missing = [node for node in _missing(nodes.values(), executor) if node.stage.kind == "train"]
        if missing and not train:
            return _told(missing, store)
        attack = attack.equip(_computed(nodes, executor, f"show/{attack.plugin_name()}"))
    try:
        drawn = dataset_picture(
            spec.dataset, attack, request.path, root=spec.data_root, seed=spec.seed_of_data
        )
    except OSError as error:
        raise UserError(f"the picture cannot be written: {error}") from error
    return f"picture: {drawn}"


def _computed(nodes: Mapping[str, Node], executor: Executor, made_for: str) -> dict[str, Artefact]:
    executor.made_for = made_for
    with executor.store.pins.held(), StageProgress() as progress:
        return {key: executor.compute(node, progress.event) for key, node in nodes.items()}


def _missing(nodes: Iterable[Node], executor: Executor) -> Iterator[Node]:
    """Yield the stages that the store lacks, each once, those first that others read."""
    seen: set[str] = set()

    def below(node: Node) -> Iterator[Node]:
        key = executor.resolver.key(node)
        if node.recipe in seen or (key is not None and executor.store.is_whole(key)):
            return
        seen.add(node.recipe)
        for parent in node.parents:
            yield from below(parent)
        yield node

    for node in nodes:
        yield from below(node)


def _told(missing: Sequence[Node], store: Store) -> str:
    """Return what would be trained, and how to ask for it."""
    costs = Costs(store)
    seconds = [costs.seconds(node) for node in missing]
    known = [each for each in seconds if each is not None]
    length = f", about {duration(sum(known))}" if len(known) == len(seconds) else ""
    names = ", ".join(dict.fromkeys(described(node) for node in missing))
    return f"no picture: this attack first computes {names}{length}; --train does so and then draws it"
