"""ABL: what a network learns first is isolated as poison, then unlearned by gradient ascent.

Source: "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (Li et al., NeurIPS 2021),
arXiv:2110.11571, section 3 (form `joint`), and the authors' released code (form `recover`).

Departures from the code: the isolation's batches are shuffled; losses are taken in float64 with ties by id,
where the code leaves ties to chance. Unlearning starts with fresh momentum, and all its 5 epochs train, where
the code's first one only tests. A batch whose loss has passed `unlearn.max_loss` gives no gradient, and an
epoch that costs more accuracy than `unlearn.max_drop` is taken back and ends it; null takes such a rule away.
The isolation has the paper's 20 epochs, where the code's configuration has 10, and pixels are standardised,
where the code leaves them in [0, 1] (`dataset.standardise: false`). Departures from the paper: the joint form
pushes no isolated sample whose loss has passed `joint.loss_cap`; null takes this away too.

The baseline is trained for the epochs of isolation and recovery (or of isolation and the joint form)
together, under the recipe of the later one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bdtune.defenses.abl import report
from bdtune.defenses.abl.stages import Isolated, Reading, Rest, Signs
from bdtune.defenses.abl.training import Isolate, Joint, Recover, Unlearn
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.losses import SampleLosses
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs


class ABL(Defense):
    """Anti-backdoor learning."""

    evidence: ClassVar[tuple[str, ...]] = ("isolate", "losses", "isolated")

    isolate: Isolate = Isolate()
    """Training in which the trigger is learned and the rest is not."""
    p: Rate = 0.01
    """Isolation rate: fraction of samples, those of lowest loss, that is taken for poison."""
    form: Literal["recover", "joint"] = "recover"
    """recover: descend on the rest, then ascend on the isolated (code); joint: both at once (paper)."""
    recover: Recover = Recover()
    """Training on the rest, in form recover."""
    recover_on: Literal["rest", "all"] = "rest"
    """Samples that it trains on: those not isolated (code), or all (LfD's account of ABL)."""
    unlearn: Unlearn = Unlearn()
    """Ascent on the isolated samples, in form recover."""
    joint: Joint = Joint()
    """Training of form joint."""
    reading: Reading = "means"
    """Form joint: means: the two parts' means weigh the same; batch: all samples do."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, labels, model = given.fit, given.labels, given.model
        everything = given.node(AllSamples(), data=labels)
        isolate = given.node(self.isolate, data=data, subset=everything, model=model)
        losses = given.node(SampleLosses(), data=data, model=model, classifier=isolate)
        isolated = given.node(Isolated(p=self.p), losses=losses, data=labels)
        chain = {"subset": everything, "isolate": isolate, "losses": losses, "isolated": isolated}
        if self.form == "joint":
            signs = given.node(Signs(reading=self.reading), isolated=isolated, data=labels)
            last = given.node(
                self.joint, data=data, subset=everything, model=model, init=isolate, weights=signs
            )
            return {**chain, "signs": signs, "classifier": last}
        rest = given.node(Rest(p=self.p), losses=losses, data=labels)
        seen = everything if self.recover_on == "all" else rest
        recover = given.node(self.recover, data=data, subset=seen, model=model, init=isolate)
        last = given.node(self.unlearn, data=data, subset=isolated, model=model, init=recover, rest=rest)
        return {**chain, "rest": rest, "recover": recover, "classifier": last}

    def baseline_training(self) -> Supervised:
        training = self.joint if self.form == "joint" else self.recover
        epochs = self.isolate.epochs + training.epochs  # the same weights go on from the isolation
        return training.to(Supervised, epochs=epochs)

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return artefacts["isolated"].arrays["ids"]

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)
