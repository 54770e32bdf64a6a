"""One normalizing flow per class, all trained together, and the density of every sample under every class.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix E (training), A.1 (density).

Departures: a class with fewer than two samples has no flow; its density is 0 everywhere (log-density -inf).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch.optim.adam import adam

from bdtune.engine.key import sample_generator
from bdtune.engine.stage import Artefact, Context, Inputs, Kind, Stage, Tick
from bdtune.errors import Diverged
from bdtune.knobs import Rate
from bdtune.training._flowbank import FlowBank, FlowShape, initial_weights

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from torch import Tensor

    from bdtune.training.data import ImageSet

CPU_GROUP = 8
"""Flows stepped together on a CPU: weights, gradient and moments of 8 flows at D = 512 (50 MB) stay near its
cache through an epoch, which halves the time of 43 flows. A GPU steps all of them."""

DENSITY_ELEMENTS = 1 << 23
"""Activations (flows x rows x dimensions) computed at a time by `Density`."""


class Flows(Stage):
    """Fit one flow to each class of observed labels.

    Inputs: `features`, an artefact with z float32 [N, D]; `data`, the image set, read for its labels only.
    Arrays: weights [K, ...] by name; count int64 [K], the classes' sizes. Always fp32: densities need it.
    Raises `Diverged` when a loss is not finite.
    """

    name: ClassVar[str] = "flows"
    kind: ClassVar[Kind] = "train"

    epochs: int = Field(50, ge=1)
    """Passes of each flow over its own class."""
    batch_size: int = Field(16, ge=2)
    """Samples of one class per step; the last, partial batch is kept."""
    lr: float = Field(1e-3, gt=0)
    """Adam's constant learning rate."""
    betas: tuple[Rate, Rate] = (0.9, 0.99)
    """Adam's decay rates."""
    depth: int = Field(2, ge=1)
    """Steps of actnorm and coupling; between two steps the halves are swapped."""
    width: int = Field(1, ge=1)
    """Hidden units of a coupling's net per input."""
    min_std: float = Field(0.01, ge=0)
    """Lower limit of the deviation from which actnorm starts; the release has none."""

    def length(self) -> int:
        return self.epochs

    def steps(self, inputs: Inputs, ctx: Context) -> Generator[Tick, None, Artefact]:
        data: ImageSet = inputs["data"]
        trainer = FlowTrainer(self, inputs["features"].arrays["z"], data.labels, data.num_classes, ctx)
        curve: list[dict[str, float]] = []
        first = 0
        if state := ctx.checkpoint.load():
            trainer.restore(state[0])
            first, curve = state[1]["epoch"], state[1]["curve"]
        for epoch in range(first, self.epochs):
            loss = trainer.epoch(epoch)
            if not math.isfinite(loss):
                raise Diverged(f"flows: non-finite loss in epoch {epoch + 1}; lower lr or raise min_std")
            curve.append({"epoch": epoch + 1, "loss": loss})
            if ctx.checkpoint.due():
                ctx.checkpoint.save(trainer.state(), {"epoch": epoch + 1, "curve": curve})
            yield Tick(epoch + 1, self.epochs, {"loss": loss}, lambda: trainer.artefact(curve))
        return trainer.artefact(curve)


class FlowTrainer:
    """All flows of one `Flows` stage, largest class first, in groups that are stepped together."""

    def __init__(self, knobs: Flows, z: np.ndarray, labels: np.ndarray, classes: int, ctx: Context) -> None:
        if z.shape[1] < 2:
            raise Diverged(f"flows: need at least 2 feature dimensions that vary, got {z.shape[1]}")
        self.device = ctx.numerics.resolved().device
        self.shape = FlowShape(z.shape[1], knobs.depth, knobs.width)
        self.count = np.bincount(labels, minlength=classes)
        # neighbours of about equal size, so that the flows of a group finish at about the same step
        self.order = np.argsort(-self.count, kind="stable")
        size = CPU_GROUP if self.device == "cpu" else classes
        z_ND = torch.as_tensor(z, dtype=torch.float32, device=self.device)
        self.groups = []
        for start in range(0, classes, size):
            members = self.order[start : start + size]
            ids = [np.flatnonzero(labels == c) for c in members]
            own = dict(zip(members.tolist(), ids, strict=True))
            self.groups.append(_Group(knobs, self.shape, z_ND, own, ctx.seed))

    def epoch(self, epoch: int) -> float:
        """Train one epoch of every group's longest flow; return the mean loss per step and flow."""
        sums = [group.epoch(epoch) for group in self.groups]
        return sum(total for total, _ in sums) / max(1, sum(steps for _, steps in sums))

    def state(self) -> dict[str, np.ndarray]:
        """Weights and Adam's moments, largest class first."""
        parts = [group.state() for group in self.groups]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state returned by `state`."""
        start = 0
        for group in self.groups:
            stop = start + len(group.ids)
            group.restore({name: value[start:stop] for name, value in arrays.items()})
            start = stop

    def artefact(self, curve: list[dict[str, float]]) -> Artefact:
        """The flows in class order."""
        state = self.state()
        back = np.argsort(self.order)
        arrays = {name: state[f"weights.{name}"][back] for name in self.shape.parameters()}
        info = {"features": self.shape.features, "depth": self.shape.depth, "width": self.shape.width}
        return Artefact({**arrays, "count": self.count.astype(np.int64)}, info, tuple(curve))


class _Group:
    """Flows stepped together.

    A flow that has done all its steps leaves; the others go on. As the largest class comes first, those still
    at work are always the first ones, and all of them have done the same number of Adam steps.
    """

    def __init__(
        self, knobs: Flows, shape: FlowShape, z_ND: Tensor, ids: dict[int, np.ndarray], seed: int
    ) -> None:
        self.knobs, self.z_ND, self.ids, self.seed = knobs, z_ND, ids, seed
        self.bank = FlowBank.from_arrays(shape, initial_weights(shape, seed, ids), str(z_ND.device))
        weights = self.bank.weights
        self.moments = [{name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2)]
        self.gradient = {name: torch.empty_like(w) for name, w in weights.items()}
        # a class of one sample has no deviation to start from: it makes no step and has no density
        sizes = [len(own) if len(own) > 1 else 0 for own in ids.values()]
        self.batches = np.array([math.ceil(size / knobs.batch_size) for size in sizes])

    def epoch(self, epoch: int) -> tuple[float, int]:
        """Do the steps of one epoch of the largest class; return the summed loss and how many were summed."""
        per_epoch = int(self.batches[0])
        begin = epoch * per_epoch
        rows, weights = self._batches_between(begin, begin + per_epoch)
        total = torch.zeros((), dtype=torch.float64, device=self.z_ND.device)
        # Adam counts on by itself, one counter per tensor
        counters = [torch.tensor(float(begin), device=self.z_ND.device) for _ in self.bank.weights]
        steps = 0
        for step in range(per_epoch):
            active = int(np.count_nonzero(self.batches * self.knobs.epochs > begin + step))
            x_KBD = self.z_ND[rows[step, :active]]
            if begin + step == 0:
                real_KB = (weights[0, :active] > 0).float()
                self.bank.first(active).initialise(x_KBD, real_KB, self.knobs.min_std)
            total += self._adam_step(counters, active, x_KBD, weights[step, :active])
            steps += active
        return float(total), steps

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
        return loss.sum()

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

    def state(self) -> dict[str, np.ndarray]:
        """Weights and moments, copied."""
        kinds = dict(zip(("weights", "first", "second"), (self.bank.weights, *self.moments), strict=True))
        return {
            f"{kind}.{name}": value.detach().cpu().numpy().copy()
            for kind, values in kinds.items()
            for name, value in values.items()
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state returned by `state`."""
        kinds = dict(zip(("weights", "first", "second"), (self.bank.weights, *self.moments), strict=True))
        for kind, values in kinds.items():
            for name, value in values.items():
                value.copy_(torch.from_numpy(arrays[f"{kind}.{name}"]))


class Density(Stage):
    """Evaluate every flow on every sample.

    Inputs: `features` with z float32 [N, D]; `flows`. Arrays: L float32 [N, K], log-densities in nats per
    dimension; -inf in the column of a class that has no flow. Raises `Diverged` when a value is not finite.
    """

    name: ClassVar[str] = "density"
    kind: ClassVar[Kind] = "train"

    def run(self, inputs: Inputs, ctx: Context) -> Artefact:
        flows: Artefact = inputs["flows"]
        z: np.ndarray = inputs["features"].arrays["z"]
        device = ctx.numerics.resolved().device
        shape = FlowShape(flows.info["features"], flows.info["depth"], flows.info["width"])
        count = flows.arrays["count"]
        L = np.full((len(z), len(count)), -np.inf, np.float32)
        trained = np.flatnonzero(count > 1)
        for start in range(0, len(trained), CPU_GROUP):
            members = trained[start : start + CPU_GROUP]
            weights = {name: flows.arrays[name][members] for name in shape.parameters()}
            bank = FlowBank.from_arrays(shape, weights, device)
            rows = max(1, DENSITY_ELEMENTS // (len(members) * shape.features))
            for begin in range(0, len(z), rows):
                x_1BD = torch.as_tensor(z[begin : begin + rows], dtype=torch.float32, device=device)[None]
                x_KBD = x_1BD.expand(len(members), -1, -1)
                L[begin : begin + rows, members] = bank.log_density(x_KBD).T.cpu().numpy()
        if not np.isfinite(L[:, trained]).all():
            raise Diverged("density: a log-density is not finite")
        return Artefact({"L": L})
