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
    import torch

    from bdtune.engine.stage import Inputs
    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch


class Weighted(Supervised):
    """Minimise the mean over each batch of w_i times the cross-entropy of sample i.

    Inputs: those of `Supervised`, and weights (artefact with weights float32 [N], by sample id). The curve
    has besides `ascent_loss`, the mean cross-entropy of samples of negative weight, where there are any.
    Cross-entropy has no upper bound: a strong ascent ends in `Diverged`, unless `loss_cap` stops it before.
    """

    name: ClassVar[str] = "weighted"

    loss_cap: float | None = Field(None, gt=0)
    """Cross-entropy from which on a sample of negative weight is not pushed any more; None: no limit."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of a step's gradient over all weights; None: no limit."""

    def batch_loss(self, logits: torch.Tensor, batch: Batch, inputs: Inputs) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, batch.labels, reduction="none")
        sample = inputs["sample"]
        weights = sample.weights[batch.rows]
        pushed = weights < 0
        sample.ascent[0] += (losses.detach() * pushed).sum()
        sample.ascent[1] += pushed.sum()
        if self.loss_cap is not None:
            losses = losses.where(~pushed, losses.clamp(max=self.loss_cap))
        return (weights * losses).mean()

    def new_optimizer(self, network: Network) -> torch.optim.Optimizer:
        optimizer = super().new_optimizer(network)
        limit = self.clip_norm
        if limit is not None:
            from torch.nn.utils import clip_grad_norm_

            def clip(*_step: object) -> None:
                clip_grad_norm_(network.parameters(), limit)

            optimizer.register_step_pre_hook(clip)
        return optimizer

    def companions(self, inputs: Inputs, device: torch.device) -> dict[str, torch.nn.Module]:
        import torch

        from bdtune.training.weights import as_tensor

        sample = torch.nn.Module()
        weights = inputs["weights"].arrays["weights"][inputs["subset"].arrays["ids"]]
        sample.register_buffer("weights", as_tensor(weights).to(device), persistent=False)
        sample.register_buffer("ascent", torch.zeros(2, dtype=torch.float64, device=device), persistent=False)
        return {**super().companions(inputs, device), "sample": sample}

    def before_epoch(self, done: int, network: Network, inputs: Inputs) -> None:
        super().before_epoch(done, network, inputs)
        inputs["sample"].ascent.zero_()

    def after_epoch(self, row: dict[str, float], network: Network, inputs: Inputs) -> dict[str, float]:
        total, count = inputs["sample"].ascent.tolist()
        return super().after_epoch({**row, "ascent_loss": total / count} if count else row, network, inputs)
