"""Weighted: a supervised training in which each sample's loss has a weight, negative ones included.

Source: gradient ascent on suspected samples as in LfD (ACM MM 2024), equations 5 and 6, and in ABL (Li et
al., NeurIPS 2021), equation 4. Departures: `loss_cap` and `clip_norm` are extras; both are off here and in
LfD, while ABL's joint form has a cap by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training


class Weighted(Supervised):
    """Minimise the mean over each batch of w_i times the cross-entropy of sample i.

    Inputs: those of `Supervised`, and weights (artefact with weights float32 [N], by sample id). The curve
    has besides `ascent_loss`, the mean cross-entropy of samples of negative weight, where there are any.
    Cross-entropy has no upper bound: a strong ascent ends in `Diverged`, unless `loss_cap` stops it before.
    """

    name: ClassVar[str] = "weighted"
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)

    loss_cap: float | None = Field(None, gt=0)
    """Cross-entropy from which on a sample of negative weight is not pushed any more; None: no limit."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of a step's gradient over all weights; None: no limit."""

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        weights: Artefact,
        init: Artefact | None = None,
    ) -> Training | Artefact:
        from bdtune.training.fit import Fit
        from bdtune.training.parts import SampleWeights, clip_gradients

        fit = Fit(self, ctx, data, subset, model, init)
        sample = SampleWeights(fit, weights.arrays["weights"], self.loss_cap)
        fit.loss = sample.loss
        clip_gradients(fit, self.clip_norm)
        return fit.training(sample)
