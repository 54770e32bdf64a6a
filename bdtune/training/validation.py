"""Which epoch of an adversarial training is kept: a validation part, a training that watches it, the choice.

Source: "Overfitting in adversarially robust deep learning" (Rice et al., 2020), section 4: robust accuracy
falls again after the first drop of the rate, so the epoch is chosen that is best on images held out of the
training set (1,000 of 50,000 there). The choice sees observed labels, flipped ones included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.stage import Artefact, Context, Inputs, Kind, Stage, Tick
from bdtune.training.adversarial import RecordedAdversarialTraining

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    import torch

    from bdtune.plugins.network import Network


class Apart(Stage):
    """Hold a part of the training set out of the training.

    Inputs: data (LabelSet). Arrays: ids, labels int64 [n], what is trained on; validation_ids,
    validation_labels int64 [N - n], at least one of them. Ids rise.
    """

    name: ClassVar[str] = "validation_part"
    kind: ClassVar[Kind] = "derive"

    fraction: float
    """Fraction of the samples that are held out."""

    def run(self, inputs: Inputs, ctx: Context) -> Artefact:
        labels = np.asarray(inputs["data"].labels, np.int64)
        order = np.random.default_rng(ctx.seed).permutation(len(labels))
        held, ids = (np.sort(part) for part in np.split(order, [max(1, int(self.fraction * len(labels)))]))
        return Artefact(
            {
                "ids": ids,
                "labels": labels[ids],
                "validation_ids": held,
                "validation_labels": labels[held],
            }
        )


class ValidatedAdversarialTraining(RecordedAdversarialTraining):
    """Adversarial training that also keeps the weights of the epoch that was best on the validation part.

    Inputs: those of `Supervised`; subset is the result of `Apart`. Result: also weights `best.<name>` and
    `validation.robust_acc` float64 [epochs], the accuracy under `pgd` after each epoch, in float32 whatever
    the numerics; the first of equal epochs is the best. Weights `model.<name>` are the last ones.
    """

    name: ClassVar[str] = "validated_adversarial_training"
    version: ClassVar[int] = 1

    def companions(self, inputs: Inputs, device: torch.device) -> dict[str, torch.nn.Module]:
        import torch

        data = inputs["data"]
        validation = torch.nn.Module()
        validation.register_buffer("robust_acc", torch.zeros(self.epochs, dtype=torch.float64))
        best = inputs["model"].build(data.num_classes, data.image_shape).to(device)
        return {**super().companions(inputs, device), "best": best, "validation": validation.to(device)}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        curve = arrays["validation.robust_acc"][:done]
        return {**super().kept(arrays, done), "validation.robust_acc": curve}

    def steps(self, inputs: Inputs, ctx: Context) -> Generator[Tick, None, Artefact]:
        return (yield from super().steps({**inputs, "judge": self._judge(inputs, ctx)}, ctx))

    def _judge(self, inputs: Inputs, ctx: Context) -> Callable[[Network], float]:
        from bdtune.metrics import accuracy
        from bdtune.training.pgd import robust_predictions

        part, data = inputs["subset"].arrays, inputs["data"]
        held = replace(data, images=data.images_at(part["validation_ids"]), labels=part["validation_labels"])
        return lambda network: accuracy(
            robust_predictions(network, held, self.pgd, ctx.seed, ctx.numerics), held.labels
        )

    def before_epoch(self, done: int, network: Network, inputs: Inputs) -> None:
        super().before_epoch(done, network, inputs)
        inputs["validation"].done = done

    def after_epoch(self, row: dict[str, float], network: Network, inputs: Inputs) -> dict[str, float]:
        validation = inputs["validation"]
        before = validation.robust_acc[: validation.done]
        found = inputs["judge"](network)
        if not len(before) or found > before.max():
            inputs["best"].load_state_dict(network.state_dict())
        validation.robust_acc[validation.done] = found
        return super().after_epoch({**row, "validation_robust_acc": found}, network, inputs)


class BestEpoch(Stage):
    """Take the weights of the epoch that was best on the validation part.

    Inputs: classifier (artefact of `ValidatedAdversarialTraining`). Arrays: weights `model.<name>`; info has
    the epoch, counted from 1.
    """

    name: ClassVar[str] = "best_epoch"
    kind: ClassVar[Kind] = "derive"
    classifier: ClassVar[bool] = True

    def run(self, inputs: Inputs, ctx: Context) -> Artefact:
        arrays = inputs["classifier"].arrays
        weights = {
            "model." + name.removeprefix("best."): value
            for name, value in arrays.items()
            if name.startswith("best.")
        }
        return Artefact(weights, {"epoch": best_epoch(arrays)})


def best_epoch(arrays: Mapping[str, np.ndarray]) -> int:
    """Return the epoch, counted from 1, that a validated training was best after; the first of equal ones."""
    return int(arrays["validation.robust_acc"].argmax()) + 1
