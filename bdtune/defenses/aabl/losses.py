"""A-ABL's first two stages: a naive classifier, and its losses on images that are changed a little.

Shape letters: N samples, B batch, C channels, H height, W width.
Source: "Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), section 4, and table 5 for
augmentations in place of the perturbation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged
from bdtune.training.adversarial import PGD
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.training.fit import Fit, Part

    Changed = tuple[np.ndarray, torch.Tensor, torch.Tensor]


class Naive(
    Supervised,
    defaults={"epochs": 20, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"},
):
    """Train a classifier on everything, briefly, so that it learns the trigger.

    Inputs are those of `Supervised`, and so is the result, with each sample's loss by epoch (`LossTrace`).
    Departures: the paper gives Adam, its rate and 20 epochs; no
    weight decay, batches of 128 and the usual crops and flips are ours.
    """

    name: ClassVar[str] = "naive"
    version: ClassVar[int] = 2  # 1 kept no sample's losses
    classifier: ClassVar[bool] = False  # a scheduler does not judge it

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training.parts import LossTrace

        trace = LossTrace(fit)
        fit.loss = trace.loss
        return [trace]


class IFGSM(PGD, defaults={"eps": 2 / 255, "step": 2 / 255, "steps": 5, "random_start": False}):
    """Iterated FGSM: the perturbation that asks how easily a sample's prediction gives way."""


class AdversarialLosses(Stage):
    """Perturb every sample against its observed label and take the classifier's loss.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights). Arrays: losses float64 [N],
    predictions int64 [N] of perturbed images; clean_losses, clean_predictions of those as they are; unmoved
    bool [N], true where the perturbation left the image as it was, as it does where every gradient is zero.
    Images are not augmented, the network is in evaluation mode and all is float32: where the loss underflows,
    sign(0) = 0 would make a sample look robust.
    Raises `Diverged` when logits are not finite.
    """

    name: ClassVar[str] = "adversarial_losses"
    kind: ClassVar[Kind] = "train"

    pgd: IFGSM = IFGSM()
    """The perturbation."""

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.pgd import attacked_batches
        from bdtune.training.predict import trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        return losses_of(network, data, attacked_batches(network, data, self.pgd, ctx.seed, ctx.numerics))


class AugmentedLosses(Stage):
    """Augment every sample once and take the classifier's loss: the ablation without a perturbation.

    Inputs and arrays are those of `AdversarialLosses`, without unmoved: an augmentation may well do nothing.
    The policies are torchvision's, with its settings (AutoAugment: the one found on CIFAR-10), and drawn anew
    for each sample from its id.
    Departures: the paper says AutoMix and cites AugMix (Hendrycks et al., 2020), which is meant.
    """

    name: ClassVar[str] = "augmented_losses"
    version: ClassVar[int] = 2  # 1 had AutoAugment's policy for ImageNet
    kind: ClassVar[Kind] = "train"

    policy: Literal["randaugment", "autoaugment", "augmix"]
    """What changes the images."""

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.predict import trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        found = losses_of(network, data, self._batches(data, ctx)).arrays
        return Artefact({name: values for name, values in found.items() if name != "unmoved"})

    def _batches(self, data: ImageSet, ctx: Context) -> Iterator[Changed]:
        from bdtune.training.batches import in_order
        from bdtune.training.changed import changed_by_id
        from bdtune.training.pgd import pixel_augmentation
        from bdtune.training.session import device_of
        from bdtune.training.weights import as_tensor

        augment, plain = self._transform(), pixel_augmentation("none", data)
        device = device_of(ctx.numerics)
        for ids, images in in_order(data, 256):
            changed = changed_by_id(images, ids, augment, ctx.seed, "policy")
            yield ids, plain(as_tensor(images).to(device)), plain(changed.to(device))

    def _transform(self) -> torch.nn.Module:
        from torchvision.transforms import v2

        if self.policy == "autoaugment":
            return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        return v2.RandAugment() if self.policy == "randaugment" else v2.AugMix()


def losses_of(network: Network, data: ImageSet, batches: Iterable[Changed]) -> Artefact:
    """Return losses and predictions for (ids [B], pixels, changed pixels [B, C, H, W]) of all samples."""
    from bdtune.training.losses import cross_entropies
    from bdtune.training.pgd import pixel_logits
    from bdtune.training.weights import as_array

    count, labels = len(data), np.asarray(data.labels, np.int64)
    arrays: dict[str, np.ndarray] = {"unmoved": np.zeros(count, bool)}
    for prefix in ("", "clean_"):
        arrays[f"{prefix}losses"] = np.zeros(count)
        arrays[f"{prefix}predictions"] = np.zeros(count, np.int64)
    for ids, pixels, changed in batches:
        for prefix, seen in (("", changed), ("clean_", pixels)):
            logits = as_array(pixel_logits(network, data, seen))
            if not np.isfinite(logits).all():
                raise Diverged("the naive network's output is not finite")
            arrays[f"{prefix}losses"][ids] = cross_entropies(logits, labels[ids])
            arrays[f"{prefix}predictions"][ids] = logits.argmax(1)
        arrays["unmoved"][ids] = as_array((changed == pixels).flatten(1).all(1))
    return Artefact(arrays)
