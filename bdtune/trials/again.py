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
        roles, stages = trial.graph.roles, trial.graph.stages
    except UserError as error:
        raise UserError(Problem(name, expected, f"none: {error.problems[0]}")) from error
    executor = Executor(trial.store, trial.resident, made_for=f"{trial.sweep or 'run'}/{trial.result.id}")
    node = next((node for recipe, node in stages.items() if roles[recipe] == role), None)
    if node is None or executor.resolver.key(node) != key:
        hint = "An earlier version computed it, or what it reads is not in the store"
        raise UserError(Problem(name, expected, f"key {key}, which is none of its keys here", hint=hint))
    if node.numerics.device == "cuda" and not has_gpu():
        raise UserError(Problem(name, expected, "none, and no GPU here, where they were computed on one"))
    import torch  # noqa: F401  once it is loaded, it computes with as many threads as before

    said = f"{name}: the arrays of stage '{role}' were dropped by {manifest.dropped.by}"
    log.warning("%s: computing it again, which took %.0f s", said, manifest.cost.seconds)
    try:
        with trial.store.pins.held():
            return executor.compute(node)
    except StageFailed as error:
        raise UserError(Problem(name, expected, str(error))) from error
