"""Dropping the weights of classifiers that are evaluated, beyond what a sweep leaves of them in its store.

`weights_gb` says how much a sweep leaves beside the weights of its best settings, of undefended models, and
of settings that have seeds to come: those of the next best settings, as many as fit. Of all others the arrays
are dropped from the store while the sweep runs; manifest, curve and numbers stay, and whoever asks for the
weights later computes them again. Nothing is dropped that a trial of this run or of another running sweep may
still read, that another sweep computed, or that would not come back bit for bit.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bdtune.config.trial import section_params, to_params
from bdtune.engine.environment import same_libraries
from bdtune.engine.shared import Shared
from bdtune.engine.store import ARRAYS
from bdtune.report.groups import grouped
from bdtune.report.selection import by_rank, cases, given, selected
from bdtune.report.table import size
from bdtune.trials.chain import CLASSIFIER
from bdtune.trials.results import SEED
from bdtune.verbs.tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.manifest import Manifest
    from bdtune.engine.node import Node
    from bdtune.trials.ledger import Entry, Ledger
    from bdtune.trials.results import TrialResult

EVERY, SHARE = 100, 10
"""Trials that end between two looks at what may go, or one in so many of all that have ended if that is more:
a look goes through all trials."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A sweep whose classifiers are judged, alone or in a campaign: its rule of the best, and its trials."""

    spec: SweepSpec
    ledger: Ledger


@dataclass
class Freed:
    """What was dropped."""

    classifiers: int = 0
    bytes: int = 0

    def line(self) -> str:
        """Return it in words; nothing where nothing was dropped."""
        if not self.classifiers:
            return ""
        count = counted(self.classifiers, "evaluated classifier")
        what = f"weights of {count} dropped, {size(self.bytes)} freed (weights_gb)"
        return f"{what}; 'bdtune export TRIAL' and .model() compute them again"


class Weights:
    """Drops weights in a thread of its own while trials end; `close` takes a last look.

    `whole` has the trials of all `parts`, under the name for which stages are computed.
    """

    def __init__(self, whole: Ledger, parts: Sequence[Judged]) -> None:
        self.whole, self.parts = whole, parts
        self.freed = Freed()
        self._results: dict[str, TrialResult] = {}
        self._params = Shared(section_params)
        self._settings: dict[tuple[str, bool], str] = {}
        self._readers: dict[str, dict[str, Node]] = {}  # recipe of a classifier -> nodes that read it
        self._entered: set[str] = set()
        self._since = 0
        self._closed = False
        self._look: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bdtune-weights")

    def trial_done(self, result: TrialResult) -> None:
        """Take in a trial that ended; now and then what may go is dropped."""
        self._results[result.id] = result
        self._since += 1
        if self._since >= max(EVERY, len(self._results) // SHARE) and (
            self._look is None or self._look.done()
        ):
            self._since = 0
            self._look = self._pool.submit(self._drop)

    def close(self) -> str:
        """Drop what may go now; returns what was dropped since the beginning, in words."""
        try:
            self._pool.submit(self._drop).result()
        finally:  # Ctrl-C ends it after the entry that it is at
            self._closed = True
            self._pool.shutdown()
        return self.freed.line()

    def _drop(self) -> None:
        """Drop what may go."""
        try:
            for key, by in self._to_drop().items():
                if self._closed:
                    return
                freed = self.whole.resolver.store.drop(key, by)
                self.freed.classifiers += bool(freed)
                self.freed.bytes += freed
        except Exception as error:  # room must not cost a sweep its results
            log.warning("weights that nothing reads any more are not dropped for now: %s", error)

    def _to_drop(self) -> dict[str, str]:
        """Return the keys of what may go, each with what asks for it."""
        results = dict(self._results)
        all_stay = all(part.spec.weights_gb is None for part in self.parts)
        found = {} if all_stay else self._candidates(results)
        if not found:
            return {}
        stay: set[str] = self.whole.resolver.store.pins.keys(own=False)
        asked: dict[str, str] = {}
        for part in self.parts:
            own = {trial: found[trial] for trial in found if trial in part.ledger.entries}
            kept = self._kept(part, results, own)
            stay |= {own[trial].key for trial in kept}
            by = f"sweep '{part.spec.name}' (weights_gb={_number(part.spec.weights_gb)})"
            asked |= {own[trial].key: by for trial in own.keys() - kept}
        return {key: by for key, by in sorted(asked.items()) if key not in stay}

    def _candidates(self, results: dict[str, TrialResult]) -> dict[str, Manifest]:
        """Return the classifiers of finished trials that nothing reads any more, by the trial's id."""
        entries = list(self.whole.entries.values())
        self._enter(entries)
        resolver, owner = self.whole.resolver, f"{self.whole.sweep}/"
        baselines = {entry.baseline_id for entry in entries} | {e.id for e in entries if e.is_baseline}
        undefended = {resolver.key(e.graph.chain[CLASSIFIER]) for e in entries if e.id in baselines}
        found = {}
        for entry in entries:
            if entry.id not in results or results[entry.id].status != "done":
                continue
            node = entry.graph.chain[CLASSIFIER]
            manifest = resolver.manifest(node)
            if manifest is None or ARRAYS not in manifest.files or manifest.key in undefended:
                continue
            if manifest.made_for.startswith(owner) and _comes_back(manifest) and self._is_read(node):
                found[entry.id] = manifest
        return found

    def _enter(self, entries: Iterable[Entry]) -> None:
        """Note what reads each stage, of trials that were added since the last look."""
        for entry in entries:
            if entry.id not in self._entered:
                self._entered.add(entry.id)
                for node in entry.graph.stages.values():
                    for parent in node.parents:
                        self._readers.setdefault(parent.recipe, {})[node.recipe] = node

    def _is_read(self, classifier: Node) -> bool:
        """Whether all stages of all trials that read a classifier have their results."""
        readers = self._readers.get(classifier.recipe, {}).values()
        return all(self.whole.resolver.manifest(node) is not None for node in readers)

    def _kept(self, part: Judged, results: dict[str, TrialResult], own: dict[str, Manifest]) -> set[str]:
        """Return the trials of a sweep whose classifiers stay, of those that may go."""
        spec, most = part.spec, part.spec.weights_gb
        if most is None or most * 1e9 >= sum(manifest.size for manifest in own.values()):
            return set(own)
        entries = list(part.ledger.entries.values())
        ended = [replace(results[e.id], is_baseline=e.is_baseline) for e in entries if e.id in results]
        across = spec.select.over != "each"
        open_ = {self._setting(entry, across) for entry in entries if entry.id not in results}
        kept = _best(spec, ended)
        for trial in own:
            entry = part.ledger.entries[trial]
            if _is_copied(spec, entry) or self._setting(entry, across) in open_:
                kept.add(trial)
        return kept & own.keys() | _fitting([*_ranked(spec, ended), *own], kept, own, most * 1e9)

    def _setting(self, entry: Entry, across: bool) -> str:
        """Return a trial's settings but its seed; but its data and attack, too, if chosen `across` them."""
        known = self._settings.get((entry.id, across))
        if known is None:
            params = to_params(entry.spec, self._params)
            left_out = {SEED, *(given(params) if across else ())}
            shown = {name: params[name] for name in sorted(params) if name not in left_out}
            known = self._settings[entry.id, across] = json.dumps(shown)
        return known


def _best(spec: SweepSpec, ended: Sequence[TrialResult]) -> set[str]:
    """Return the trials of the best settings; where none is best, the one whose pictures are drawn."""
    select = spec.select
    chosen = selected(spec.name, ended, select.metric, select.mode, over=select.over)
    best = {trial.id for trials in chosen.best_settings.values() for trial in trials}
    for case in cases(grouped(ended)):
        first = next((trial.id for group in case.groups for trial in group.done), None)
        if first is not None and case.name not in chosen.choices:
            best.add(first)
    return best


def _ranked(spec: SweepSpec, ended: Sequence[TrialResult]) -> list[str]:
    """Return the finished trials of settings that can be ranked, the best settings first."""
    groups = by_rank(grouped(ended), spec.select.metric, spec.select.mode)
    return [trial.id for group in groups for trial in group.done]


def _fitting(ranked: Iterable[str], kept: set[str], own: Mapping[str, Manifest], most: float) -> set[str]:
    """Return the first trials whose classifiers fit into so many bytes beside those that are kept anyway."""
    seen = {own[trial].key for trial in kept & own.keys()}
    fitting = set()
    for trial in ranked:
        if trial in own and own[trial].key not in seen:
            most -= own[trial].size
            if most < 0:
                break
            seen.add(own[trial].key)
        fitting.add(trial)
    return fitting & own.keys()


def _comes_back(manifest: Manifest) -> bool:
    """Whether computing a result again gives the same bits: deterministic, alone, by the same libraries."""
    numerics = manifest.preimage.get("numerics") or {}
    alone = manifest.cost.together == 1
    return bool(numerics.get("deterministic")) and alone and same_libraries(manifest.environment)


def _is_copied(spec: SweepSpec, entry: Entry) -> bool:
    """Whether MLflow gets a trial's classifier as a file, which it takes from the store at any time."""
    return "model" in spec.keep or ("verdicts" in spec.keep and CLASSIFIER in entry.spec.defense.evidence)


def _number(gigabytes: float | None) -> str:
    return "null" if gigabytes is None else f"{gigabytes:g}"
