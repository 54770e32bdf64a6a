"""The epoch loop of all training stages: optimizer, schedule, checkpoints, curve, non-finite guard."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bdtune.engine.remarks import MICRO_BATCH, remark
from bdtune.engine.stage import Artefact, Tick
from bdtune.errors import Diverged
from bdtune.training.session import deterministic, seeded
from bdtune.training.weights import load_module, load_optimizer, modules_arrays, optimizers_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    import numpy as np

    from bdtune.engine.stage import Context
    from bdtune.training.choices import OptimizerName, Schedule

COUPLED = "what it minimises compares the samples of a batch, or may do so"
CHECK_EVERY = 100  # steps between looks at the loss; each look waits for the device


def make_optimizer(
    weights: Iterable[torch.nn.Parameter],
    name: OptimizerName,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return an optimizer with fused kernels; `momentum` and `nesterov` are SGD's, `betas` the others'."""
    weights = list(weights)
    if name == "sgd":
        rule: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        return torch.optim.SGD(weights, lr=lr, fused=True, **rule)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(weights, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def learning_rate(
    schedule: Schedule,
    lr: float,
    done: int,
    epochs: int,
    *,
    milestones: tuple[float, ...] = (),
    gamma: float = 0.1,
) -> float:
    """Return the rate of the epoch after `done` of `epochs`: a pure function, so that nothing needs resuming.

    Milestones are fractions of `epochs`; cosine falls to zero, as torch's annealing does.
    """
    if schedule == "multistep":
        return lr * gamma ** sum(done >= milestone * epochs for milestone in milestones)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done / epochs)) / 2
    return lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take one step down the gradient of a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Meter:
    """Sums loss and hits of an epoch on the device, and raises `Diverged` when the loss is not finite."""

    def __init__(self, where: str, device: torch.device) -> None:
        self._where = where
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._samples = 0
        self._steps = 0

    def add(self, loss: torch.Tensor, samples: int, hits: torch.Tensor | None = None) -> None:
        """Count one step of mean loss `loss` over `samples`, of which `hits` were right."""
        self._sums[0] += loss.detach() * samples
        if hits is not None:
            self._sums[1] += hits
        self._samples += samples
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self._check(self._sums[0].item())

    def _check(self, total: float) -> None:
        if not math.isfinite(total):
            raise Diverged(f"{self._where}: the loss became {total} within {self._steps} steps")

    def means(self) -> tuple[float, float]:
        """Return mean loss and share of hits."""
        loss, hits = self._sums.tolist()
        self._check(loss)
        return loss / max(self._samples, 1), hits / max(self._samples, 1)


@dataclass
class Training:
    """What an epoch loop changes, and how its result is made from it.

    `epoch` trains one epoch (counted from 0) and returns the curve's row without epoch and seconds; `result`
    makes arrays and info after so many epochs. `modules` and `optimizers` are kept in checkpoints under their
    names; `finished` hears of the result. `coupling` says why batches cannot pass in parts, "" if they can.
    """

    name: str
    epochs: int
    modules: Mapping[str, torch.nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    epoch: Callable[[int], dict[str, float]]
    result: Callable[[int], tuple[dict[str, np.ndarray], dict[str, Any]]]
    finished: Callable[[Artefact], None] = lambda artefact: None
    coupling: Callable[[], str] = lambda: COUPLED
    curve: list[dict[str, float]] = field(default_factory=list)
    done: int = 0
    """Epochs that are over."""

    def run(self, ctx: Context) -> Generator[Tick, None, Artefact]:
        """Train from the last checkpoint, if any, to the end; yields a `Tick` after each epoch.

        An epoch whose row holds "stopped" is the last one. Random numbers depend on the stage's seed and the
        epoch alone: resumed, it ends with the same bits.
        """
        self.resume(ctx)
        while self.goes_on:
            began = time.perf_counter()
            with seeded(ctx.seed, "epoch", self.done), deterministic(ctx.numerics):
                row = self.epoch(self.done)
            yield self.epoch_over(ctx, row, time.perf_counter() - began)
        return self.end()

    def resume(self, ctx: Context) -> None:
        """Go on from the last checkpoint, if any."""
        saved = ctx.checkpoint.load()
        if saved is None:
            return
        arrays, info = saved
        for name, module in self.modules.items():
            load_module(module, arrays, f"{name}.")
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, arrays, f"optimizer.{name}.")
        self.curve[:], self.done = info["curve"], int(info["done"])
        ctx.log.info("%s: going on after epoch %d of %d", self.name, self.done, self.epochs)
        if sizes := [int(row[MICRO_BATCH]) for row in self.curve if MICRO_BATCH in row]:
            remark(
                f"had passed {sizes[-1]} images at once before it was interrupted", **{MICRO_BATCH: sizes[-1]}
            )

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch."""
        return self.done < self.epochs and not (self.curve and "stopped" in self.curve[-1])

    def epoch_over(self, ctx: Context, row: dict[str, float], seconds: float) -> Tick:
        """Note an epoch's row, and save the state when due; raises `Diverged` on a non-finite weight."""
        self._check_weights(self.done + 1)
        self.done += 1
        self._say_if_whole(ctx)
        self.curve.append({"epoch": self.done, **row, "seconds": seconds})
        if ctx.checkpoint.due():
            ctx.checkpoint.save(self._arrays(), {"done": self.done, "curve": list(self.curve)})
        return Tick(self.done, self.epochs, row, partial(self._artefact, self.done))

    def end(self) -> Artefact:
        """Return the result."""
        artefact = self._artefact(self.done)
        self.finished(artefact)
        return artefact

    def _say_if_whole(self, ctx: Context) -> None:
        """Remark that batches passed as a whole though fewer images at once were asked for."""
        if ctx.numerics.in_parts and (why := self.coupling()):
            remark(f"numerics.micro_batch {ctx.numerics.micro_batch} is without effect, as {why}")

    def _artefact(self, done: int) -> Artefact:
        arrays, info = self.result(done)
        return Artefact(arrays, info, tuple(dict(row) for row in self.curve))

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**optimizers_arrays(self.optimizers), **modules_arrays(self.modules)}

    def _check_weights(self, epoch: int) -> None:
        """Raise `Diverged` when a weight or buffer is not finite: the last step's loss comes too early."""
        values = [value for module in self.modules.values() for value in module.state_dict().values()]
        finite = [value.isfinite().all() for value in values if value.is_floating_point()]
        if not bool(torch.stack(finite).all()):
            raise Diverged(f"{self.name}: weights are not finite after epoch {epoch} of {self.epochs}")
