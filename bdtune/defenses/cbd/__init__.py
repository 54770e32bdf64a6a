"""CBD: a briefly trained model keeps the backdoor; a clean one is weighted by it and made independent of it.

Source: "Backdoor Defense via Deconfounded Representation Learning" (Zhang et al., CVPR 2023), with the
authors' released code for the estimator, the weights and all settings.

Departures: the discriminator is trained in the same pass as the clean model, on detached features, where the
code gives it a pass of its own that also moves the clean model's batch norm. Its layers are under spectral
normalisation, where the code divides weights and biases by the root of an estimate of their norm. Its rate
falls an epoch later than the code's, whose schedule steps before the first epoch. The code's configuration
leaves the mutual-information term out: that is `clean.terms: weights`. The paper's bound on I(Z; X), which
the code lacks, is `clean.bottleneck`, 0 by default. Batch, rate and milestones are the code's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdtune.defenses.cbd import report
from bdtune.defenses.cbd.training import Backdoored, Clean
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs


class CBD(Defense):
    """Causality-inspired backdoor defense."""

    evidence: ClassVar[tuple[str, ...]] = ("subset", "backdoored", "classifier")

    backdoored: Backdoored = Backdoored()
    """Training of the model that learns the backdoor, and little else."""
    clean: Clean = Clean()
    """Training of the classifier, weighted by that model and independent of it."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, model = given.fit, given.model
        subset = given.node(AllSamples(), data=given.labels)
        backdoored = given.node(self.backdoored, data=data, subset=subset, model=model)
        clean = given.node(self.clean, data=data, subset=subset, model=model, backdoored=backdoored)
        return {"subset": subset, "backdoored": backdoored, "classifier": clean}

    def baseline_training(self) -> Supervised:
        return self.clean.to(Supervised)

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)
