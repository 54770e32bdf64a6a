"""Evaluate: what a classifier does on clean, on triggered and on attacked test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from bdtune import metrics
from bdtune.effects import OnlyIf
from bdtune.engine.stage import Artefact, Context, Inputs, Stage
from bdtune.training.adversarial import PGD

if TYPE_CHECKING:
    import numpy as np

    from bdtune.plugins.data import ImageSet


class Evaluate(Stage):
    """Count how often a classifier is right, and how often the trigger wins.

    Everything is computed in float32, on every device: see `predict_logits`.
    Inputs: classifier (artefact with weights), model (Model), clean (ImageSet), and optionally triggered
    (TriggeredSet), cover (ImageSet: test images stamped as cover rows, true labels) and select (ImageSet
    held out of the training set, observed labels).
    Result: no arrays; info holds acc, asr, asr_all, ra, noise_acc (on cover), robust_acc and select_acc,
    fractions in [0, 1], as far as there are images to count them on, and n_clean, n_triggered. asr_all is
    left out where some of its images are missing (`TriggeredSet.complete`). robust_acc is
    the accuracy on clean images under an untargeted attack on the classifier itself: A-ABL's "RA", where
    BackdoorBench's is `ra`.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2  # 1 computed in the precision of the training, and asr_all of incomplete sets
    kind: ClassVar = "train"

    robust: Literal["none", "pgd"] = "none"
    """pgd: count robust_acc too; costs `pgd.steps` passes over the clean test images, forward and back."""
    pgd: Annotated[PGD, OnlyIf(robust="pgd")] = PGD()
    """The attack of robust_acc."""

    def without_attack(self) -> Evaluate:
        """Return the evaluation without its costly part, to judge a training that is under way."""
        return self.model_copy(update={"robust": "none"})

    def run(self, inputs: Inputs, ctx: Context) -> Artefact:
        from bdtune.training.predict import predict_logits, trained_network

        clean, triggered = inputs["clean"], inputs.get("triggered")
        network = trained_network(inputs["model"], clean, inputs["classifier"], ctx.numerics)

        def predicted(data: ImageSet) -> np.ndarray:
            return predict_logits(network, data, ctx.numerics).argmax(1)

        found = {"acc": metrics.accuracy(predicted(clean), clean.labels)}
        if triggered is not None:
            classes, truth, goals = predicted(triggered), triggered.labels, triggered.goals
            found["asr"] = metrics.attack_success(classes, truth, goals)
            if triggered.complete:
                found["asr_all"] = metrics.attack_success(classes, truth, goals, every_image=True)
            found["ra"] = metrics.robust_classification(classes, truth, goals)
        for name, given in (("noise_acc", "cover"), ("select_acc", "select")):
            if (data := inputs.get(given)) is not None:
                found[name] = metrics.accuracy(predicted(data), data.labels)
        if self.robust == "pgd":
            from bdtune.training.pgd import robust_predictions

            attacked = robust_predictions(network, clean, self.pgd, ctx.seed, ctx.numerics)
            found["robust_acc"] = metrics.accuracy(attacked, clean.labels)
        counts = {"n_clean": len(clean), "n_triggered": 0 if triggered is None else len(triggered)}
        return Artefact(info={**metrics.defined(found), **counts})
