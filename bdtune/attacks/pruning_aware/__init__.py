"""Pruning-aware attack: BadNets by an attacker who trains the model so that pruning does not help.

Source: Fine-Pruning (Liu, Dolan-Gavitt and Garg, 2018), arXiv:1805.12185, section 3.2: train on clean data,
prune dormant channels, retrain on poisoned data, put the pruned channels back with lowered biases.
Departures: residual networks only, where the inner channels of the last block are pruned, as its output is a
sum with the shortcut; lowered are the shifts of their norm. Pruning ends where accuracy on held out clean
images falls by more than half a point (the paper names no bound). Shifts are lowered until the channels are
dormant on triggered images, too. The result is a model: a defense that trains from scratch meets BadNets with
the same knobs, and shares every stage with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from bdtune.attacks.pruning_aware.stages import CleanPart, PruneDormant, RestorePruned, RetrainPruned
from bdtune.effects import ModelOnly
from bdtune.engine.node import Node
from bdtune.errors import Problem
from bdtune.knobs import Rate  # noqa: TC001  pydantic reads it
from bdtune.networks.residual import Residual, ResidualTeacher
from bdtune.plugins import registry
from bdtune.plugins.all_samples import AllSamples
from bdtune.poisoning.patch import PatchAttack
from bdtune.poisoning.surrogate import Surrogate
from bdtune.poisoning.train_sources import Attacker, FitLabels, FitRows, FitSet

if TYPE_CHECKING:
    from bdtune.engine.input_source import Source
    from bdtune.plugins.attack import Attack, TestLabels
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model


class PruningAware(PatchAttack):
    """The model of four stages: clean training, pruning, retraining on poison, restoring."""

    clean: Annotated[Surrogate, ModelOnly] = Surrogate(epochs=200, schedule="multistep")
    """Training on clean images, the first stage; one for all seeds and rates."""
    validation: Annotated[float, ModelOnly] = Field(0.05, gt=0, lt=1)
    """Share of the clean images that is not trained on, to see activations and accuracy on."""
    max_drop: Annotated[Rate, ModelOnly] = 0.005
    """Clean accuracy that pruning may cost, as a fraction, the second stage."""
    retrain: Annotated[RetrainPruned, ModelOnly] = RetrainPruned()
    """Training of the pruned network on the poisoned set, the third stage."""
    slack: Annotated[float, ModelOnly] = Field(0.1, ge=0)
    """How far below zero restored channels stay, in units of their norm's scale, the fourth stage."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "finepruning/pruning_aware": {"pattern": "square", "rate": 0.1, "target": 0},
    }

    @property
    def hands_over(self) -> bool:
        return True

    def backdoored_model(self, fit: FitSet, model: Source) -> Node:
        data = FitSet(dataset=fit.dataset, root=fit.root, stream=fit.stream, **fit.reserved())
        attacker = Attacker(data, self.trigger_seed, fit.numerics)
        rows: dict[str, Source] = {"rows": fit.read_as(FitRows)} if fit.holdout else {}
        train, seen = (
            attacker.node(CleanPart(part=part, fraction=self.validation), data=attacker.labels, **rows)
            for part in ("train", "validation")
        )
        clean = attacker.node(self.clean, data=data, subset=train, model=model)
        prune = PruneDormant(max_drop=self.max_drop)
        pruned = attacker.node(prune, data=data, subset=seen, model=model, classifier=clean)
        trial = Attacker(data, fit.attack_seed, fit.numerics)
        every = Node(AllSamples(), {"data": fit.read_as(FitLabels)}, fit.attack_seed, fit.numerics)
        retrained = trial.node(self.retrain, data=fit, subset=every, model=model, init=pruned)
        before = {"retrained": retrained, "pruned": pruned, "original": clean}
        return trial.node(RestorePruned(slack=self.slack), data=fit, model=model, **before)

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        if isinstance(model, Residual | ResidualTeacher):
            return []
        expected = "expected a residual network, as attack 'pruning_aware' prunes inside its last block"
        hint = "Such as resnet18, preactresnet18 or resnet_s"
        return [Problem("model", expected, got=f"'{model.plugin_name()}'", hint=hint)]

    def for_dataset(self, dataset: Dataset) -> Attack:
        """Return BadNets with the same knobs: the images are the same, and are shared."""
        return self.to(registry.load("attacks", "badnets"))
