"""`bdtune show trial`: the stages of a trial, what each reads, where its result lies and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bdtune.errors import UserError
from bdtune.knobs import short_names
from bdtune.plugins.metric import METRICS
from bdtune.report.table import Column, Row, Table, duration, size
from bdtune.trials.results import SEED, show
from bdtune.trials.sweep_folder import SWEEPS, varied
from bdtune.verbs.home import settings_of
from bdtune.verbs.tables import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.trials.known import KnownTrial

NAMED = ("dataset", "attack", "defense", "model", SEED)
"""Settings that tell a trial from others, whatever its sweep varies."""


@dataclass(frozen=True)
class StageRow:
    """One stage of a trial."""

    role: str
    """Its name in the trial."""
    stage: str
    """Its full name, with its owner."""
    reads: tuple[str, ...]
    """Roles of the stages whose results it reads."""
    key: str | None
    """Of its result; None where it cannot be known yet."""
    state: str
    """computed by this trial, shared with others, missing, or elsewhere: its files were not imported."""
    seconds: float | None
    """What computing it took, whoever did."""
    bytes: int | None
    read: int
    """Bytes of other trials' results that this trial read to compute it."""
    fetched: int
    """Of these, bytes that came from a bucket."""
    served: int
    """Bytes that the node had copies of."""
    peak_host_bytes: int | None
    made_for: str
    created: str
    host: str
    commit: str
    folder: str
    """Where its result lies, or would lie: a folder or an address."""
    dropped: str = ""
    """What dropped its arrays from the store; they are computed again when asked for."""
    together: int = 1
    """Trainings that were computed as one; the seconds are this one's share."""


@dataclass(frozen=True)
class TrialPage:
    """A trial as `bdtune show trial` prints it."""

    trial: KnownTrial
    stages: tuple[StageRow, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.trial.result.to_json(),
            "sweep": self.trial.sweep,
            "home": str(self.trial.home),
            "stages": [asdict(stage) for stage in self.stages],
        }


def page(trial: KnownTrial) -> TrialPage:
    """Return all that is known of a trial's stages: parents first, those to come too if its data is here."""
    try:
        graph = trial.graph
    except UserError as error:
        note = f"stages to come and what each reads are not known: {error.problems[0]}"
        return TrialPage(trial, tuple(_row(trial, role, (), "") for role in trial.result.stages), note)
    roles = graph.roles
    rows = []
    for recipe, node in graph.stages.items():
        reads = dict.fromkeys(roles[parent.recipe] for parent in node.parents)
        rows.append(_row(trial, roles[recipe], tuple(reads), node.stage.full_name()))
    return TrialPage(trial, tuple(rows))


def _row(trial: KnownTrial, role: str, reads: tuple[str, ...], name: str) -> StageRow:
    use = trial.result.stages.get(role)
    if use is None:
        return StageRow(role, name, reads, None, "missing", None, None, 0, 0, 0, None, "", "", "", "", "")
    folder = trial.store.place.where(use.key)
    manifest = trial.manifest(use.key)
    if manifest is None:
        return StageRow(
            role,
            name,
            reads,
            use.key,
            "missing",
            use.seconds or None,
            None,
            0,
            0,
            0,
            None,
            "",
            "",
            "",
            "",
            folder,
        )
    state = "computed" if use.computed else "shared"
    return StageRow(
        role,
        manifest.stage,
        reads,
        use.key,
        state if trial.store.has(use.key) else "elsewhere",
        manifest.cost.seconds,
        manifest.size,
        use.read,
        use.fetched,
        use.served,
        manifest.cost.peak_host_bytes,
        manifest.made_for,
        manifest.created,
        manifest.host,
        manifest.commit,
        folder,
        manifest.dropped.by if manifest.dropped else "",
        manifest.cost.together,
    )


def page_table(shown: TrialPage) -> Table:
    """Return a trial's stages as a table, with its settings and numbers below."""
    columns = (
        Column("stage", numeric=False),
        Column("reads", numeric=False),
        Column("key", numeric=False),
        Column("state", numeric=False),
        Column("took"),
        Column("size"),
    )
    rows = tuple(
        Row(
            (
                row.role,
                ", ".join(row.reads) or "-",
                row.key or "-",
                row.state,
                "-" if row.seconds is None else duration(row.seconds),
                "-" if row.bytes is None else f"{size(row.bytes)}{'*' if row.dropped else ''}",
            ),
            "failed" if row.state == "missing" else "",
        )
        for row in shown.stages
    )
    return Table(_title(shown.trial), columns, rows, tuple(_notes(shown)))


def _title(trial: KnownTrial) -> str:
    of = f" of sweep {trial.sweep}" if trial.sweep else ""
    return f"trial {trial.result.id}{of}: {trial.result.status}"


def _notes(shown: TrialPage) -> list[str]:
    trial, result = shown.trial, shown.trial.result
    own = [row for row in shown.stages if row.state == "computed"]
    shared = [row for row in shown.stages if row.state == "shared"]
    notes = [f"settings: {_settings(trial)}"]
    if numbers := _numbers(result.metrics):
        notes.append(f"numbers: {numbers}")
    if result.baseline_id:
        notes.append(f"compared with the undefended trial {result.baseline_id}")
    if result.error:
        notes.append(f"error: {result.error.strip().splitlines()[-1]}")
    notes.append(
        f"{counted(len(own), 'stage')} computed for it in {_sum(own)}, "
        f"{len(shared)} shared, which took {_sum(shared)}"
    )
    if fused := [f"{row.role} ({row.together})" for row in shown.stages if row.together > 1]:
        notes.append(
            f"computed together with those of other trials, of which its share is given: {', '.join(fused)}"
        )
    if read := sum(row.read for row in own):
        notes.append(f"{size(read)} of other trials' results read{_sources(own)}")
    notes.append(f"results lie in {trial.store.root}/{trial.store.place.layout}")
    for row in shown.stages:
        if row.dropped:
            took = duration(row.seconds or 0.0)
            notes.append(
                f"*: dropped from the store by {row.dropped}; 'bdtune export {result.id}' and .model() "
                f"compute {row.role} again, which took {took}"
            )
    if any(row.state == "elsewhere" for row in shown.stages):
        notes.append("elsewhere: the sweep was imported without this result's files")
    return [*notes, shown.note] if shown.note else notes


def _sources(rows: list[StageRow]) -> str:
    """Return where results were read from, if they lie in a bucket."""
    fetched, served = (sum(getattr(row, what) for row in rows) for what in ("fetched", "served"))
    return (
        f": {size(fetched)} from the bucket, {size(served)} from the node's copies"
        if fetched or served
        else ""
    )


def _sum(rows: list[StageRow]) -> str:
    return duration(sum(row.seconds or 0.0 for row in rows))


def _settings(trial: KnownTrial) -> str:
    params, paths = trial.result.params, list(NAMED)
    if trial.sweep:
        folder = trial.home / SWEEPS / trial.sweep
        paths = list(dict.fromkeys([*NAMED[:-1], *varied(folder, settings_of(folder)), SEED]))
    names = short_names(paths)
    return " ".join(f"{names[path]}={show(params[path])}" for path in paths if path in params)


def _numbers(metrics: Mapping[str, float]) -> str:
    """Return the metrics of the package; a defense's own stand in the JSON."""
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in METRICS.own if name in metrics)
