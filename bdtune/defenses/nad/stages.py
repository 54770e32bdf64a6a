"""NAD's trainings: a teacher that is tuned on clean images, and a student that attends to what it attends to.

Source: "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks" (Li et al., ICLR
2021), arXiv:2101.05930, section 3, and the authors' released code for rates, weights and the mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.training.fine_tune import FineTune
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training

RECIPE = {
    "lr": 0.1, "schedule": "multistep", "batch_size": 64, "weight_decay": 1e-4, "nesterov": True,
    "augment": "auto_cutout",
}  # fmt: skip
"""Of both trainings: a rate of 0.1 for two epochs, then 0.01."""
SAMPLES = 2000
"""Training images that are looked at, at most."""


class Teacher(FineTune, defaults={**RECIPE, "epochs": 10, "milestones": (0.2,)}):
    """Tune the undefended classifier on the clean images; inputs and result are those of `FineTune`."""

    name: ClassVar[str] = "nad_teacher"
    classifier: ClassVar[bool] = False


class Distil(Supervised, defaults={**RECIPE, "epochs": 20, "milestones": (0.1,)}):
    """Tune the undefended classifier, its attention being drawn to the teacher's.

    Inputs: those of `Supervised`, init and teacher (artefacts with weights). Minimised is the cross-entropy
    plus the sum over groups of beta_l D(A_l, A_l of the teacher), A being |F|^p summed over channels, of norm
    1. The teacher is in evaluation mode. Result as there; info has the layers that end the groups, and their
    positions. Raises `UserError` if `beta` has more numbers than the network has groups.
    """

    name: ClassVar[str] = "nad_distil"
    few_samples: ClassVar[bool] = True

    beta: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (500.0, 1000.0, 1000.0)
    """Weight of each of the last groups of layers, the deepest last; all 0: plain fine-tuning."""
    power: float = Field(2.0, gt=0)
    """p of the attention."""
    distance: Literal["mean", "sum", "norm"] = "mean"
    """Over positions: mean of squares (the code), their sum, or its root (the paper)."""

    def passes_per_epoch(self) -> float:
        return 4 / 3  # there and back, and once there through the teacher

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact,
        teacher: Artefact,
    ) -> Training | Artefact:
        from bdtune.defenses.nad.attention import Distillation, groups_of
        from bdtune.training.augment import Augmentation
        from bdtune.training.fit import Fit
        from bdtune.training.predict import trained_network
        from bdtune.training.weights import as_tensor

        fit = Fit(self, ctx, data, subset, model, init)
        shown = trained_network(model, data, teacher, ctx.numerics).requires_grad_(False)
        few = as_tensor(data.images_at(subset.arrays["ids"][:2])).to(fit.device)
        groups = groups_of(shown, Augmentation.of("none", data)(few), len(self.beta))
        part = Distillation(fit, shown, [*groups], self.beta, self.power, self.distance)
        training = fit.training(part)
        if isinstance(training, Artefact):
            return training
        result = training.result
        info = {"groups": [[name, positions] for name, positions in groups.items()]}
        training.result = lambda done: (result(done)[0], {**result(done)[1], **info})
        return training


class Answers(Stage):
    """Classify some training images with all three classifiers: for the diagnosis and the picture alone.

    Inputs: data (ImageSet, the poisoned set), model (Model), undefended, teacher and student (artefacts with
    weights). Arrays: ids int64 [m], drawn at random, at most 2,000; predictions int64 [3, m].
    """

    name: ClassVar[str] = "nad_answers"
    kind: ClassVar[Kind] = "train"

    def run(
        self,
        ctx: Context,
        *,
        data: ImageSet,
        model: Model,
        undefended: Artefact,
        teacher: Artefact,
        student: Artefact,
    ) -> Artefact:
        from bdtune.training.predict import predict_logits, trained_network

        ids = np.sort(np.random.default_rng(ctx.seed).permutation(len(data))[:SAMPLES])
        part = replace(data, images=data.images_at(ids), labels=data.labels[ids])
        predictions = []
        for weights in (undefended, teacher, student):
            network = trained_network(model, data, weights, ctx.numerics)
            predictions.append(predict_logits(network, part, ctx.numerics).argmax(1))
        return Artefact({"ids": ids, "predictions": np.stack(predictions).astype(np.int64)})
