"""Triggers of all classes at once: every parameter has a leading axis over the classes.

Shape letters: K classes, k classes of a chunk, B images of a batch, H height, W width, C channels.

Classes share the batches and the network's passes: k classes and a batch of B make one pass over k x B
images, without those of a class itself where they do not count. Gradients and Adam's steps are elementwise in
the class, so that each trigger is what it would be if it were fitted alone, but for the rounding of sums that
depend on the size of a pass. The network's weights are frozen: batch norm is folded into its convolutions.
Triggers are fitted in the precision of the trial's trainings, and judged in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from bdtune.defenses.neural_cleanse.costs import Costs
from bdtune.poisoning.crafting import frozen_network
from bdtune.training import loop, session
from bdtune.training.augment import to_input
from bdtune.training.batches import DeviceSet, images_of, in_order
from bdtune.training.folded import folded
from bdtune.training.parts import held
from bdtune.training.weights import as_array, as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from bdtune.defenses.neural_cleanse.inversion import Inversion
    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model

PIXELS = 256 * 32 * 32
"""Of all images in a pass, which bounds the memory; their gradients need several times that of a forward."""
MEASURED = 32
"""Images of a class in a pass that measures how well its trigger works."""
EDGE = 1e-6
"""Distance that a uniform start keeps from 0 and 1, where the inverse of tanh is infinite."""


def squashed(free: Tensor) -> Tensor:
    """Return values in [0, 1] for free ones."""
    return (free.tanh() + 1) / 2


def free_start(kind: str, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the free values that one class starts from: mask [H, W, 1], pattern [H, W, C]."""
    height, width, channels = shape
    size = (height, width, 1 + channels)
    if kind == "uniform":
        drawn = torch.rand(size, generator=generator).clamp(EDGE, 1 - EDGE)
        value = (2 * drawn - 1).atanh()
    else:
        value = torch.randn(size, generator=generator) if kind == "normal" else torch.ones(size)
    return value[..., :1], value[..., 1:]


class Inverter:
    """The triggers of one `Inversion`, stepped together; a class that has stopped is in no pass."""

    def __init__(
        self, knobs: Inversion, ctx: Context, data: ImageSet, model: Model, classifier: Artefact
    ) -> None:
        self.knobs, self.ctx, self.data = knobs, ctx, data
        self.classes, self.device = data.num_classes, session.device_of(ctx.numerics)
        self.network = folded(frozen_network(model, data, classifier, ctx.numerics))
        self.images = DeviceSet(data, self.device)
        self.chunk = max(1, images_of(PIXELS, data) // knobs.batch_size)
        starts = [
            free_start(knobs.start, data.image_shape, session.generator(ctx.seed, "start", label))
            for label in range(self.classes)
        ]
        mask, pattern = (torch.stack(parts).to(self.device) for parts in zip(*starts, strict=True))
        self.free = torch.nn.ParameterDict({"mask": mask, "pattern": pattern})
        self.optimizer = loop.make_optimizer(self.free.values(), "adam", knobs.lr, betas=knobs.betas)
        self.costs = Costs(knobs, self.classes).to(self.device)
        self.best = {"mask": squashed(mask), "pattern": squashed(pattern)}
        size = (knobs.epochs, self.classes)
        self.trace = {name: torch.zeros(size, device=self.device) for name in ("norm", "success", "cost")}
        self.modules = {
            "free": self.free,
            "costs": self.costs,
            "best": held(**self.best),
            "trace": held(**self.trace),
        }

    def epoch(self, done: int) -> dict[str, float]:
        """Pass once over the images for each class at work, then judge its trigger."""
        active = self.costs.active.nonzero()[:, 0]
        hits, counted = torch.zeros(2, self.classes, dtype=torch.float64, device=self.device)
        meter = loop.Meter(f"{self.knobs.name}: epoch {done + 1}", self.device)
        for batch in self.images.shuffled(self.knobs.batch_size, self.ctx.seed, done):
            self.optimizer.zero_grad(set_to_none=False)
            planes = to_input(batch.images, tuple(self.data.mean), tuple(self.data.std), torch.float32)
            x_BHWC = planes.permute(0, 2, 3, 1)
            for classes in active.split(self.chunk):
                loss, hit, seen = self._gradient(x_BHWC, batch.labels, classes)
                hits[classes] += hit
                counted[classes] += seen
                meter.add(loss.mean(), len(classes))
            self.optimizer.step()
        return self._judged(done, active, hits / counted.clamp(min=1), meter.means()[0])

    def _gradient(self, x_BHWC: Tensor, labels_B: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill in the gradients of k triggers; return their losses, hits and counted images, [k] each."""
        leaves = [value.detach()[classes].requires_grad_() for value in self.free.values()]
        mask, pattern = map(squashed, leaves)
        counted = self._counted(labels_B, classes)
        logits = self._logits(stamped(x_BHWC, mask, normalised(pattern, self.data)), counted)
        goals = classes.repeat_interleave(len(x_BHWC))
        weight = counted / counted.sum(1, keepdim=True).clamp(min=1)
        missed = (cross_entropy(logits, goals, reduction="none").view_as(weight) * weight).sum(1)
        loss = missed + self.costs.cost[classes].float() * self._size(mask)
        for value, gradient in zip(self.free.values(), torch.autograd.grad(loss.sum(), leaves), strict=True):
            if value.grad is None:
                value.grad = torch.zeros_like(value)
            value.grad.index_copy_(0, classes, gradient)
        hit = (logits.argmax(1) == goals).view_as(counted) & counted
        return loss.detach(), hit.sum(1), counted.sum(1)

    def _counted(self, labels_B: Tensor, classes: Tensor) -> Tensor:
        """Return bool [k, B]: the images that a class's trigger is fitted to."""
        others = labels_B != classes[:, None]
        return others if self.knobs.images == "others" else torch.ones_like(others)

    def _logits(self, seen: Tensor, counted: Tensor) -> Tensor:
        """Return logits [k B, K] of images [k B, H, W, C]; those that do not count pass no network: 0."""
        rows = counted.flatten().nonzero()[:, 0]
        with session.autocast(self.ctx.numerics):
            logits = self.network(seen.index_select(0, rows).permute(0, 3, 1, 2)).float()
        return logits.new_zeros(len(seen), self.classes).index_copy(0, rows, logits)

    def _size(self, mask: Tensor) -> Tensor:
        """Return the norm [k] that is minimised."""
        return mask.flatten(1).norm(p=1 if self.knobs.norm == "l1" else 2, dim=1)

    def _judged(self, done: int, active: Tensor, success: Tensor, loss: float) -> dict[str, float]:
        mask, pattern = (squashed(value.detach()) for value in self.free.values())
        norm = self._size(mask).double()
        better = self._working(self.costs.candidates(success, norm), mask, pattern)
        for kept, now in zip(self.best.values(), (mask, pattern), strict=True):
            kept[better] = now[better]
        self.costs.update(success, norm, better)
        working = torch.zeros(self.classes, dtype=torch.bool, device=self.device)
        working[active] = True
        for name, value in (("norm", norm), ("success", success), ("cost", self.costs.cost)):
            rows = self.trace[name]
            rows[done] = torch.where(working, value.float(), rows[max(0, done - 1)])
        row = {
            "loss": loss,
            "success": float(success[active].mean()),
            "norm": float(norm[active].mean()),
            "classes": float(len(active)),
        }
        return row if bool(self.costs.active.any()) else {**row, "stopped": 1.0}

    def _working(self, candidates: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        """Return bool [K]: the candidates whose trigger works as it is, after the epoch's last step."""
        labels = candidates.nonzero()[:, 0]
        triggers = labels, mask[labels], pattern[labels]
        found = successes(self.network, self.data, *triggers, numerics=self.ctx.numerics)
        works = torch.zeros_like(candidates)
        works[labels] = found >= self.knobs.success_threshold
        return works

    def result(self, done: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the kept triggers with what became of them."""
        reached = self.costs.reached
        mask, pattern = (
            torch.where(reached[:, None, None, None], kept, squashed(value.detach()))
            for kept, value in zip(self.best.values(), self.free.values(), strict=True)
        )
        arrays = {"mask": as_array(mask[..., 0]), "pattern": as_array(pattern)}
        labels, numerics = torch.arange(self.classes, device=self.device), self.ctx.numerics
        found = successes(self.network, self.data, labels, mask, pattern, numerics=numerics)
        arrays["success"] = as_array(found)
        arrays["norm"] = as_array(mask.double().sum((1, 2, 3)))
        arrays |= {name: as_array(getattr(self.costs, name)) for name in ("reached", "cost", "epochs")}
        arrays |= {f"trace.{name}": as_array(rows[:done]) for name, rows in self.trace.items()}
        return arrays, {"epochs": done}


def normalised(pattern: Tensor, data: ImageSet) -> Tensor:
    """Return pixels [..., C] in [0, 1] as a network sees them."""
    mean, std = (torch.tensor(values, device=pattern.device) for values in (data.mean, data.std))
    return (pattern - mean) / std


def stamped(x_BHWC: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return each image with each of k triggers [k B, H, W, C], normalised.

    Of normalised images and patterns [k, H, W, C]: mixing and normalising may change places.
    """
    return torch.lerp(x_BHWC[None], pattern[:, None], mask[:, None]).flatten(0, 1)


def successes(
    network: Callable[[Tensor], Tensor],
    data: ImageSet,
    labels_F: Tensor,
    mask: Tensor,
    pattern: Tensor,
    *,
    numerics: Numerics,
) -> Tensor:
    """Return float64 [F]: the share of images of other classes that F triggers move to theirs.

    Masks are [F, H, W, 1], patterns [F, H, W, C], in [0, 1]; the network is in evaluation mode.
    """
    device, count = labels_F.device, len(labels_F)
    hits, counted = torch.zeros(2, count, dtype=torch.float64, device=device)
    chunk = max(1, images_of(PIXELS, data) // MEASURED)
    with torch.no_grad(), session.deterministic(numerics):
        for ids, images in in_order(data, MEASURED) if count else ():
            planes = to_input(as_tensor(images).to(device), tuple(data.mean), tuple(data.std), torch.float32)
            true = as_tensor(data.labels[ids]).to(device)
            for some in torch.arange(count, device=device).split(chunk):
                seen = stamped(planes.permute(0, 2, 3, 1), mask[some], normalised(pattern[some], data))
                goals, others = labels_F[some, None], true != labels_F[some, None]
                moved = network(seen.permute(0, 3, 1, 2)).argmax(1).view_as(others) == goals
                hits[some] += (moved & others).sum(1)
                counted[some] += others.sum(1)
    return hits / counted.clamp(min=1)
