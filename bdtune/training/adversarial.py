"""Adversarial training: a classifier trained on the worst images of an L-infinity ball around its own.

Source: "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al., 2018), section 2, for
the attack and the training; "Adversarial Machine Learning at Scale" (Kurakin et al., 2017), section 3, for
iterated FGSM, which is the same without a random start. The recipe is that of A-ABL (Zhao and Wressnegger,
2024), its open ends filled as in "Overfitting in adversarially robust deep learning" (Rice et al., 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bdtune.knobs import Knobs
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    import torch

    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit, Part, Preparation


def _of_fraction(value: Any) -> Any:
    """Turn the text "8/255" into a number; anything else is left to be judged by its type."""
    above, slash, below = value.partition("/") if isinstance(value, str) else ("", "", "")
    try:
        return float(above) / float(below) if slash else value
    except (ValueError, ZeroDivisionError):
        return value


Pixels = Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(_of_fraction)]
"""A length in pixel space, where black is 0 and white is 1; may be written as a fraction, `8/255`."""


class PGD(Knobs):
    """Projected gradient ascent on the cross-entropy, in an L-infinity ball cut off at black and white."""

    eps: Pixels = 8 / 255
    """Radius of the ball; pixels lie in [0, 1], and `8/255` is understood."""
    step: Pixels = 2 / 255
    """Length of a step."""
    steps: int = Field(10, ge=1)
    """Gradient steps, each one forward and one backward pass."""
    random_start: bool = True
    """Start anywhere in the ball; without it the first step leaves from the image itself (iterated FGSM)."""


class AdversarialTraining(Supervised, defaults={"epochs": 100, "milestones": (0.5, 0.75, 0.9)}):
    """Train on each batch's adversarial images, made with the network as it is then (PGD-AT).

    Inputs are those of `Supervised`, and so is the result, with each sample's loss by epoch (`LossTrace`);
    the curve's loss and acc are of adversarial images. With the subset of a `ValidationSplit`, also the
    weights of the epoch that is most robust on its validation part (`BestRobustEpoch`). Costs `pgd.steps` + 1
    times a natural training. The ball is around the augmented image, in pixels: the attack normalises inside.
    Weights get no gradients from it.
    Departures: with bf16 numerics the attack's passes are bf16 too, and it finds slightly weaker images than
    in float32, in which A-ABL's split and robust accuracy are measured whatever the numerics; that the attack
    runs in evaluation mode is this project's choice (`attack_bn`); the last epoch's weights are the result,
    none chosen by validation.
    """

    name: ClassVar[str] = "adversarial_training"
    version: ClassVar[int] = 2  # 1 kept no sample's losses

    pgd: PGD = PGD()
    """The attack that the classifier is trained against."""
    attack_bn: Literal["eval", "train"] = "eval"
    """Batch norm while attacking. train: by the batch's statistics, which moves the running ones too."""

    def passes_per_epoch(self) -> float:
        return self.pgd.steps + 1.0

    def natural(self) -> Supervised:
        """Return the same training without the attack."""
        return self.to(Supervised)

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training.parts import BestRobustEpoch, LossTrace

        trace = LossTrace(fit)
        fit.loss, fit.prepare = trace.loss, self._adversary(fit)
        validated = "validation_ids" in fit.subset.arrays
        return [trace, BestRobustEpoch(fit, self.pgd)] if validated else [trace]

    def _adversary(self, fit: Fit) -> Preparation:
        """Return what makes adversarial images of a batch, with the network as it is then."""
        from bdtune.training import pgd, session

        pixels = pgd.pixel_augmentation(self.augment, fit.data)
        attack = pgd.Ascent(fit.network, self.pgd, fit.data, fit.ctx.numerics, self.attack_bn)
        dtype = session.dtype_of(fit.ctx.numerics)

        def prepare(batch: Batch, draws: torch.Generator) -> torch.Tensor:
            return attack.normalise(attack(pixels(batch.images, draws), batch.labels, draws), dtype)

        return prepare
