"""The stage that trains the pattern generator of the input-aware attack with its classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.attacks.dynamic.stages import Betas, GeneratorTraining, PatternRecipe, new_generator, rescaled

if TYPE_CHECKING:
    import torch

    from bdtune.attacks.dynamic.networks import Generator
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.training.loop import Training


@dataclass(frozen=True)
class _Step:
    """One step's loss, from batches of pixels [B, C, H, W]."""

    masks: Generator
    patterns: Generator
    classifier: Network
    data: ImageSet
    recipe: PatternRecipe
    target: int | None

    def __call__(
        self, planes: torch.Tensor, labels: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and float64 [6]: hits and numbers of poison, cross and clean rows."""
        import torch
        from torch.nn.functional import cross_entropy

        from bdtune.attacks.dynamic import networks as iab
        from bdtune.poisoning.crafting import normalised

        poison, cross = self._cut(len(planes))
        own, other = normalised(planes[:poison], self.data), normalised(others[poison:cross], self.data)
        own_patterns, other_patterns = self.patterns(own), self.patterns(other)
        with torch.no_grad():
            own_masks, other_masks = iab.mask_of(self.masks, own), iab.mask_of(self.masks, other)
        triggered = iab.stamped(planes[:poison], own_masks, own_patterns)
        crossed = iab.stamped(planes[poison:cross], other_masks, other_patterns)
        goals = torch.cat([self._wanted(labels[:poison]), labels[poison:]])
        logits = self.classifier(normalised(torch.cat([triggered, crossed, planes[cross:]]), self.data))
        count = min(poison, cross - poison)
        made, made_other = (normalised(each[:count], self.data) for each in (own_patterns, other_patterns))
        unlike = iab.diversity(own[:count], other[:count], made, made_other)
        right = (logits.argmax(1) == goals).double()
        parts = (right[:poison], right[poison:cross], right[cross:])
        tally = torch.stack([part.sum() for part in parts] + [part.new_tensor(len(part)) for part in parts])
        return cross_entropy(logits, goals) + self.recipe.diversity_weight * unlike, tally

    def _wanted(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the classes [B] that the triggers of images of true classes [B] mean."""
        import torch

        if self.target is None:
            return (labels + 1) % self.data.num_classes
        return torch.full_like(labels, self.target)

    def _cut(self, rows: int) -> tuple[int, int]:
        """Return where poison rows end and where cross rows end."""
        poison = max(1, int(self.recipe.poison_share * rows))
        return poison, poison + max(1, int(self.recipe.cross_share * rows))


class PatternTraining(GeneratorTraining):
    """Train the generator of patterns together with a classifier that learns to obey them.

    Inputs: data (ImageSet, true labels), masks (artefact of `MaskTraining`), model (Model of the classifier).
    Result: weights `pattern.<name>`; the classifier is dropped. Info: in the last epoch, the share of poison
    rows taken for the target (asr), of cross rows and of clean rows classified right (cross_acc, acc).
    Loss: cross-entropy of the mixed batch + diversity_weight mean(rms(x1 - x2) / (rms(p1 - p2) + 1e-7)), with
    images x and patterns p both normalised, as in the authors' code.
    """

    name: ClassVar[str] = "iab_pattern"
    version: ClassVar[int] = 2  # 1 compared patterns as they are, not normalised

    recipe: PatternRecipe = PatternRecipe()
    """The training."""
    target: int | None = Field(0, ge=0)
    """Class that the triggers mean; None: for each class the next one (mod K)."""

    def length(self) -> int:
        return self.recipe.epochs

    def training(self, ctx: Context, *, data: ImageSet, masks: Artefact, model: Model) -> Training:
        import torch

        from bdtune.training import loop, session, weights

        data, recipe = rescaled(data, self.bench_scale), self.recipe
        device = session.device_of(ctx.numerics)
        masking = new_generator(self, data, 1, ctx)
        weights.load_module(masking, masks.arrays, "mask.")
        masking.eval().requires_grad_(False)
        patterns = new_generator(self, data, data.image_shape[2], ctx)
        classifier = weights.new_network(model, data, ctx.seed, ctx.numerics)
        rule: dict[str, Any] = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        sgd = loop.make_optimizer(classifier.parameters(), "sgd", recipe.lr, **rule)
        adam = loop.make_optimizer(patterns.parameters(), "adam", recipe.lr, betas=Betas)
        step = _Step(masking, patterns, classifier, data, recipe, self.target)

        def epoch(done: int) -> dict[str, float]:
            for optimizer, at in ((sgd, recipe.classifier_milestones), (adam, recipe.milestones)):
                lr = loop.learning_rate("multistep", recipe.lr, done, recipe.epochs, milestones=at)
                loop.set_learning_rate(optimizer, lr)
            patterns.train()
            classifier.train()
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {recipe.epochs}", device)
            tally = torch.zeros(6, dtype=torch.float64, device=device)
            for planes, labels, others in self.pairs(data, recipe, ctx, done):
                loss, hits = step(planes, labels, others)
                sgd.zero_grad()
                if not recipe.accumulate_g_grad:
                    adam.zero_grad()
                loss.backward()
                sgd.step()
                adam.step()
                meter.add(loss, len(planes))
                tally += hits
            asr, cross_acc, acc = (tally[:3] / tally[3:].clamp_min(1)).tolist()
            return {"loss": meter.means()[0], "acc": acc, "asr": asr, "cross_acc": cross_acc}

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            last = training.curve[-1] if training.curve else {}
            reached = {name: last.get(name, 0.0) for name in ("acc", "asr", "cross_acc")}
            return weights.module_arrays(patterns, "pattern."), {"epochs": done, **reached}

        modules = {"pattern": patterns, "classifier": classifier}
        optimizers = {"classifier": sgd, "pattern": adam}
        training = loop.Training(self.name, recipe.epochs, modules, optimizers, epoch, result)
        return training
