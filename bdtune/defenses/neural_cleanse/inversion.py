"""The inversion of one trigger per class: the smallest mask with which images of other classes become it.

Source: "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (Wang et al., IEEE
S&P 2019), section IV, and the authors' released code for the cost schedule and the early stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.knobs import Rate
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training


class Inversion(TorchStage):
    """Fit a mask m [H, W] and a pattern p [H, W, C] to each of K classes; the classifier stays as it is.

    Minimises CE(f((1 - m) x + m p), class) + cost |m| over clean images x, in the precision of a training. An
    epoch is a step of the cost schedule: the cost rises while the trigger works and falls while it does not.
    Of the epochs in which it worked, in float32 too, that of the smallest mask is kept; a class stops by
    itself.
    Inputs: data (ImageSet, clean images with true labels), model (Model), classifier (weights).
    Arrays: mask float32 [K, H, W] and pattern float32 [K, H, W, C], pixels in [0, 1]; norm float64 [K], the
    masks' L1 norms; success float64 [K], the share of images of other classes that the trigger moves to the
    class; reached bool [K], whether a trigger reached `success_threshold` (if not, the last one is kept);
    cost float64 [K] at the end; epochs int64 [K]; trace.norm, trace.success, trace.cost float32 [epochs, K].
    Raises `Diverged` on a non-finite loss.
    """

    name: ClassVar[str] = "inversion"
    version: ClassVar[int] = 2  # 1 computed in float32, with batch norm apart from the convolutions

    epochs: int = Field(80, ge=1)
    """Passes over the clean images, at most."""
    batch_size: int = Field(32, ge=2)
    """Images per step; each class sees all of them."""
    lr: float = Field(0.1, gt=0)
    """Adam's constant rate."""
    betas: tuple[Rate, Rate] = (0.5, 0.9)
    """Adam's decay rates."""
    norm: Literal["l1", "l2"] = "l1"
    """Norm of the mask that is minimised; the outlier test reads the L1 norm either way."""
    start: Literal["uniform", "normal", "ones"] = "uniform"
    """Mask and pattern at first: uniform in [0, 1], or tanh of a normal draw, or of 1 (a mask of 0.88)."""
    images: Literal["others", "all"] = "others"
    """others: without images of the class itself, which need no trigger; all: as released codes do."""
    start_cost: Literal["zero", "initial"] = "zero"
    """zero: no cost until the trigger has worked `patience` times; initial: `initial_cost` at once."""
    initial_cost: float = Field(1e-3, gt=0)
    """First cost above zero."""
    cost_multiplier: float = Field(2.0, gt=1)
    """The cost rises by this factor, and falls by its power of 1.5."""
    patience: int = Field(5, ge=1)
    """Epochs in a row after which the cost changes."""
    success_threshold: Rate = 0.99
    """Share of images that must be moved to the class for the trigger to work."""
    early_stop: bool = True
    """Whether a class stops once its cost has been raised and lowered and its norm falls no more."""
    stop_threshold: Annotated[float, OnlyIf(early_stop=True)] = Field(1.0, gt=0, le=1)
    """A norm that is not below this share of the best one is no progress."""
    stop_patience: Annotated[int, OnlyIf(early_stop=True)] = Field(25, ge=1)
    """Epochs without progress after which a class stops."""

    def training(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Training:
        from bdtune.defenses.neural_cleanse.inverter import Inverter
        from bdtune.training.loop import Training

        inverter = Inverter(self, ctx, data, model, classifier)
        optimizers = {"triggers": inverter.optimizer}
        return Training(self.name, self.epochs, inverter.modules, optimizers, inverter.epoch, inverter.result)
