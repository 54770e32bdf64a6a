"""Normalizing flows side by side: one module whose every parameter has a leading axis over the flows.

Shape letters: K flows, B rows of a batch, D feature dimensions (halves of A and D - A), W hidden units.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix A (density) and E (architecture); actnorm after "Glow" (Kingma, Dhariwal, 2018), coupling after
"Density estimation using Real NVP" (Dinh, Sohl-Dickstein, Bengio, 2017).

Departures: actnorm's initial scale has a lower limit, as a feature that is constant within the first batch
would otherwise be stretched a million times; an odd D is split into D // 2 and the rest.

The gradient is written out: the net has two layers, and autograd's bookkeeping costs as much as
its arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bdtune.engine.key import sample_generator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

LOG_TWO_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class FlowShape:
    """The size of one flow."""

    features: int  # D, at least 2
    depth: int = 2
    width: int = 1  # hidden units per input of a coupling's net

    def halves(self, step: int) -> tuple[int, int]:
        """(A, D - A): how many dimensions pass unchanged in this step, and how many are transformed."""
        first = self.features // 2
        return (first, self.features - first) if step % 2 == 0 else (self.features - first, first)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one flow's parameters by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for step in range(self.depth):
            kept, moved = self.halves(step)
            hidden = self.width * kept
            shapes |= {
                f"{step}.shift": (self.features,),
                f"{step}.log_scale": (self.features,),
                f"{step}.w1": (kept, hidden),
                f"{step}.b1": (hidden,),
                f"{step}.w2": (hidden, 2 * moved),
                f"{step}.b2": (2 * moved,),
            }
        return shapes


def initial_weights(shape: FlowShape, seed: int, flows: Iterable[int]) -> dict[str, np.ndarray]:
    """Return float32 [K, ...] weights; a flow's depend on the seed and its own number, not on the others.

    The last layer is zero, so that every coupling starts as the identity.
    """
    weights: dict[str, list[np.ndarray]] = {name: [] for name in shape.parameters()}
    for flow in flows:
        generator = sample_generator(seed, "flow", flow)
        for name, size in shape.parameters().items():
            if name.endswith(("w1", "b1")):
                bound = 1.0 / math.sqrt(shape.halves(int(name.partition(".")[0]))[0])  # torch.nn.Linear's own
                value = generator.uniform(-bound, bound, size).astype(np.float32)
            else:
                value = np.zeros(size, np.float32)
            weights[name].append(value)
    return {name: np.stack(values) for name, values in weights.items()}


@dataclass
class _Saved:
    """What a step's backward pass needs of its forward pass."""

    normed: Tensor  # [K, B, D]
    hidden: Tensor  # [K, B, W]
    ratio: Tensor  # [K, B, D - A], tanh output
    scale: Tensor  # [K, B, D - A], its exponential


class FlowBank:
    """K flows of one shape: `log_density` for all of them at once, and the gradient of the training loss."""

    def __init__(self, shape: FlowShape, weights: Mapping[str, Tensor]) -> None:
        self.shape = shape
        self.weights = dict(weights)

    @classmethod
    def from_arrays(cls, shape: FlowShape, arrays: Mapping[str, np.ndarray], device: str) -> FlowBank:
        """Return a bank with copies of float32 arrays [K, ...]."""
        names = shape.parameters()
        return cls(shape, {name: torch.tensor(arrays[name], device=device) for name in names})

    def first(self, count: int) -> FlowBank:
        """Return the first `count` flows; they share memory with these."""
        return FlowBank(self.shape, {name: value[:count] for name, value in self.weights.items()})

    def only(self, place: int) -> FlowBank:
        """Return one flow; it shares memory with this one."""
        return FlowBank(self.shape, {name: value[place : place + 1] for name, value in self.weights.items()})

    def initialise(self, x_KBD: Tensor, real_KB: Tensor, min_std: float) -> None:
        """Set every actnorm to give mean 0, deviation 1 on this batch; `real_KB` is 1 for rows that count."""
        rows = real_KB.sum(1)[:, None]
        mask = real_KB[:, :, None]
        for step in range(self.shape.depth):
            mean = (x_KBD * mask).sum(1) / rows
            variance = ((x_KBD - mean[:, None]).square() * mask).sum(1) / (rows - 1).clamp(min=1)
            self.weights[f"{step}.shift"].copy_(mean)
            self.weights[f"{step}.log_scale"].copy_((variance.sqrt().clamp(min=min_std) + 1e-6).log())
            x_KBD = self._step(step, x_KBD)[0]

    def _step(self, step: int, x_KBD: Tensor) -> tuple[Tensor, Tensor, _Saved]:
        """Return the step's output, its log-determinant [K, B] and what its backward pass needs."""
        w = self.weights
        kept = self.shape.halves(step)[0]
        log_scale = w[f"{step}.log_scale"]
        normed = (x_KBD - w[f"{step}.shift"][:, None]) * torch.exp(-log_scale)[:, None]
        passed, moved = normed[..., :kept], normed[..., kept:]
        hidden = torch.baddbmm(w[f"{step}.b1"][:, None], passed, w[f"{step}.w1"]).relu_()
        out = torch.baddbmm(w[f"{step}.b2"][:, None], hidden, w[f"{step}.w2"])
        ratio, shift = out.chunk(2, dim=2)
        ratio = torch.tanh(ratio)
        scale = torch.exp(ratio)
        changed = torch.addcmul(shift, scale, moved)
        last = step == self.shape.depth - 1
        result = torch.cat([passed, changed] if last else [changed, passed], dim=2)
        logdet = ratio.sum(2) - log_scale.sum(1)[:, None]
        return result, logdet, _Saved(normed, hidden, ratio, scale)

    def forward(self, x_KBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (u [K, B, D], log |det du/dx| [K, B]); x may be [1, B, D], seen by all flows."""
        total: Tensor | float = 0.0
        for step in range(self.shape.depth):
            x_KBD, logdet, _ = self._step(step, x_KBD)
            total = total + logdet
        assert isinstance(total, torch.Tensor)
        return x_KBD, total

    def log_density(self, x_KBD: Tensor) -> Tensor:
        """Return l [K, B], the log-density in nats per dimension: log p(x) / D."""
        u, logdet = self.forward(x_KBD)
        return self._per_dimension(u, logdet)

    def _per_dimension(self, u: Tensor, logdet: Tensor) -> Tensor:
        return (logdet - 0.5 * u.square().sum(2)) / self.shape.features - 0.5 * LOG_TWO_PI

    def loss_and_gradient(self, x_KBD: Tensor, weight_KB: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return each flow's loss [K], the sum of -l over its rows times `weight_KB`; fill in its gradient.

        The weights of one flow add up to 1; rows that only fill the batch up have weight 0. `gradients` is
        written to, as fresh memory of that size in every step costs more than the arithmetic.
        """
        saved: list[_Saved] = []
        total: Tensor | float = 0.0
        for step in range(self.shape.depth):
            x_KBD, logdet, record = self._step(step, x_KBD)
            total = total + logdet
            saved.append(record)
        assert isinstance(total, torch.Tensor)
        loss = -(self._per_dimension(x_KBD, total) * weight_KB).sum(1)
        per_row = (weight_KB / self.shape.features)[:, :, None]  # d loss / d (-log p)
        grad = x_KBD * per_row
        for step in reversed(range(self.shape.depth)):
            grad = self._step_backward(step, saved[step], grad, per_row, gradients)
        return loss

    def _step_backward(
        self, step: int, saved: _Saved, grad: Tensor, per_row: Tensor, gradients: Mapping[str, Tensor]
    ) -> Tensor:
        """Fill in the step's gradients and return that of its input (of its output, for the first step)."""
        w = self.weights
        kept, moved = self.shape.halves(step)
        if step == self.shape.depth - 1:
            grad_passed, grad_changed = grad.split([kept, moved], dim=2)
        else:
            grad_changed, grad_passed = grad.split([moved, kept], dim=2)
        grad_moved = grad_changed * saved.scale
        # log p holds + ratio, hence the - per_row; then through tanh
        grad_ratio = torch.addcmul(-per_row, grad_moved, saved.normed[..., kept:])
        grad_ratio = torch.addcmul(grad_ratio, grad_ratio, saved.ratio.square(), value=-1.0)
        grad_out = torch.cat([grad_ratio, grad_changed], dim=2)
        grad_hidden = torch.bmm(grad_out, w[f"{step}.w2"].transpose(1, 2)).mul_(saved.hidden > 0)
        torch.bmm(saved.hidden.transpose(1, 2), grad_out, out=gradients[f"{step}.w2"])
        torch.sum(grad_out, 1, out=gradients[f"{step}.b2"])
        torch.bmm(saved.normed[..., :kept].transpose(1, 2), grad_hidden, out=gradients[f"{step}.w1"])
        torch.sum(grad_hidden, 1, out=gradients[f"{step}.b1"])
        grad_passed = torch.baddbmm(grad_passed, grad_hidden, w[f"{step}.w1"].transpose(1, 2))
        grad_normed = torch.cat([grad_passed, grad_moved], dim=2)
        # the weights of a flow's rows add up to 1, hence log_scale's share of log p is exactly 1 / D
        torch.sub(per_row.sum(1), (grad_normed * saved.normed).sum(1), out=gradients[f"{step}.log_scale"])
        grad_input = grad_normed * torch.exp(-w[f"{step}.log_scale"])[:, None]
        torch.sum(grad_input, 1, out=gradients[f"{step}.shift"]).neg_()
        return grad_input
