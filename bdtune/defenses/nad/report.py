"""What the distillation did to attention and backdoor. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.loss_pictures import dress, number_epochs, panels
from bdtune.defending.poisoned_rows import success
from bdtune.defending.weight_changes import distance, weights_of
from bdtune.metrics import defined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

WHO = ("undefended", "teacher", "classifier")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#F0E442")


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth, beta: Sequence[float]) -> dict[str, float]:
    """Return how much of the backdoor each classifier has, and what the distillation reached.

    train_asr_undefended, train_asr_teacher, train_asr_classifier: share of poisoned training images, those
    that were relabelled, that are classified as labelled; ce and attention_<i>: of the last epoch, by group,
    the deepest last; weight_<i>: beta over the number of positions, which a mean over these leaves of it;
    distance: of the weights from the undefended ones, relative.
    """
    answers = artefacts["answers"].arrays
    asr = success(answers["ids"], answers["predictions"], truth)
    found = {f"train_asr_{who}": value for who, value in zip(WHO, asr, strict=True)}
    curve, info = artefacts["classifier"].curve, artefacts["classifier"].info
    names = ["ce", *(f"attention_{place}" for place in range(1, len(beta) + 1))]
    found |= {name: curve[-1][name] for name in names}
    for place, (weight, (_, positions)) in enumerate(zip(beta, info["groups"], strict=True), 1):
        found[f"weight_{place}"] = weight / positions
    before, after = (weights_of(artefacts[name].arrays) for name in ("undefended", "classifier"))
    return defined({**found, "distance": distance(before, after)})


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the distance of the student's attention from the teacher's by epoch, for each group of layers.

    Beside it the share of poisoned training images that each classifier answers as labelled.
    """
    picture, (left, right) = panels(2)
    curve, groups = artefacts["classifier"].curve, artefacts["classifier"].info["groups"]
    epochs = [row["epoch"] for row in curve]
    for place, ((layer, positions), colour) in enumerate(zip(groups, COLOURS, strict=False), 1):
        values = [row[f"attention_{place}"] for row in curve]
        left.plot(epochs, values, color=colour, marker=".", label=f"{layer}, {positions} positions")
    left.set_yscale("log")
    left.tick_params(axis="y", which="both", labelsize="x-small")
    number_epochs(left)
    left.set_ylabel("distance of attention", fontsize="small")
    left.set_title("student and teacher", fontsize="medium")
    dress(left)
    answers = artefacts["answers"].arrays
    asr = success(answers["ids"], answers["predictions"], truth)
    bars = right.bar(range(len(WHO)), np.nan_to_num(asr), color=COLOURS[0])
    labels = [f"{value:.3f}" if np.isfinite(value) else "none" for value in asr]
    right.bar_label(bars, labels, fontsize="small")
    right.set_xticks(range(len(WHO)), WHO)
    right.set_ylim(0, 1.1)
    right.tick_params(labelsize="x-small")
    right.set_ylabel("share classified as labelled", fontsize="small")
    right.set_title("poisoned training images", fontsize="medium")
    return picture
