"""Bringing back what a sweep dropped of a trial's result: its stage is computed again, bit for bit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.hardware import has_gpu
from bdtune.errors import Problem, UserError

if TYPE_CHECKING:
    from bdtune.engine.manifest import Manifest
    from bdtune.engine.stage import Artefact
    from bdtune.trials.known import KnownTrial

log = logging.getLogger(__name__)


def computed_again(trial: KnownTrial, role: str, manifest: Manifest) -> Artefact:
    """Return the result of a stage whose arrays were dropped, and give the store them back.

    Raises `UserError` with what was dropped, and by what, where they cannot be computed here.
    """
    assert manifest.dropped is not None
    name, key = f"trial {trial.result.id}", manifest.key
    expected = f"expected the arrays of stage '{role}', which {manifest.dropped.by} dropped"
    try:
        node = next(node for each, node in trial.graph.stages.items() if trial.graph.roles[each] == role)
    except UserError as error:
        raise UserError(Problem(name, expected, f"none: {error.problems[0]}")) from error
    if node.numerics.device == "cuda" and not has_gpu():
        raise UserError(Problem(name, expected, "none, and no GPU here, where they were computed on one"))
    import torch  # noqa: F401  it computes with as many threads as before once it is loaded

    executor = Executor(trial.store, trial.resident, made_for=f"{trial.sweep or 'run'}/{trial.result.id}")
    if executor.resolver.key(node) != key:
        got = f"key {key}, which this version computes as {executor.resolver.key(node)}"
        raise UserError(Problem(name, expected, got))
    took = f"{manifest.cost.seconds:.0f} s"
    log.warning(
        "%s: the arrays of stage '%s' were dropped by %s: computing it again, which took %s",
        name,
        role,
        manifest.dropped.by,
        took,
    )
    try:
        with trial.store.pins.held():
            return executor.compute(node)
    except StageFailed as error:
        raise UserError(Problem(name, expected, str(error))) from error
