"""FineTune: a trained classifier is trained on, on few images that are known to be clean.

Sources: "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization" (FT-SAM, Zhu et al.,
ICCV 2023); "Towards Stable Backdoor Purification through Feature Shift Tuning" (FST, Min et al., NeurIPS
2023), whose baselines are ft_init, lp and fe_tuning; BackdoorBench's configurations for recipe and schedule;
"Fine-tuning Is All You Need to Mitigate Backdoor Attacks" (super-fine-tuning, Sha et al., 2022) for the
triangular schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.fit import Fit, Part
    from bdtune.training.loop import Training

Mode = Literal["ft", "ft_sam", "ft_init", "fst", "fe_tuning", "lp"]
RESETS = ("ft_init", "fst", "fe_tuning")
"""Modes that draw the head anew."""
CYCLE = 20
"""Steps from one trough of the triangular schedule to the next."""
FIRST_CYCLES = 0.4
"""Fraction of the epochs in which the triangular schedule goes to its first peak."""


class FineTune(Supervised, defaults={"batch_size": 256, "lr": 0.01}):
    """Train a classifier on, on a labelled subset.

    Inputs: those of `Supervised`, with init (artefact with weights), and optionally validation (a subset,
    measured after each epoch). Result: weights `model.<name>`; the curve has besides distance (from `init`'s
    weights, relative to their norm), head_cosine (of the head's weights with theirs), validation_loss and
    validation_acc. Raises `Diverged` on a non-finite loss or weight.
    Departures: bias and weight of a new head have the bound 1 / sqrt(d) each, where the code of FST takes the
    bias's from the parameter before it; the head is projected in mode fst alone, where that
    code projects it in every mode; ft_sam restores weights from a copy, where its code subtracts the
    perturbation again, which rounds.
    """

    name: ClassVar[str] = "fine_tune"
    few_samples: ClassVar[bool] = True

    mode: Mode = "ft"
    """ft: all weights; ft_sam: against sharpness; ft_init: with a new head; fst: and pushed away from the
    old one; fe_tuning: all but a new head; lp: the head alone."""
    epochs: int = Field(100, ge=0)
    """Passes over the subset; 0 leaves the classifier as it is."""
    rho: Annotated[float, OnlyIf(mode="ft_sam")] = Field(2.0, ge=0)
    """Radius of ft_sam's perturbation; 0 is ft."""
    adaptive: Annotated[bool, OnlyIf(mode="ft_sam")] = True
    """Whether each weight is perturbed in proportion to its size (ASAM)."""
    smoothing: float = Field(0.0, ge=0, le=0.5)
    """Share of each label that is spread over the other classes."""
    alpha: Annotated[float, OnlyIf(mode="fst")] = Field(0.1, ge=0)
    """Weight of fst's inner product of the head with the old one."""
    reset: Annotated[bool, OnlyIf(mode=RESETS)] = True
    """Whether the head is drawn anew, in modes ft_init, fst and fe_tuning."""
    project: Annotated[bool, OnlyIf(mode="fst")] = True
    """Whether fst's head keeps the norm of the old one."""
    bn_mode: Literal["train", "frozen_stats", "eval"] = "train"
    """Batch norm: train; frozen_stats: normalise by the batch, keep the running values; eval: use these."""
    schedule: Literal["multistep", "cosine", "constant", "triangular"] = "cosine"  # type: ignore[assignment]
    """multistep: times `gamma` at each milestone; cosine: to zero; constant; triangular: from `lr` to a peak
    and back in 20 steps (super-fine-tuning)."""
    schedule_unit: Annotated[Literal["epoch", "batch"], OnlyIf(schedule="cosine")] = "epoch"
    """Whether the cosine goes on after each epoch, or after each batch as in BackdoorBench's FT-SAM."""
    horizon: Annotated[int | None, OnlyIf(schedule="cosine")] = Field(None, ge=1)
    """Units after which the cosine is at zero, from where it rises again; null: `epochs`."""
    peaks: Annotated[tuple[float, float], OnlyIf(schedule="triangular")] = (2.5, 0.05)
    """Rates that triangular rises to: in the first 40 % of the epochs, and after them."""

    def at(self, epochs: int) -> FineTune | None:
        """Return the same training with another length, where its rate depends on none."""
        fixed = self.schedule == "constant" or (self.schedule == "cosine" and self.horizon is not None)
        same = fixed and not self.classifier and epochs >= 1
        return self.model_copy(update={"epochs": epochs}) if same else None

    def passes_per_epoch(self) -> float:
        return 2.0 if self.mode == "ft_sam" and self.rho > 0 else 1.0

    @property
    def by_batch(self) -> bool:
        """Whether the rate changes after each batch."""
        return self.schedule == "triangular" or (self.schedule, self.schedule_unit) == ("cosine", "batch")

    def rate(self, done: int) -> float:
        from bdtune.training.loop import learning_rate

        if self.schedule == "cosine":
            return learning_rate("cosine", self.lr, done, self.horizon or self.epochs)
        return self.lr if self.schedule == "triangular" else super().rate(done)

    def rate_of_step(self, step: int, done: int) -> float:
        """Return the rate of a step, counted from 0, in the epoch after `done`."""
        if self.schedule != "triangular":
            return self.rate(step)
        peak = self.peaks[done >= FIRST_CYCLES * self.epochs]
        risen = 1 - abs(step % CYCLE - CYCLE / 2) / (CYCLE / 2)
        return self.lr + (peak - self.lr) * risen

    def training(  # type: ignore[override]  # it has one input more, and needs weights to start from
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact,
        validation: Artefact | None = None,
    ) -> Training | Artefact:
        from bdtune.training.fine_tune_parts import Progress
        from bdtune.training.fit import Fit

        fit = Fit(self, ctx, data, subset, model, init)
        return fit.training(*self.parts(fit), Progress(fit, init, validation))

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training import fine_tune_parts as own
        from bdtune.training.parts import BatchNormMode

        parts: list[Part] = [BatchNormMode(fit, self.bn_mode)]
        own.smooth_labels(fit, self.smoothing)
        own.freeze(fit.network, self.mode)
        if self.mode in RESETS and self.reset:
            own.new_head(fit.network, fit.ctx.seed)
        if self.mode == "ft_sam" and self.rho > 0:
            parts.append(own.Sharpness(fit, self.rho, adaptive=self.adaptive))
        if self.mode == "fst":
            own.shift_head(fit, self.alpha, project=self.project)
        if self.by_batch:
            parts.append(own.BatchRate(fit, self.rate_of_step))
        return parts
