"""One normalizing flow per class, all trained together, and the density of every sample under every class.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix E (training), A.1 (density).

Departures: a class with fewer than two samples has no flow; its density is 0 everywhere (log-density -inf).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged
from bdtune.knobs import Rate
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet
    from bdtune.training.loop import Training

DENSITY_ELEMENTS = 1 << 23
"""Activations (flows x rows x dimensions) computed at a time by `Density`."""


class Flows(TorchStage):
    """Fit one flow to each class of observed labels.

    Inputs: `features`, an artefact with z float32 [N, D]; `data`, a LabelSet of observed labels.
    Arrays: weights [K, ...] by name; count int64 [K], the classes' sizes. Always fp32: densities need it.
    Raises `Diverged` when a loss is not finite.
    """

    name: ClassVar[str] = "flows"

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

    def training(self, ctx: Context, *, features: Artefact, data: LabelSet) -> Training:
        from bdtune.training._flowtrainer import FlowTrainer
        from bdtune.training.loop import Training

        trainer = FlowTrainer(self, features.arrays["z"], data.labels, data.num_classes, ctx)

        def epoch(done: int) -> dict[str, float]:
            loss = trainer.epoch(done)
            if not math.isfinite(loss):
                raise Diverged(f"flows: non-finite loss in epoch {done + 1}; lower lr or raise min_std")
            return {"loss": loss}

        return Training(self.name, self.epochs, trainer.modules, {}, epoch, lambda done: trainer.result())


class Density(Stage):
    """Evaluate every flow on every sample.

    Inputs: `features` with z float32 [N, D]; `flows`; `data`, a LabelSet of observed labels.
    Arrays: L float32 [N, K], log-densities in nats per dimension, -inf in the column of a class that has no
    flow; labels int64 [N], the observed ones, so that what follows needs nothing else.
    Raises `Diverged` when a log-density is not finite.
    """

    name: ClassVar[str] = "density"
    kind: ClassVar[Kind] = "train"

    def run(self, ctx: Context, *, flows: Artefact, features: Artefact, data: LabelSet) -> Artefact:
        from bdtune.training._flowbank import FlowBank, FlowShape
        from bdtune.training.weights import as_tensor

        device = ctx.numerics.resolved().device
        shape = FlowShape(flows.info["features"], flows.info["depth"], flows.info["width"])
        count = flows.arrays["count"]
        trained = np.flatnonzero(count > 1)
        weights = {name: flows.arrays[name][trained] for name in shape.parameters()}
        bank = FlowBank.from_arrays(shape, weights, device)
        z_ND = as_tensor(features.arrays["z"])
        L = np.full((len(z_ND), len(count)), -np.inf, np.float32)
        rows = max(1, DENSITY_ELEMENTS // max(1, len(trained) * shape.features))
        for start in range(0, len(z_ND), rows):
            x_BD = z_ND[start : start + rows].to(device)
            x_KBD = x_BD[None].expand(len(trained), -1, -1)
            L[start : start + rows, trained] = bank.log_density(x_KBD).T.cpu().numpy()
        if not np.isfinite(L[:, trained]).all():
            raise Diverged("density: a log-density is not finite; lower the flows' lr or raise their min_std")
        return Artefact({"L": L, "labels": np.array(data.labels, np.int64)})
