"""What one takes away from a trial: its classifier, and the poisoned set that its defense was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.poisoning.train_sources import FitSet
from bdtune.reading.resident import InProcess
from bdtune.trials.chain import CLASSIFIER
from bdtune.trials.verdicts import nodes_read, truth_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from bdtune.config.sweep import Kept
    from bdtune.plugins.data import ImageSet
    from bdtune.training.classifier import Classifier
    from bdtune.trials.known import KnownTrial


def classifier_of(trial: KnownTrial) -> Classifier:
    """Return the defended classifier on the CPU; raises `UserError` where the store lacks its weights."""
    weights = trial.artefact(CLASSIFIER).arrays
    from bdtune.training.classifier import trained_classifier

    spec = trial.spec
    shape = spec.dataset.image_shape(trial.data_root)
    return trained_classifier(spec.model, spec.dataset.num_classes, shape, spec.dataset.scale(), weights)


def poisoned_set(trial: KnownTrial) -> ImageSet:
    """Return the training set that the defense was given: images uint8 [N, H, W, C], observed labels [N].

    All of it lies in memory, of a data set that trials stream too.

    Raises `UserError` where the data set is not here, or the store lacks what the attack trained.
    """
    source = _fit_set(trial)
    made = {key: trial.result_of(node) for key, node in source.upstream.items()}
    return source.load(InProcess(trial.data_root, "resident"), made)


def roles_of(trial: KnownTrial, kept: Collection[Kept]) -> list[str]:
    """Return the roles of the stages whose results one takes away.

    "model": the classifier; "verdicts": what says which rows were kept and suspected, and what the attack
    trained, without which the poisoned set cannot be made.
    """
    nodes = [trial.graph.chain[CLASSIFIER]] if "model" in kept else []
    if "verdicts" in kept:
        nodes += [*nodes_read(trial), *_fit_set(trial).upstream.values()]
    roles = trial.graph.roles
    return list(dict.fromkeys(roles[node.recipe] for node in nodes))


def _fit_set(trial: KnownTrial) -> FitSet:
    """Return the source of the poisoned set, all in memory."""
    truth = truth_of(trial)
    return FitSet(**{name: getattr(truth, name) for name in type(truth).model_fields})
