"""The epoch of D-BR: an ascent on what is taken as poison, and a descent on what is clean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch.nn.functional import cross_entropy

from bdtune.engine.stage import Artefact
from bdtune.training import loop, session
from bdtune.training.batches import DeviceSet

if TYPE_CHECKING:
    from bdtune.defenses.dst.training import Repair
    from bdtune.training.fit import Fit


def repaired(fit: Fit, recipe: Repair, poison: Artefact) -> loop.Training | Artefact:
    """Return the training whose every epoch passes both, or one of them."""
    training = fit.training()
    if isinstance(training, Artefact):
        return training
    unlearned = DeviceSet(fit.data, fit.device, poison.arrays["ids"], poison.arrays["labels"])

    def one_pass(name: str, images: DeviceSet, sign: float, done: int) -> tuple[float, float]:
        """Return mean loss and accuracy of a pass, of which `sign` times the loss is minimised."""
        meter = loop.Meter(f"{recipe.name}: epoch {done + 1} of {recipe.epochs}, {name}", fit.device)
        draws = session.generator(fit.ctx.seed, name, done)
        for batch in images.shuffled(recipe.batch_size, fit.ctx.seed, done):
            seen = fit.prepare(batch, draws)
            with session.autocast(fit.ctx.numerics):
                logits = fit.network(seen)
            loss = cross_entropy(logits.float(), batch.labels)
            loop.descend(fit.optimizer, sign * loss)
            meter.add(loss, len(logits), (logits.detach().argmax(1) == batch.labels).sum())
        return meter.means()

    def epoch(done: int) -> dict[str, float]:
        row = {"lr": recipe.rate(done)}
        loop.set_learning_rate(fit.optimizer, row["lr"])
        fit.network.train()
        if recipe.passes != "relearn":
            row["ascent_loss"], _ = one_pass("unlearn", unlearned, -1.0, done)
        if recipe.passes != "unlearn":
            row["loss"], row["acc"] = one_pass("relearn", fit.images, 1.0, done)
        return row

    return replace(training, epoch=epoch)
