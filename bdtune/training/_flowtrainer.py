"""The training loop of a bank of flows, one per class, with classes of different sizes.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix E: Adam, small shuffled batches of one class, the last partial batch kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.optim.adam import adam

from bdtune.engine.key import sample_generator
from bdtune.errors import Diverged
from bdtune.training._flowbank import FlowBank, FlowShape, initial_weights
from bdtune.training.weights import as_array, as_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from bdtune.engine.stage import Context
    from bdtune.training.flows import Flows


class FlowTrainer:
    """All flows of one `Flows` stage, stepped together, largest class first.

    A flow that has done all its steps leaves; the others go on. As the largest class comes first, those still
    at work are always the first ones, and all of them have done the same number of Adam steps.
    """

    def __init__(self, knobs: Flows, z: np.ndarray, labels: np.ndarray, classes: int, ctx: Context) -> None:
        if z.shape[1] < 2:
            raise Diverged(f"flows: need at least 2 feature dimensions that vary, got {z.shape[1]}")
        self.knobs, self.seed = knobs, ctx.seed
        self.device = ctx.numerics.resolved().device
        self.shape = FlowShape(z.shape[1], knobs.depth, knobs.width)
        self.z_ND = as_tensor(z).to(self.device, torch.float32)
        self.count = np.bincount(labels, minlength=classes)
        order = np.argsort(-self.count, kind="stable").tolist()
        self.ids = {label: np.flatnonzero(labels == label) for label in order}
        # a class of one sample has no deviation to start from: it makes no step and has no density
        sizes = np.where(self.count > 1, self.count, 0)[order]
        self.batches = -(-sizes // knobs.batch_size)
        self.bank = FlowBank.from_arrays(
            self.shape, initial_weights(self.shape, ctx.seed, order), self.device
        )
        weights = self.bank.weights
        self.moments = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2)]
        self.gradient = {name: torch.empty_like(w) for name, w in weights.items()}
        self._final: dict[int, float] = {}  # losses of flows that have done all their steps

    def epoch(self, epoch: int) -> float:
        """Do as many steps as the largest class has batches; return the mean loss of all flows.

        A flow that has left counts with its final loss: else the mean would drop or rise as flows leave.
        """
        per_epoch = int(self.batches[0])
        begin = epoch * per_epoch
        rows, weights = self._batches_between(begin, begin + per_epoch)
        totals_K = torch.zeros(len(self.ids), dtype=torch.float64, device=self.device)
        # Adam counts on by itself, one counter per tensor
        counters = [torch.tensor(float(begin), device=self.device) for _ in self.bank.weights]
        for step in range(per_epoch):
            active = int(np.count_nonzero(self.batches * self.knobs.epochs > begin + step))
            x_KBD = self.z_ND[rows[step, :active]]
            if begin + step == 0:
                real_KB = (weights[0, :active] > 0).float()
                self.bank.first(active).initialise(x_KBD, real_KB, self.knobs.min_std)
            totals_K[:active] += self._adam_step(counters, active, x_KBD, weights[step, :active])
        steps_K = np.clip(self.batches * self.knobs.epochs - begin, 0, per_epoch)
        trained = np.flatnonzero(self.batches)
        own = totals_K.cpu().numpy()
        losses = [own[k] / steps_K[k] if steps_K[k] else self._final_loss(int(k)) for k in trained]
        return float(np.mean(losses)) if losses else 0.0

    def _final_loss(self, place: int) -> float:
        """Return the loss of a flow that has done its steps on all samples of its class."""
        if place not in self._final:
            own = self.z_ND[self.ids[list(self.ids)[place]]]
            self._final[place] = -float(self.bank.only(place).log_density(own[None]).mean())
        return self._final[place]

    def _adam_step(self, counters: list[Tensor], active: int, x_KBD: Tensor, weight_KB: Tensor) -> Tensor:
        bank = self.bank.first(active)
        gradient = {name: value[:active] for name, value in self.gradient.items()}
        loss = bank.loss_and_gradient(x_KBD, weight_KB, gradient)
        first, second = self.moments
        names = list(bank.weights)
        adam(
            list(bank.weights.values()),
            list(gradient.values()),
            [first[name][:active] for name in names],
            [second[name][:active] for name in names],
            [],
            counters,
            fused=True,
            amsgrad=False,
            beta1=self.knobs.betas[0],
            beta2=self.knobs.betas[1],
            lr=self.knobs.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        return loss

    def _batches_between(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Rows int64 and weights float32 [steps, K, B] of the flows' own steps begin..end-1.

        Each flow walks through its own shuffled epochs; an order depends on seed, class and epoch alone.
        """
        size = self.knobs.batch_size
        rows = np.zeros((end - begin, len(self.ids), size), np.int64)
        weights = np.zeros(rows.shape, np.float32)
        for place, (label, batches) in enumerate(zip(self.ids, self.batches.tolist(), strict=True)):
            own = self.ids[label]
            last = min(end, batches * self.knobs.epochs)
            if last <= begin:
                continue
            epochs = range(begin // batches, (last - 1) // batches + 1)
            real = np.arange(batches * size).reshape(batches, size) < len(own)
            weight = real / real.sum(1, keepdims=True, dtype=np.float32)
            kept = slice(begin - epochs[0] * batches, last - epochs[0] * batches)
            order = np.concatenate([self._shuffled(label, epoch, batches * size) for epoch in epochs])
            rows[: last - begin, place] = order.reshape(-1, size)[kept]
            weights[: last - begin, place] = np.tile(weight, (len(epochs), 1))[kept]
        device = self.z_ND.device
        return torch.from_numpy(rows).to(device), torch.from_numpy(weights).to(device)

    def _shuffled(self, label: int, epoch: int, length: int) -> np.ndarray:
        own = self.ids[label]
        generator = sample_generator(self.seed, "order", label, epoch)
        return np.concatenate([generator.permutation(own), np.zeros(length - len(own), np.int64)])

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Weights and Adam's moments, which share the memory that the steps change; largest class first."""
        held = {"weights": self.bank.weights, "first": self.moments[0], "second": self.moments[1]}
        return {kind: _module(values) for kind, values in held.items()}

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Return the flows in class order, with their classes' sizes."""
        back = np.argsort(list(self.ids))
        arrays = {name: as_array(value)[back] for name, value in self.bank.weights.items()}
        info = {"features": self.shape.features, "depth": self.shape.depth, "width": self.shape.width}
        return {**arrays, "count": self.count.astype(np.int64)}, info


def _module(values: Mapping[str, Tensor]) -> torch.nn.Module:
    """Return a module whose buffers are these tensors, called `<step>.<name>`."""
    module = torch.nn.Module()
    for name, value in values.items():
        step, _, own = name.partition(".")
        if step not in dict(module.named_children()):
            module.add_module(step, torch.nn.Module())
        module.get_submodule(step).register_buffer(own, value)
    return module
