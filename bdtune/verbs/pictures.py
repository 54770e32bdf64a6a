"""The pictures of a sweep's best trials: the attack, and what the defense saw. Each is drawn once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of
from bdtune.errors import StoreError
from bdtune.poisoning.triggered_sources import trained_nodes
from bdtune.reading.resident import InProcess
from bdtune.report.saving import save

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bdtune.engine.node import Node
    from bdtune.engine.resolve import Resolver
    from bdtune.engine.stage import Artefact
    from bdtune.trials.ledger import Entry

log = logging.getLogger(__name__)


class Gallery:
    """Draws into a folder of the sweep; a picture that is there already is not drawn again."""

    def __init__(self, folder: Path, resolver: Resolver) -> None:
        self.folder, self.resolver = folder, resolver

    def placed(self, entry: Entry, folder: Path, name: str = "best") -> list[Path]:
        """Copy a trial's pictures to where its sweep's report lies, as best-attack.png, best-defense.png."""
        found = []
        for what, draw in (("attack", self._attack), ("defense", self._defense)):
            picture = self._try(draw, entry)
            if picture is not None:
                target = folder / f"{name}-{what}.png"
                replace_file(target, picture.read_bytes())
                found.append(target)
        return found

    def _try(self, draw: Callable[[Entry], Path | None], entry: Entry) -> Path | None:
        try:
            return draw(entry)
        except Exception as error:  # a picture that cannot be drawn must not cost the trial its record
            log.warning("no picture of trial %s: %s", entry.id, error)
            return None

    def _attack(self, entry: Entry) -> Path | None:
        spec = entry.spec
        if spec.attack is None:
            return None
        path = self.folder / f"attack-{entry.graph.data_digest}.png"
        if not path.exists():
            from bdtune.report.pictures import dataset_picture

            trained = trained_nodes(
                spec.attack, spec.dataset, spec.data_root, spec.seed_of_data, spec.numerics
            )
            attack = spec.attack.equip(self._open(trained))
            dataset_picture(spec.dataset, attack, path, root=spec.data_root, seed=spec.seed_of_data)
        return path

    def _defense(self, entry: Entry) -> Path | None:
        if entry.graph.diagnose is None or entry.graph.truth is None:
            return None
        defense, chain = entry.spec.defense, entry.graph.chain
        nodes = {name: chain[name] for name in defense.pictured_nodes() if name in chain}
        keys = {name: self.resolver.key(node) for name, node in nodes.items()}
        if None in keys.values():  # the trial failed before
            return None
        name = defense.plugin_name()
        path = self.folder / f"{name}-{key_of(keys)}.png"
        if path.exists():
            return path
        truth = entry.graph.truth.load(InProcess(entry.spec.data_root), {})
        figure = defense.figure(self._open(nodes), truth)
        if figure is None:
            return None
        return save(figure, path, dpi=110)

    def _open(self, nodes: Mapping[str, Node]) -> dict[str, Artefact]:
        found = {}
        for name, node in nodes.items():
            key = self.resolver.key(node)
            artefact = self.resolver.store.open(key) if key else None
            if artefact is None:
                raise StoreError(
                    f"the result of stage {node.name} is not in the store, or its arrays were dropped"
                )
            found[name] = artefact
        return found
