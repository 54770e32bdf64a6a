"""What fine-tuning changed: how far the weights moved, and how the tuning went. The truth is not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.defending.loss_pictures import dress, number_epochs, panels
from bdtune.defending.weight_changes import distance, distances, head_cosine, largest_filters, weights_of
from bdtune.metrics import defined

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact

LAST = ("loss", "acc", "validation_loss", "validation_acc")
LINES = (("acc", "tuning part", "#0072B2"), ("validation_acc", "validation part", "#D55E00"))


def diagnose(artefacts: Mapping[str, Artefact]) -> dict[str, float]:
    """Return how far the tuning moved the weights, and its last epoch.

    distance: ||w - w_0|| / ||w_0||; distance_most: that of the layer that moved most; head_cosine: of the
    head's weights with the old ones; filters_before, filters_after: mean norm of the last convolution's
    largest 1 % of filters; loss, acc (of the tuning's own passes), validation_loss, validation_acc.
    """
    before, after = (weights_of(artefacts[name].arrays) for name in ("undefended", "classifier"))
    curve = artefacts["classifier"].curve
    found = {
        "distance": distance(before, after),
        "distance_most": max(distances(before, after).values()),
        "head_cosine": head_cosine(before, after),
        "filters_before": largest_filters(before),
        "filters_after": largest_filters(after),
    }
    return defined(found | {name: curve[-1][name] for name in LAST if curve and name in curve[-1]})


def figure(artefacts: Mapping[str, Artefact]) -> Figure:
    """Draw accuracy on the clean images while tuning, and how far each layer's weights moved."""
    picture, (left, right) = panels(2)
    _draw_curve(left, artefacts["classifier"])
    before, after = (weights_of(artefacts[name].arrays) for name in ("undefended", "classifier"))
    moved = distances(before, after)
    right.barh(range(len(moved)), list(moved.values()), color="#0072B2")
    right.set_yticks(range(len(moved)), list(moved))
    right.invert_yaxis()
    right.tick_params(labelsize="x-small")
    right.set_xlabel("distance from the start, relative", fontsize="small")
    right.set_title("how far each layer moved", fontsize="medium")
    return picture


def _draw_curve(ax: Axes, tuned: Artefact) -> None:
    epochs = [row["epoch"] for row in tuned.curve]
    for name, label, colour in LINES:
        if tuned.curve and name in tuned.curve[-1]:
            ax.plot(epochs, [row[name] for row in tuned.curve], color=colour, marker=".", label=label)
    ax.set_ylim(-0.03, 1.03)
    number_epochs(ax)
    ax.set_ylabel("accuracy", fontsize="small")
    ax.set_title("while tuning", fontsize="medium")
    dress(ax)
