"""What one takes away from a trial: its classifier, and the poisoned set that its defense was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.poisoning.sources import FitSet
from bdtune.reading.resident import InProcess
from bdtune.trials.chain import CLASSIFIER
from bdtune.trials.verdicts import truth_of

if TYPE_CHECKING:
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
    truth = truth_of(trial)
    fields = {name: getattr(truth, name) for name in type(truth).model_fields}
    source = FitSet(**fields)
    made = {key: trial.result_of(node) for key, node in source.upstream.items()}
    return source.load(InProcess(trial.data_root, "resident"), made)
