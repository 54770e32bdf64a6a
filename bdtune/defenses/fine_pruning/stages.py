"""Fine-pruning's stages: ranking of channels, accuracy while they are pruned, choice, tuning.

Source: Fine-Pruning (Liu, Dolan-Gavitt and Garg, 2018), arXiv:1805.12185, section 3. Knobs without defaults
are handed down from the defense, where their defaults and ranges are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from bdtune.effects import OnlyIf
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.training.fine_tune import FineTune

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training

POINTS = 65
"""Numbers of pruned channels, at most, at which training images are looked at."""
SAMPLES = 2000
"""Training images that are looked at, at most."""


class Rank(Stage):
    """Rank the channels by how active they are on clean images.

    Inputs: data (ImageSet), subset (artefact with ids), model (Model), classifier (artefact with weights).
    Arrays: activation float32 [C], the mean over images; order int64 [C], the least active channel first,
    equal ones by number.
    """

    name: ClassVar[str] = "fp_ranking"
    kind: ClassVar[Kind] = "train"

    layer: Literal["features", "inner"]
    """Which channels."""
    pooling: Literal["mean", "max"]
    """What an image's activation is over positions."""
    absolute: bool
    """Whether the sign is dropped before."""

    def run(
        self, ctx: Context, *, data: ImageSet, subset: Artefact, model: Model, classifier: Artefact
    ) -> Artefact:
        import torch

        from bdtune.defenses.fine_pruning.channels import Looking, some_of
        from bdtune.training.session import deterministic
        from bdtune.training.weights import as_array

        with torch.inference_mode(), deterministic(ctx.numerics):
            looking = Looking(model, data, classifier, ctx.numerics)
            part = some_of(data, subset.arrays["ids"])
            each = looking.activations(part, self.layer, self.pooling, absolute=self.absolute)
            activation = as_array(each.double().mean(0).float())
        return Artefact({"activation": activation, "order": np.argsort(activation, kind="stable")})


class Curve(Stage):
    """Measure the accuracy on clean images as more and more channels are pruned.

    Inputs: data (ImageSet), subset (artefact with ids and labels), model (Model), classifier (artefact with
    weights), ranking (order). Arrays: pruned int64 [P], how many channels; acc float64 [P]. One channel at
    least is always left.
    """

    name: ClassVar[str] = "fp_curve"
    kind: ClassVar[Kind] = "train"

    layer: Literal["features", "inner"]
    """Which channels."""
    step: int
    """Channels from one point to the next."""

    def run(
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        classifier: Artefact,
        ranking: Artefact,
    ) -> Artefact:
        from bdtune.defenses.fine_pruning.channels import some_of

        order, labels = ranking.arrays["order"], subset.arrays["labels"]
        counts = np.arange(0, len(order), self.step)
        part = some_of(data, subset.arrays["ids"])
        found = pruned_classes(ctx, part, model, classifier, self.layer, order, counts)
        return Artefact({"pruned": counts, "acc": (found == labels).mean(1)})


def pruned_classes(  # noqa: PLR0917  what a stage is given
    ctx: Context,
    data: ImageSet,
    model: Model,
    classifier: Artefact,
    layer: Literal["features", "inner"],
    order: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Return the classes int64 [P, N] that are predicted without the first counts[p] channels of an order."""
    import torch

    from bdtune.defenses.fine_pruning.channels import Cut, Looking
    from bdtune.training.session import deterministic
    from bdtune.training.weights import as_array

    found = np.empty((len(counts), len(data)), np.int64)
    with torch.inference_mode(), deterministic(ctx.numerics):
        looking = Looking(model, data, classifier, ctx.numerics)
        cut = Cut.of(looking.network, layer)
        entering = [cut.front(images) for images in looking.inputs(data)]
        for point, count in enumerate(counts):
            pruned = torch.zeros(len(order), dtype=torch.bool, device=looking.device)
            pruned[order[:count].tolist()] = True
            found[point] = as_array(cut.classes(entering, pruned))
    return found


class Choose(Stage):
    """Choose how many channels are pruned.

    Inputs: ranking (order), curve (pruned, acc). Arrays: mask bool [C], true for a pruned channel; info
    has the layer. With a tolerance t the largest number k of the curve with acc_0 - acc_k <= t, or <= t acc_0
    if `relative`; with a ratio floor(ratio C), but not all channels.
    """

    name: ClassVar[str] = "fp_mask"
    kind: ClassVar[Kind] = "derive"

    layer: Literal["features", "inner"]
    """Which channels."""
    rule: Literal["tolerance", "ratio"]
    """What decides."""
    tolerance: Annotated[float, OnlyIf(rule="tolerance")]
    """Accuracy on the validation part that may be lost."""
    relative: Annotated[bool, OnlyIf(rule="tolerance")]
    """Whether it is a share of the accuracy."""
    ratio: Annotated[float, OnlyIf(rule="ratio")]
    """Fraction of channels."""

    def run(self, ctx: Context, *, ranking: Artefact, curve: Artefact) -> Artefact:
        order = ranking.arrays["order"]
        mask = np.zeros(len(order), bool)
        mask[order[: self._count(len(order), curve.arrays["pruned"], curve.arrays["acc"])]] = True
        return Artefact({"mask": mask}, {"layer": self.layer})

    def _count(self, channels: int, pruned: np.ndarray, acc: np.ndarray) -> int:
        if self.rule == "ratio":
            return min(int(self.ratio * channels + 1e-9), channels - 1)
        allowed = self.tolerance * (acc[0] if self.relative else 1.0)
        return int(pruned[acc[0] - acc <= allowed + 1e-9].max())


class Shown(Stage):
    """Look at some training images while channels are pruned: for the diagnosis and the picture alone.

    Inputs: data (ImageSet, the poisoned set), model (Model), classifier (artefact with weights), ranking
    (order). Arrays: ids int64 [m], drawn at random, at most 2,000; pruned int64 [P], at most 65 numbers of
    channels; predictions int64 [P, m]; activation float32 [m, C].
    """

    name: ClassVar[str] = "fp_shown"
    kind: ClassVar[Kind] = "train"

    layer: Literal["features", "inner"]
    """Which channels."""

    def run(
        self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact, ranking: Artefact
    ) -> Artefact:
        import torch

        from bdtune.defenses.fine_pruning.channels import Looking, some_of
        from bdtune.training.session import deterministic
        from bdtune.training.weights import as_array

        order = ranking.arrays["order"]
        ids = np.sort(np.random.default_rng(ctx.seed).permutation(len(data))[:SAMPLES])
        part = some_of(data, ids)
        counts = np.unique(np.linspace(0, len(order) - 1, min(len(order), POINTS)).round().astype(np.int64))
        found = pruned_classes(ctx, part, model, classifier, self.layer, order, counts)
        with torch.inference_mode(), deterministic(ctx.numerics):
            looking = Looking(model, data, classifier, ctx.numerics)
            activation = as_array(looking.activations(part, self.layer, "mean", absolute=True))
        arrays = {"ids": ids, "pruned": counts, "predictions": found, "activation": activation}
        return Artefact(arrays)


class PrunedTune(FineTune, defaults={"epochs": 10}):
    """Tune the pruned classifier.

    Inputs: those of `FineTune`, and mask (mask bool [C], true for a pruned channel). Result as there; pruned
    channels are silent at the start, and after each step if `keep_mask`.
    """

    name: ClassVar[str] = "fp_tune"

    keep_mask: bool = True
    """Whether pruned channels stay so; else they may grow back."""

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact,
        mask: Artefact,
        validation: Artefact | None = None,
    ) -> Training | Artefact:
        from bdtune.defenses.fine_pruning.channels import reader_of, silence
        from bdtune.training.fine_tune_parts import Progress
        from bdtune.training.fit import Fit
        from bdtune.training.weights import as_tensor

        fit = Fit(self, ctx, data, subset, model, init)
        parts = self.parts(fit)
        reader = reader_of(fit.network, mask.info["layer"])
        pruned = as_tensor(mask.arrays["mask"]).to(fit.device)
        silence(reader, pruned)
        if self.keep_mask:
            fit.optimizer.register_step_post_hook(lambda *_step: silence(reader, pruned))
        return fit.training(*parts, Progress(fit, init, validation))
