"""The stages of the pruning-aware attack: hide the backdoor in channels that a defender does not prune.

The channels are the inner ones of a residual network's last block, between its two convolutions: the block's
own output is a sum with the shortcut, so that no channel of it can be silenced. A channel is pruned when its
filter and its norm's scale and shift are zero: it then is zero for every image, and gets no gradient.
Everything is computed in float32, whatever the trial's precision, but for the trainings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.knobs import Rate
from bdtune.plugins.poison_plan import drawn_order, exact_count
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    import torch

    from bdtune.networks.resnet import LastBlock
    from bdtune.plugins.data import ImageSet, LabelSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network


class CleanPart(Stage):
    """Split the attacker's clean images into those that are trained on and those that accuracy is seen on.

    Inputs: data (LabelSet, all true labels), optionally rows (int64 [n], the ids to split; else all).
    Result: ids int64 and labels int64 of the part, ascending; both parts are drawn alike.
    """

    name: ClassVar[str] = "clean_part"
    kind: ClassVar[Kind] = "derive"

    part: Literal["train", "validation"]
    """Which of the two."""
    fraction: Rate = 0.05
    """Share of the images that is for validation, at least one."""

    def run(self, ctx: Context, *, data: LabelSet, rows: np.ndarray | None = None) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        rows = np.arange(len(labels)) if rows is None else rows
        order = drawn_order(rows, len(labels), ctx.seed)
        held = max(1, exact_count(self.fraction, len(rows)))
        ids = np.sort(order[:held] if self.part == "validation" else order[held:])
        return Artefact({"ids": ids, "labels": labels[ids]})


class PruneDormant(Stage):
    """Prune the channels that are least active on clean images, for as long as accuracy lasts.

    Inputs: data (ImageSet), subset (artefact: ids and true labels of clean images), model (Model), classifier
    (artefact with weights). Result: weights `model.<name>`, pruned int64 [k] (channels, ascending),
    activation float32 [C] (mean after the ReLU). Info: channels, pruned, acc before and acc_pruned after.
    Source: Fine-Pruning (Liu et al., 2018), section 3: its pruning defense, and its attacker's second step.
    """

    name: ClassVar[str] = "prune_dormant"
    kind: ClassVar[Kind] = "train"

    max_drop: Rate = 0.005
    """Accuracy that may be lost, as a fraction; pruning ends before the channel that would cost more."""

    def run(
        self, ctx: Context, *, subset: Artefact, data: ImageSet, model: Model, classifier: Artefact
    ) -> Artefact:
        import torch

        from bdtune.networks.resnet import last_block
        from bdtune.training import session, weights
        from bdtune.training.predict import trained_network

        ids, labels = subset.arrays["ids"], subset.arrays["labels"]
        part = replace(data, images=data.images_at(ids), labels=labels)
        network = trained_network(model, data, classifier, ctx.numerics)
        with torch.inference_mode(), session.deterministic(ctx.numerics):
            inner = last_block(network)
            seen = _Validation(network, inner, part, session.device_of(ctx.numerics))
            activation = weights.as_array(seen.activation)
            before = after = seen.accuracy([])
            order, pruned = np.argsort(activation, kind="stable"), 0
            while pruned < len(order) - 1:
                now = seen.accuracy(order[: pruned + 1].tolist())
                if now < before - self.max_drop - 1e-9:
                    break
                pruned, after = pruned + 1, now
            channels = np.sort(order[:pruned])
            silence(inner, channels)
        arrays = {**weights.module_arrays(network), "pruned": channels, "activation": activation}
        info = {"channels": len(order), "pruned": pruned, "acc": before, "acc_pruned": after}
        return Artefact(arrays, info)


class RetrainPruned(Supervised, defaults={"epochs": 50, "lr": 0.01, "schedule": "cosine"}):
    """Train the pruned network on the poisoned set, so that the backdoor lies where the rest lies.

    Inputs and result are those of `Supervised`; `init` has the pruned weights, and pruned channels stay so.
    A much higher rate would train the network anew.
    """

    name: ClassVar[str] = "retrain_pruned"
    classifier: ClassVar[bool] = False


class RestorePruned(Stage):
    """Put the pruned channels back, with their old weights, and lower their shifts until they are dormant.

    Inputs: data (ImageSet, the poisoned set), model (Model), retrained and original (artefacts with
    weights), pruned (artefact of `PruneDormant`). Result: weights `model.<name>`. Info: restored and lowered
    (channels), shift (the largest by which one was lowered). A channel is dormant when it is below zero at
    every position of every image of the set, by `slack` of its norm's scale: of clean images and of triggered
    ones, so that the model's answers stay those of the pruned one.
    """

    name: ClassVar[str] = "restore_pruned"
    kind: ClassVar[Kind] = "train"
    classifier: ClassVar[bool] = True

    slack: float = Field(0.1, ge=0)
    """How far below zero a restored channel stays, in units of its norm's scale."""

    def run(
        self,
        ctx: Context,
        *,
        data: ImageSet,
        model: Model,
        pruned: Artefact,
        retrained: Artefact,
        original: Artefact,
    ) -> Artefact:
        import torch

        from bdtune.networks.resnet import last_block
        from bdtune.training import session, weights
        from bdtune.training.predict import trained_network

        device = session.device_of(ctx.numerics)
        network, old = (
            trained_network(model, data, weighted, ctx.numerics) for weighted in (retrained, original)
        )
        channels = weights.as_tensor(pruned.arrays["pruned"]).to(device)
        with torch.inference_mode(), session.deterministic(ctx.numerics):
            inner = last_block(network)
            take(inner, channels, last_block(old))
            peaks = highest(inner, data, device)[channels]
            wanted = -self.slack * inner.norm.weight[channels].abs()
            lowered = (peaks - wanted).clamp(min=0)
            inner.norm.bias[channels] -= lowered
        largest = lowered.max().item() if len(channels) else 0.0
        info = {"restored": len(channels), "lowered": int((lowered > 0).sum()), "shift": largest}
        return Artefact(weights.module_arrays(network), info)


def silence(block: LastBlock, channels: np.ndarray) -> None:
    """Set filter, scale and shift of some inner channels to zero."""
    for values in (block.conv.weight, block.norm.weight, block.norm.bias):
        values[channels] = 0


def take(block: LastBlock, channels: torch.Tensor, other: LastBlock) -> None:
    """Copy some inner channels from another network of the same kind, with how they are read."""
    block.conv.weight[channels] = other.conv.weight[channels]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(block.norm, name)[channels] = getattr(other.norm, name)[channels]
    block.reader.weight[:, channels] = other.reader.weight[:, channels]


def highest(block: LastBlock, data: ImageSet, device: torch.device) -> torch.Tensor:
    """Return the largest value [C] of each inner channel before the ReLU, over all images and positions."""
    import torch

    from bdtune.training.batches import images_of, in_order
    from bdtune.training.predict import PIXELS

    peaks: list[torch.Tensor] = []
    hook = block.norm.register_forward_hook(lambda _m, _in, out: peaks.append(out.amax((0, 2, 3))))
    try:
        for _, images in in_order(data, images_of(PIXELS, data)):
            block.rest(block.before(_pixels(images, data, device)))
    finally:
        hook.remove()
    return torch.stack(peaks).amax(0)


class _Validation:
    """Clean images on their way through a network: kept where they enter the last block."""

    def __init__(self, network: Network, inner: LastBlock, data: ImageSet, device: torch.device) -> None:
        from bdtune.training.batches import images_of, in_order
        from bdtune.training.predict import PIXELS
        from bdtune.training.weights import as_tensor

        self._head, self._inner = network.head, inner
        self._labels = as_tensor(data.labels).to(device)
        batches = in_order(data, images_of(PIXELS, data))
        self._entering = [inner.before(_pixels(images, data, device)) for _, images in batches]

    @property
    def activation(self) -> torch.Tensor:
        """The mean [C] of each inner channel over images and positions."""
        import torch

        sums: list[torch.Tensor] = []
        hook = self._inner.reader.register_forward_pre_hook(
            lambda _m, args: sums.append(args[0].mean((2, 3)).sum(0))
        )
        try:
            self._classes()
        finally:
            hook.remove()
        return torch.stack(sums).sum(0) / len(self._labels)

    def accuracy(self, without: list[int]) -> float:
        """Return the accuracy while some inner channels are taken as zero."""
        import torch

        mask = torch.ones(self._inner.reader.in_channels, 1, 1, device=self._labels.device)
        mask[without] = 0
        hook = self._inner.reader.register_forward_pre_hook(lambda _m, args: (args[0] * mask,))
        try:
            return (self._classes() == self._labels).double().mean().item()
        finally:
            hook.remove()

    def _classes(self) -> torch.Tensor:
        import torch

        return torch.cat([self._head(self._inner.rest(x).mean((2, 3))).argmax(1) for x in self._entering])


def _pixels(images: np.ndarray, data: ImageSet, device: torch.device) -> torch.Tensor:
    from bdtune.poisoning.crafting import as_planes, normalised

    return normalised(as_planes(images, device), data)
