"""Attention maps and how far they are apart, and the part that draws a student's towards a teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from bdtune.errors import Problem, UserError
from bdtune.training import session
from bdtune.training.fit import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit

SMALLEST = 1e-6
"""Added to the norm of a map, as in the authors' code."""

Distance = Literal["mean", "sum", "norm"]


def attention(maps: Tensor, power: float) -> Tensor:
    """Return the attention [N, H W] of feature maps [N, C, H, W]: the sum of |F_c|^p, of norm 1."""
    summed = maps.float().abs().pow(power).sum(1).flatten(1)
    return summed / (summed.norm(dim=1, keepdim=True) + SMALLEST)


def apart(one: Tensor, two: Tensor, distance: Distance) -> Tensor:
    """Return how far attentions [N, H W] are apart, the mean over images.

    mean: of squared differences over positions; sum: over positions; norm: its root.
    """
    if distance == "norm":
        return torch.linalg.vector_norm(one - two, dim=1).mean()
    squared = (one - two).square()
    return squared.mean() if distance == "mean" else squared.sum(1).mean()


def groups_of(network: Network, images: Tensor, count: int) -> dict[str, int]:
    """Return the last `count` layers that end a group of maps, with how many positions their maps have.

    Raises `UserError` of a network with fewer groups.
    """
    with torch.no_grad():
        _, maps = network.with_maps(images)
    if len(maps) < count:
        expected = f"expected one number for each group of feature maps, {len(maps)} at most for this network"
        raise UserError(Problem("defense.distil.beta", expected, str(count)))
    last = [*maps][len(maps) - count :]
    return {name: maps[name].shape[2] * maps[name].shape[3] for name in last}


class Watched:
    """Keeps what some layers of a network give in its last forward pass."""

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        self._found: dict[str, Tensor] = {}
        self._names = names
        for name in names:
            network.layers[name].register_forward_hook(
                lambda _layer, _inputs, out, name=name: self._found.update({name: out})
            )

    def maps(self) -> list[Tensor]:
        """Return the layers' maps [N, C, H, W], in their order."""
        return [self._found[name] for name in self._names]


class Distillation(Part):
    """Add to the loss how far the student's attention is from the teacher's, by group of layers.

    The curve gets `ce`, the cross-entropy alone, and `attention_<i>`, the distance of the i-th group.
    """

    def __init__(  # noqa: PLR0917  what the objective is made of
        self,
        fit: Fit,
        teacher: Network,
        names: Sequence[str],
        beta: Sequence[float],
        power: float,
        distance: Distance,
    ) -> None:
        self._fit, self._teacher, self._beta = fit, teacher, beta
        self._power, self._distance = power, distance
        self._student, self._shown = Watched(fit.network, names), Watched(teacher, names)
        self._prepare, self._loss = fit.prepare, fit.loss
        self._sums = torch.zeros(len(names) + 2, dtype=torch.float64, device=fit.device)
        fit.prepare, fit.loss = self._prepared, self._joint

    def _prepared(self, batch: Batch, draws: torch.Generator) -> Tensor:
        seen = self._prepare(batch, draws)
        with torch.no_grad(), session.autocast(self._fit.ctx.numerics):
            self._teacher(seen)
        return seen

    def _joint(self, logits: Tensor, batch: Batch) -> Tensor:
        plain = self._loss(logits, batch)
        pairs = zip(self._student.maps(), self._shown.maps(), strict=True)
        found = [
            apart(attention(own, self._power), attention(wanted, self._power), self._distance)
            for own, wanted in pairs
        ]
        values = torch.stack([plain, *found, torch.ones_like(plain)]).detach()
        self._sums += values * len(logits)
        return plain + sum(beta * each for beta, each in zip(self._beta, found, strict=True) if beta > 0)

    def before_epoch(self, done: int) -> None:
        self._sums.zero_()

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        *sums, count = self._sums.tolist()
        names = ["ce", *(f"attention_{place}" for place in range(1, len(sums)))]
        return {name: total / count for name, total in zip(names, sums, strict=True)}
