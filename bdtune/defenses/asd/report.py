"""What ASD's pools held, and a picture of them. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.defending import pools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

TITLES = {
    "class_aware": "last loss, class-aware rule",
    "loss_guided": "last loss, loss-guided rule",
    "meta": "last fall of the loss, meta rule",
}


def diagnose(trainings: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return what `pools.judged` does of the whole training, and of each rule the poison that it let in.

    class_aware_poison, loss_guided_poison, meta_poison: share of poison in what is labelled, in the rule's
    last epoch; with _first in its first epoch. The scores are the fall of the loss under the meta rule.
    """
    found = pools.judged([each.arrays for each in trainings.values()], truth)
    for name, each in trainings.items():
        by_epoch = pools.poison_by_epoch(each.arrays["pool.labelled"], truth.is_poison)
        found |= {f"{name}_poison": by_epoch[-1], f"{name}_poison_first": by_epoch[0]}
    return found


def figure(trainings: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw what parted the samples in the last epoch of each rule, and what was labelled by epoch."""
    shown = [
        pools.Scores(
            TITLES[name], each.arrays["pool.scores"][-1], each.arrays["pool.labelled"][-1], name != "meta"
        )
        for name, each in trainings.items()
    ]
    return pools.figure(shown, [each.arrays for each in trainings.values()], truth)
