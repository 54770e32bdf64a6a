"""A trial that a run directory knows: its result, its settings, its graph and its artefacts in the store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bdtune.config.trial import trial_id
from bdtune.engine.manifest import Manifest
from bdtune.engine.store import Store
from bdtune.errors import Problem, UserError
from bdtune.reading.resident import InProcess
from bdtune.trials.again import computed_again
from bdtune.trials.from_params import spec_from_params
from bdtune.trials.graph import trial_graph
from bdtune.trials.sweep_folder import SETTINGS, SWEEPS, store_of

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.trials.graph import TrialGraph
    from bdtune.trials.results import TrialResult

MANIFESTS = "manifests"
"""Folder of an imported sweep with the manifests of all its artefacts, though not all came with it."""


@dataclass(frozen=True)
class KnownTrial:
    """A trial with where its files are."""

    home: Path
    """The run directory."""
    result: TrialResult
    sweep: str = ""
    """Its sweep's name; none of a trial that `bdtune run` computed."""
    data_root: Path | None = None
    """Folder of the data sets."""
    store_at: Path | str | None = None
    """Where the store is; None: where its sweep's is."""

    @cached_property
    def spec(self) -> TrialSpec:
        """Its settings; raises `UserError` where this version reads them as those of another trial."""
        spec = spec_from_params(self.result.params, self.data_root)
        if trial_id(spec) != self.result.id:
            expected = "expected settings that this version reads as the same trial"
            hint = "An earlier version computed it, or a file of its attack or plugin changed since"
            raise UserError(
                Problem(f"trial {self.result.id}", expected, f"trial {trial_id(spec)}", hint=hint)
            )
        return spec

    @cached_property
    def graph(self) -> TrialGraph:
        """Its stages; raises `UserError` where its data set is not here."""
        return trial_graph(self.spec)

    @cached_property
    def store(self) -> Store:
        """The store, which is only read."""
        at = store_of(self.home / SWEEPS / self.sweep) if self.store_at is None else self.store_at
        return Store(at, create=False)

    @cached_property
    def resident(self) -> InProcess:
        """Reads its data set."""
        return InProcess(self.data_root, self.spec.pipeline)

    def manifest(self, key: str) -> Manifest | None:
        """Return what is known of an artefact, though the artefact itself may not have been imported."""
        if (found := self.store.manifest(key)) is not None:
            return found
        with suppress(FileNotFoundError):
            content = (self.home / SWEEPS / self.sweep / MANIFESTS / f"{key}.json").read_bytes()
            return Manifest.from_json(content)
        return None

    def artefact(self, role: str) -> Artefact:
        """Return the result of the stage of a role; raises `UserError` where the store lacks it.

        Arrays that were dropped are computed again first, in this process.
        """
        use = self.result.stages.get(role)
        found = None if use is None else self.store.open(use.key)
        if found is not None:
            return found
        manifest = None if use is None else self.store.manifest(use.key)
        if manifest is not None and manifest.dropped is not None:
            return computed_again(self, role, manifest)
        got = "none" if use is None else f"key {use.key}, which is not there"
        expected = f"expected the result of stage '{role}' in {self.store.root}"
        raise UserError(Problem(f"trial {self.result.id}", expected, got, hint=self._hint()))

    def result_of(self, node: Node) -> Artefact:
        """Return the result of a node of the trial's graph; raises as `artefact`."""
        return self.artefact(self.graph.roles[node.recipe])

    def _hint(self) -> str:
        if self.result.status != "done":
            return f"The trial is {self.result.status}: let its sweep finish first"
        if self.sweep:
            return f"Compute it again: bdtune sweep {self.home / SWEEPS / self.sweep / SETTINGS}"
        return "Compute it again with 'bdtune run'"
